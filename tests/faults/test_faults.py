"""Whatever happens to a run, the same command ends as if nothing had.

The short form is one run through everything. With FAULTS=long there are a hundred runs killed at
random moments besides, and others told to stop, or out of disk space, at each stage:

    make test-faults
"""

import os
import pathlib
import random
import re
import resource
import signal
import time

import pytest
from whole_run import figures, finish, wait_for

# What appears when a stage begins, and seconds within which it ends on a machine of two cores.
STAGES = {
    "splits": ("splits/*", 0.4),
    "fresh weights, compilation, steps": ("generation_00/labeled/manifest.json", 4.0),
    "steps, evaluation": ("generation_01/checkpoints/4", 0.3),
    "checkpoint": ("generation_00/checkpoints/*.orbax-checkpoint-tmp*", 0.1),
    "last checkpoint": ("generation_01/checkpoints/12.orbax-checkpoint-tmp*", 0.1),
    "scoring": ("generation_00/checkpoints/12", 0.5),
    "selection": ("generation_00/pseudo_labels", 0.02),
    "result": ("generation_00/result.json*", 0.02),
    "rewriting": ("generation_01/labeled", 0.1),
    "results": ("results.json*", 0.1),
    "results of all": ("generation_01/result.json", 0.1),
}


def stage_of(workdir) -> str:
    """Return the stage that a run was at, from its files."""
    generation = "generation_01" if (workdir / "generation_01").exists() else "generation_00"
    here = workdir / generation
    if len(list(workdir.glob("splits/*/manifest.json"))) < 4:
        return "splits"
    if not here.exists():
        return "start-up"
    if not (here / "labeled" / "manifest.json").exists():
        return "rewriting"
    if any(here.glob("checkpoints/*tmp*")):
        return "checkpoint"
    if not (here / "checkpoints" / "4").exists():
        return "fresh weights, compilation, first steps"
    if not (here / "checkpoints" / "12").exists():
        return "step or evaluation"
    if not (here / "pseudo_labels").exists():
        return "scoring"
    if not (here / "pseudo_labels" / "manifest.json").exists():
        return "selection"
    if not (here / "result.json").exists():
        return "result.json"
    return "results.json and report"


@pytest.fixture
def start(command_line, tiny_flags, tmp_path):
    """Starts the run of this test, or continues it."""
    return lambda: command_line(*tiny_flags, f"--workdir={tmp_path / 'run'}")


def stop(process) -> None:
    """Sends SIGTERM, after which there is half a minute for whatever has to be saved."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    if process.returncode != 0:  # it was not over
        assert process.returncode == os.EX_TEMPFAIL, errors
        assert "run the same command again to continue" in our_error(errors)


def fill_the_disk(process) -> None:
    """Let no file of this process grow from now on."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))


def our_error(text: str) -> str:
    """Return the line of our error; threads of other libraries may have printed lines around it."""
    assert "/crest_jax/generations.py" not in text, "no traceback of ours"
    (error,) = (line for line in text.splitlines() if line.startswith("error: "))
    return error


def assert_it_says_what_cannot_be_written(process, workdir) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert re.match(rf"error: .*{workdir}.* cannot be (written|saved) \(.+\)", our_error(errors))


def test_a_run_to_which_everything_happens_ends_as_one_to_which_nothing_did(
    start, untouched, tmp_path
):
    workdir = tmp_path / "run"

    def reach(pattern):
        process = start()
        wait_for(process, workdir, pattern)
        return process

    def kill_at(pattern):
        process = reach(pattern)
        process.kill()
        process.communicate()

    kill_at("splits/*/shard*")
    process = reach("generation_00/checkpoints/*.orbax-checkpoint-tmp*")
    fill_the_disk(process)
    assert_it_says_what_cannot_be_written(process, workdir)
    # A second process is refused, and what the first has locked is free when that is killed.
    process = start()
    while f"process {process.pid} on" not in (workdir / ".lock").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    second = start()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"error: workdir {workdir} is in use by process {process.pid} on " in errors
    process.kill()
    process.communicate()
    kill_at("generation_00/checkpoints/6*tmp*")  # while it is saved
    kill_at("generation_00/checkpoints/8")  # a step
    kill_at("generation_00/checkpoints/12")  # scoring
    # The clock has gone back a year since.
    future = time.time() + 365 * 86400
    for path in pathlib.Path(workdir).rglob("*"):
        os.utime(path, (future, future))
    kill_at("generation_00/result.json*")
    kill_at("generation_01/labeled")  # rewriting
    process = reach("generation_01/checkpoints/4")
    stop(process)
    finish(start())
    assert figures(workdir) == figures(untouched[0])
    metrics = (workdir / "generation_01" / "metrics.jsonl").read_text().splitlines()
    assert [re.search(r'"step": (\d+)', line).group(1) for line in metrics] == ["6", "12"]


def strike(start, workdir, stage, seed, blow) -> str:
    """Does something to a run at a random moment of a stage; returns what it was then at."""
    pattern, duration = STAGES[stage]
    process = start()
    wait_for(process, workdir, pattern)
    time.sleep(random.Random(seed).uniform(0, duration))
    blow(process)
    process.communicate()
    return stage_of(workdir)


@pytest.mark.long_form
@pytest.mark.parametrize("number", range(100))
def test_a_killed_run_ends_as_one_that_was_not(start, untouched, tmp_path, number, record):
    stage = list(STAGES)[number % len(STAGES)]
    seed = random.SystemRandom().getrandbits(32)
    at = strike(start, tmp_path / "run", stage, seed, lambda process: process.kill())
    record(f"killed at: {at}")
    finish(start())
    assert figures(tmp_path / "run") == figures(untouched[0]), (stage, seed)


@pytest.mark.long_form
@pytest.mark.parametrize("number", range(22))
def test_a_run_that_was_told_to_stop_ends_as_one_that_was_not(
    start, untouched, tmp_path, number, record
):
    stage = list(STAGES)[number % len(STAGES)]
    seed = random.SystemRandom().getrandbits(32)
    at = strike(start, tmp_path / "run", stage, seed, stop)
    record(f"told to stop at: {at}")
    finish(start())
    assert figures(tmp_path / "run") == figures(untouched[0]), (stage, seed)


@pytest.mark.long_form
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_without_disk_space_says_so_and_ends_as_one_with_it(
    start, untouched, tmp_path, stage, record
):
    workdir = tmp_path / "run"
    process = start()
    wait_for(process, workdir, STAGES[stage][0])
    fill_the_disk(process)
    try:
        assert_it_says_what_cannot_be_written(process, workdir)
        record(f"disk full at: {stage_of(workdir)}")
    except AssertionError:
        if process.returncode != 0:
            raise
        record("disk full at: the end, with nothing left to write")
    finish(start())
    assert figures(workdir) == figures(untouched[0])


@pytest.fixture
def record(request):
    """Notes something in a file that FAULTS_LOG names, to be counted: `sort | uniq -c`."""

    def note(line: str) -> None:
        if path := os.environ.get("FAULTS_LOG"):
            with open(path, "a") as file:  # noqa: PTH123
                file.write(line + "\n")

    return note
