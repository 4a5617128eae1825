"""The common parts of commands, with small commands in processes of their own."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

NAMED = """
from pathlib import Path
import sys
from crest_jax import command, errors

@command.entry
def main():
{}

main()
"""
# A letter that Latin-1 has, and one that it has not.
LETTERS = "Häher 鳥"


def started(body, *, shell='exec "$@"', environment=()):
    """Starts a command that does `body`, from a shell that may close some of its streams first."""
    program = NAMED.format("\n".join(f"    {line}" for line in body.splitlines()))
    return subprocess.Popen(
        ["sh", "-c", shell, "sh", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **dict(environment)},
    )


def ended(body, **how):
    process = started(body, **how)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", rb"H\xe4her \u9ce5"),
        ("latin-1", b"H\xe4her \\u9ce5"),
        ("utf-8", LETTERS.encode()),
        ("ascii:strict", rb"H\xe4her \u9ce5"),
    ],
)
def test_letters_that_a_stream_lacks_are_escapes(encoding, printed):
    body = f"print({LETTERS!r})\nprint({LETTERS!r}, file=sys.stderr)"
    done = ended(body, environment={"PYTHONIOENCODING": encoding})
    assert done == (0, printed + b"\n", printed + b"\n")


def test_names_of_files_that_are_no_text_are_printed():
    _, output, _ = ended("import os\nprint(os.fsdecode(b'\\xff'))")
    assert output == b"\\udcff\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_whose_reader_leaves_comes_to_its_end(tmp_path, stream):
    written = tmp_path / "written"
    process = started(
        f"print('first', file=sys.{stream}, flush=True)\n"
        f"for line in range(100_000): print(line, file=sys.{stream})\n"
        # Otherwise whoever leaves a socket of this process would end it without a word.
        "import signal\n"
        "assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN\n"
        f"Path({str(written)!r}).write_text('all')\n"
        "raise errors.Preempted('stopped')",
    )
    read = getattr(process, stream)
    assert read.readline() == b"first\n"
    read.close()
    other = process.stderr if stream == "stdout" else process.stdout
    assert other.read() == (b"error: stopped\n" if stream == "stdout" else b"")
    assert process.wait(timeout=60) == os.EX_TEMPFAIL
    assert written.read_text() == "all"


def test_streams_that_are_closed_are_no_files_that_are_opened(tmp_path):
    written = tmp_path / "written"
    status, *printed = ended(
        f"file = open({str(written)!r}, 'w')\n"
        "print('one')\n"
        "print('two', file=sys.stderr)\n"
        "import os, subprocess\n"
        "os.write(2, b'three')\n"
        "subprocess.run(['sh', '-c', 'echo four; echo five >&2'], check=True)\n"
        "file.write('mine')",
        shell='exec "$@" <&- >&- 2>&-',
    )
    assert (status, printed) == (0, [b"", b""])
    assert written.read_text() == "mine"


def test_output_that_finds_no_room_is_an_error():
    status, _, errors = ended("print('one')", shell='exec "$@" >/dev/full')
    assert status == 1
    assert errors == b"error: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("errors.ConfigError('no\\x1bsuch')", os.EX_USAGE, b"error: no\\x1bsuch\n"),
        ("errors.WorkdirError('away', 'come back')", 1, b"error: away: come back\n"),
        ("errors.Preempted('saved')", os.EX_TEMPFAIL, b"error: saved\n"),
        ("KeyboardInterrupt", 130, b"interrupted; run the same command again to continue\n"),
        ("SystemExit(3)", 3, b""),
        ("SystemExit", 0, b""),
    ],
)
def test_an_error_is_a_line_and_a_status(raised, status, said):
    assert ended(f"raise {raised}") == (status, b"", said)


def test_a_bug_keeps_its_traceback():
    status, _, errors = ended("1 / 0")
    assert status == 1
    assert errors.startswith(b"Traceback")


def test_every_command_is_made_by_entry():
    commands = [
        path
        for path in pathlib.Path(REPOSITORY, "crest_jax").rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    ]
    assert len(commands) == 10
    for path in commands:
        name = re.findall(r"\n    (\w+)\(\)\n$", path.read_text())[0]
        assert f"@command.entry\ndef {name}() -> None:" in path.read_text(), path
