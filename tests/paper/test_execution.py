import os
import signal
import subprocess
import threading
import time

from crest_jax.paper import cells, progress
from crest_jax.paper.execution import run_all
from crest_jax.paper.runs import PaperRun


def test_a_failing_run_is_named_and_the_others_go_on(monkeypatch, capsys, cells_of, finish):
    started = []

    class Process:
        def __init__(self, command):
            started.append(command[4])

        def wait(self):
            return 1 if len(started) == 1 else 0

        def terminate(self):
            started.append("terminated")

    monkeypatch.setattr(subprocess, "Popen", Process)
    chosen = list(cells.named_runs(cells_of(5, folds=2)))[:3]
    finish(chosen[1], *[{"accuracy": 1.0}] * chosen[1].config().generations)
    assert run_all(chosen) == 1
    assert len(started) == 2  # the finished one is skipped
    assert f"failed: {chosen[0].workdir} (exit status 1)" in capsys.readouterr().err

    started.clear()
    monkeypatch.setattr(Process, "wait", lambda self: 75)
    assert run_all(chosen) == 75  # told to stop
    assert len(started) == 1

    # Ended by JAX because another host has died.
    monkeypatch.setattr(Process, "wait", lambda self: -signal.SIGABRT)
    assert run_all(chosen[:1]) == 134
    assert f"failed: {chosen[0].workdir} (exit status 134)" in capsys.readouterr().err

    # Told to stop while a run is starting, which may then end in any way.
    for told, expected in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        started.clear()
        answers = [told, -15]

        def wait(self, answers=answers):
            answer = answers.pop(0)
            if answer == signal.SIGINT:
                raise KeyboardInterrupt
            if answer == signal.SIGTERM:
                signal.raise_signal(answer)
                return 1
            return answer

        monkeypatch.setattr(Process, "wait", wait)
        assert run_all(chosen) == expected
        assert started[1:] == (["terminated"] if told == signal.SIGTERM else [])


def test_sigterm_reaches_the_run_whose_status_is_the_commands(tmp_path, monkeypatch, cells_of):
    """The processes are real; other tests show what a run itself does on SIGTERM."""
    started = tmp_path / "started"
    program = (
        "import pathlib, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        f"pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    )
    monkeypatch.setattr(PaperRun, "command", ["python", "-c", program])
    monkeypatch.setattr(progress, "is_finished", lambda run: False)

    def preempt():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert run_all(list(cells.named_runs(cells_of(5)))[:2]) == 75
    thread.join()
