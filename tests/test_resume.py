"""Runs that are stopped at any moment and continued end as if nothing had happened."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from crest_jax.data import pseudo_labels

UNTIMED = ("seconds", "images_per_second")

# A run is killed when something that matches the pattern appears, in this order.
KILLS = (
    "splits/unlabeled*",  # while splits are being written
    "generation_00/checkpoints/4*",  # while the first checkpoint is being saved
    "generation_00/checkpoints/8",  # after a checkpoint, between two evaluations
    "generation_00/pseudo_labels*",  # while or after the selection is written, without a result
    "generation_01/labeled*",  # while the labeled set is being rewritten
    "generation_01/metrics.jsonl",  # evaluated after the last checkpoint
)


def figures(workdir):
    """results.json without times and environment, and the selections."""

    def untimed(value):
        if isinstance(value, dict):
            return {k: untimed(v) for k, v in value.items() if k not in (*UNTIMED, "environment")}
        return [untimed(v) for v in value] if isinstance(value, list) else value

    selections = []
    for generation in sorted(workdir.glob("generation_*")):
        entries = pseudo_labels.read(generation / "pseudo_labels")
        selections.append(
            (entries.ids.tolist(), entries.labels.tolist(), entries.confidence.tolist(),
             entries.selected.tolist())
        )  # fmt: skip
    return untimed(json.loads((workdir / "results.json").read_text())), selections


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def untouched(command_line, tiny_flags, make_folder):
    workdir = make_folder("untouched") / "run"
    output = finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    return workdir, output


def test_the_main_job_writes_what_it_promises(untouched):
    workdir, output = untouched
    names = {path.relative_to(workdir).as_posix() for path in pathlib.Path(workdir).rglob("*")}
    assert {"config.json", "results.json", "splits/test/manifest.json"} <= names
    for generation in ("generation_00", "generation_01"):
        assert {
            f"{generation}/{name}"
            for name in ("labeled/manifest.json", "checkpoints/12", "metrics.jsonl",
                         "pseudo_labels", "result.json")
        } <= names  # fmt: skip
    assert not [name for name in names if "partial" in name or "tmp" in name]
    results, selections = figures(workdir)
    assert [len(g["per_class_recall"]) for g in results["generations"]] == [10, 10]
    # The second generation trains on the original labeled set and what the first selected.
    first, second = results["generations"]
    assert [first["temperature"], second["temperature"]] == [1.0, 0.5]
    assert sum(selections[0][3]) == sum(first["pseudo_labels"]["selected"]) > 0
    assert second["labeled_per_class"] == [
        original + selected
        for original, selected in zip(
            first["labeled_per_class"], first["pseudo_labels"]["selected"], strict=True
        )
    ]
    assert "generation 2: accuracy" in output
    (accuracies,) = (line for line in output.splitlines() if line.startswith("accuracy "))
    assert accuracies.split() == ["accuracy", *(f"{g['accuracy']:.1f}" for g in (first, second))]


def kill_when(process: subprocess.Popen, workdir, pattern: str) -> None:
    """Sends SIGKILL as soon as `pattern` matches; fails if the run ends before it does."""
    deadline = time.monotonic() + 240
    while not any(workdir.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern}: {process.stderr.read()}"
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.002)
    process.kill()
    process.communicate()


def test_killed_runs_continue_to_the_same_figures(command_line, tiny_flags, untouched, tmp_path):
    workdir = tmp_path / "run"
    for pattern in KILLS:
        kill_when(command_line(*tiny_flags, f"--workdir={workdir}"), workdir, pattern)
    finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    assert figures(workdir) == figures(untouched[0])
    metrics = (workdir / "generation_01" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [6, 12]


def test_sigterm_saves_and_the_same_command_continues(
    command_line, tiny_flags, untouched, tmp_path
):
    workdir = tmp_path / "run"
    process = command_line(*tiny_flags, f"--workdir={workdir}")
    while not (workdir / "generation_00" / "checkpoints" / "4").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL
    assert "Traceback" not in errors
    assert "run the same command again to continue" in errors
    step = re.search(r"generation 1 of 2 is saved at step (\d+) of 12", errors).group(1)
    assert (workdir / "generation_00" / "checkpoints" / step).is_dir()
    finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    assert figures(workdir) == figures(untouched[0])


def test_a_finished_run_has_nothing_left_to_do(command_line, tiny_flags, untouched):
    workdir, output = untouched
    before = {path: path.read_bytes() for path in pathlib.Path(workdir).rglob("*.json*")}
    again = finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    assert again == output
    assert before == {path: path.read_bytes() for path in pathlib.Path(workdir).rglob("*.json*")}


def test_a_changed_config_is_refused(command_line, tiny_flags, untouched):
    workdir, _ = untouched
    results = (workdir / "results.json").read_bytes()
    process = command_line(*tiny_flags, f"--workdir={workdir}", "--config.crest.alpha=0.5")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "crest.alpha: 0.3333333333333333 -> 0.5" in errors
    assert "Traceback" not in errors
    assert (workdir / "results.json").read_bytes() == results


def test_lost_pseudo_labels_are_scored_anew(command_line, tiny_flags, untouched, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(untouched[0], workdir)
    shutil.rmtree(workdir / "generation_00" / "pseudo_labels")
    finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    assert figures(workdir) == figures(untouched[0])
