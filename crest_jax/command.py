"""Behaviour that all commands share: their streams, their errors, and their exit status.

The output of a command may go to a terminal that lacks some of its characters, to a reader that
exits early (`| head -1`), or nowhere (`2>&-`). None of these may end a run, since its results are
in files.
"""

import argparse
import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from crest_jax.errors import CrestError, Preempted

INTERRUPTED = 130  # the exit status after Ctrl-C, as in a shell
_STREAMS = ("stdin", "stdout", "stderr")
# The errors of a stream whose reader has left: the other end of a pipe, or a terminal, is closed.
_LEFT = (errno.EPIPE, errno.EIO)


def entry(main: Callable[[], None]) -> Callable[[], None]:
    """Turn a function into a command.

    An error that the user can fix, or a stop by SIGTERM, is printed as one line, without a
    traceback, and the command exits with the status of that error.

    Args:
      main: a function that reads `sys.argv`. It returns on success, raises CrestError or SystemExit
        on failure, and raises Preempted on SIGTERM.

    Returns:
      A function that returns on success and raises SystemExit on failure.
    """

    @functools.wraps(main)
    def command() -> None:
        prepare_streams()
        status: Any = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        except (CrestError, Preempted) as error:
            print(f"error: {error}", file=sys.stderr)
            status = error.exit_status
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            status = INTERRUPTED
        failure = _failure(sys.stdout)
        if failure is not None:
            print(f"error: the output cannot be written ({failure.strerror})", file=sys.stderr)
            status = status or CrestError.exit_status
        if status:
            sys.exit(status)

    return command


def parser(documentation: str) -> argparse.ArgumentParser:
    """Return a parser of a command's arguments, to which they can be added.

    Args:
      documentation: the docstring of the command's module, which `--help` shows as it is.
    """
    # Python names the file of the module instead, which for a package is `__main__.py`.
    spec = sys.modules["__main__"].__spec__
    name = None
    if spec is not None and spec.origin == sys.argv[0]:
        name = f"python -m {spec.name.removesuffix('.__main__')}"
    return argparse.ArgumentParser(
        prog=name,
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def prepare_streams() -> None:
    """Replace the standard streams by ones on which no output can end this process.

    Characters that a stream's encoding lacks are printed as escapes. The output to a stream that
    was closed is discarded, and so is the output to one after its reader has left.
    """
    for number in range(len(_STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            # `os.open` takes the lowest free descriptor, which is this one. If it stayed free, the
            # next opened file would get it, and other programs and libraries would print into it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(_STREAMS[1:], start=1):
        stream = getattr(sys, name)
        if stream is None or _is_plain(stream, number):
            setattr(sys, name, _lasting(stream, number))


class _Lasting(io.FileIO):
    """A raw stream on a descriptor that accepts all output, even if it cannot be written."""

    failure: OSError | None = None  # the first write error, other than that the reader has left

    # The annotations of `io` leave out the None of a descriptor that does not block.
    def write(self, content: Any) -> int | None:  # type: ignore[override]
        """Write `content`, and return how many bytes of it were accepted."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno in _LEFT:
                # Discard all further output of this process and of those that it starts.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif self.failure is None:
                self.failure = error
            return memoryview(content).nbytes


def _is_plain(stream: Any, number: int) -> bool:
    """Return whether a stream is still the one that Python opened on a descriptor."""
    if not isinstance(stream, io.TextIOWrapper) or isinstance(_raw(stream), _Lasting):
        return False
    try:
        return stream.fileno() == number
    except OSError:
        return False


def _lasting(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    """Return a stream on a descriptor that replaces `stream`, which is None if it was closed."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        # `python -u` sets `write_through`.
        line_buffering=stream is None or stream.line_buffering or stream.write_through,
    )


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _failure(stream: Any) -> OSError | None:
    """Flush a stream, and return the first error of writing to it, if any.

    That the reader has left does not count as an error.
    """
    stream.flush()
    raw = _raw(stream)
    return raw.failure if isinstance(raw, _Lasting) else None
