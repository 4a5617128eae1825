"""The main job as a user starts it, its files, and the effect of the same command afterwards."""

import os
import pathlib
import subprocess
import sys

from conftest import REPOSITORY
from whole_run import figures, finish


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
    *_, verdict = (line for line in output.splitlines() if line.startswith("Self-training "))
    assert f"accuracy was {first['accuracy']:.1f} % after generation 1" in verdict
    assert output.splitlines()[-2:] == [
        f"results: {workdir / 'results.json'}", f"page: {workdir / 'report.html'}"
    ]  # fmt: skip
    page = (workdir / "report.html").read_text()
    assert "Pseudo-labels around the cut" in page
    assert "of 500 test images went from wrong to right" in page


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


# Set for other work, by users or by the images that they start from.
OTHERS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "PYTHONIOENCODING": "ascii",
}


def test_neither_the_environment_nor_a_closed_terminal_changes_a_run(
    tiny_flags, untouched, tmp_path
):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "crest_jax.main", *tiny_flags, f"--workdir={workdir}"]
    command.append("--nopictures")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        cwd=REPOSITORY,
        env=environment | OTHERS,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=240) == 0
    assert figures(workdir) == figures(untouched[0])
    assert "test images" not in (workdir / "report.html").read_text()
