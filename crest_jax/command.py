"""What every command does alike: its streams, its errors, and the status that it ends with.

What a command prints may go to a terminal that lacks some of its letters, to a reader that leaves
(`| head -1`), or nowhere (`2>&-`). A run must not be lost by that, as its results are in files.
"""

import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from crest_jax.errors import CrestError

INTERRUPTED = 130  # the exit status after Ctrl-C, as a shell's
_STREAMS = ("stdin", "stdout", "stderr")
# Whoever reads a stream has left it: a pipe's other end is closed, or a terminal is.
_LEFT = (errno.EPIPE, errno.EIO)


def entry(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a command of a function.

    An error that the user can mend is one line and the status that belongs to it, not a traceback.

    Args:
      main: reads `sys.argv`; returns when all is done, and raises CrestError or SystemExit where it
        is not.

    Returns:
      A function that returns when all is done, and raises SystemExit where it is not.
    """

    @functools.wraps(main)
    def command() -> None:
        prepare_streams()
        status: Any = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        except CrestError as error:
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


def prepare_streams() -> None:
    """Makes sure that nothing that is printed can end this process.

    Letters that a stream's encoding lacks are printed as escapes. A stream that was closed
    leads nowhere, and so does one from when its reader leaves.
    """
    for number in range(len(_STREAMS)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one. Left free, it would be that of the next
            # file that is opened, into which other programs and libraries would then print.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(_STREAMS[1:], start=1):
        stream = getattr(sys, name)
        if stream is None or _is_plain(stream, number):
            setattr(sys, name, _lasting(stream, number))


class _Lasting(io.FileIO):
    """A stream's descriptor, which takes what is written whether that can be written or not."""

    failure: OSError | None = None  # the first, unless it is that the reader has left

    def write(self, content) -> int | None:
        """Writes, and returns how many bytes have been taken."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno in _LEFT:
                # For all that this process and those that it starts will print.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif self.failure is None:
                self.failure = error
            return memoryview(content).nbytes


def _is_plain(stream: Any, number: int) -> bool:
    """Whether a stream is what Python has opened on a descriptor, and nothing has replaced it."""
    if not isinstance(stream, io.TextIOWrapper) or isinstance(_raw(stream), _Lasting):
        return False
    try:
        return stream.fileno() == number
    except OSError:
        return False


def _lasting(stream: io.TextIOWrapper | None, number: int) -> io.TextIOWrapper:
    """A stream in place of another, or of one that was closed."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",
        # The latter is what `python -u` asks for.
        line_buffering=stream is None or stream.line_buffering or stream.write_through,
    )


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _failure(stream: Any) -> OSError | None:
    """Why some of what was printed is not where it should be, if that is so."""
    stream.flush()
    raw = _raw(stream)
    return raw.failure if isinstance(raw, _Lasting) else None
