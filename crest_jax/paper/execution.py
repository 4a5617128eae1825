"""Running the paper's runs here, one after the other."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from crest_jax import command
from crest_jax.errors import Preempted
from crest_jax.paper import progress
from crest_jax.paper.runs import PaperRun

# Exit statuses of a run that was told to stop and can be continued.
_STOPPED, _INTERRUPTED = Preempted.exit_status, command.INTERRUPTED


def run_all(runs: Sequence[PaperRun], flags: Sequence[str] = ()) -> int:
    """Run or continue all unfinished runs, one after the other.

    A run that fails does not keep the others from running. A signal to stop does, once the current
    run has saved itself.

    Args:
      runs: the runs.
      flags: additional flags for the command of each run.

    Returns:
      The exit status: 0, that of a run that was stopped, or that of the first run that failed. As
      in a shell, it is 128 plus the signal's number where a run was killed by a signal.
    """
    failed = {}
    process: subprocess.Popen[bytes] | None = None
    stopped = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = _STOPPED
        if process is not None:
            process.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.workdir}", flush=True)
            if progress.is_finished(run):
                continue
            process = subprocess.Popen([sys.executable, *run.command[1:], *flags])
            if stopped:  # the signal came before there was a process
                process.terminate()
            while True:
                try:
                    status = process.wait()
                    break
                except KeyboardInterrupt:  # the run gets it too, and handles it
                    stopped = _INTERRUPTED
            if stopped or status in (_STOPPED, _INTERRUPTED):
                return stopped or status
            if status:
                failed[run.workdir] = status if status > 0 else 128 - status
    finally:
        signal.signal(signal.SIGTERM, previous)
    for folder, status in failed.items():
        print(f"error: failed: {folder} (exit status {status})", file=sys.stderr)
    return next(iter(failed.values()), 0)
