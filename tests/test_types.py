"""The annotations agree with each other, with the code, and with the packages it uses."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def test_mypy_finds_no_error():
    pytest.importorskip("mypy", reason="mypy is not installed: it is in the extra dev")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
