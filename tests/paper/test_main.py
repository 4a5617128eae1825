import shlex
import subprocess
import sys
from unittest.mock import Mock

import pytest
from etils.epath import Path

from crest_jax.paper import cells, curves
from crest_jax.paper.figures import FIGURES

REPOSITORY = Path(__file__).parent.parent.parent


def test_each_line_is_a_command_with_its_number(command):
    status, printed = command("--table=1", "--list", "--config.data.data_dir=/data")
    lines = printed.out.splitlines()
    # CReST, whose first generation is FixMatch, and CReST+: 10 settings, 5 folds each.
    assert (status, len(lines)) == (0, 100)
    for number, line in enumerate(lines, 1):
        assert f"# {number}: " in line
        words = shlex.split(line, comments=True)
        assert words[:3] == ["python", "-m", "crest_jax.main"]
        assert "--config.data.data_dir=/data" in words
    assert len({shlex.split(line, comments=True)[3] for line in lines}) == 100
    assert lines[4].endswith("# 5: FixMatch (CIFAR10-LT, β=10%, γ=50); "
                             "w/ CReST (CIFAR10-LT, β=10%, γ=50)")  # fmt: skip
    assert "cifar10_lt.py:method=fixmatch,rebalance=crest,gamma=50,beta=0.1,fold=4" in lines[4]


def test_what_is_unfinished_is_listed_under_the_same_numbers(command, tmp_path, cells_of, finish):
    first, second, third = list(cells.named_runs(cells_of(1, folds=5)))[:3]
    for run, steps in ((first, 65536), (second, 100), (third, 65536)):  # the second is another's
        finish(run, *[{"accuracy": 1.0}] * run.config().generations, steps=steps)
    (third.workdir / "results.json").write_text("no JSON")
    arguments = ["--table=1", "--list", f"--runs={tmp_path}"]
    _, everything = command(*arguments)
    status, printed = command(*arguments, "--unfinished")
    assert status == 0
    assert printed.out.splitlines() == everything.out.splitlines()[1:]


def test_flags_after_two_dashes_are_for_the_run(command, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda words: started.append(words) or Mock(wait=lambda: 0)
    )
    arguments = ["--table=4", "--run", "--cell=3", f"--runs={tmp_path}", "--config.seed=1"]
    status, _ = command(*arguments, "--", "--find_hosts", "--join_timeout=900")
    (words,) = started
    assert status == 0
    assert words[-3:] == ["--config.seed=1", "--find_hosts", "--join_timeout=900"]


def test_a_run_with_another_config_is_no_run_of_the_papers(command, tmp_path, cells_of, finish):
    """A run with fewer steps, for example, has the same folder."""
    (cell,) = cells_of(5, folds=1)[:1]
    finish(cell.runs[0], *[{"per_class_recall": [50.0] * 10}] * 15, steps=100)
    arguments = ["--table=5", "--collect", f"--runs={tmp_path}"]
    status, printed = command(*arguments)
    assert status == 0
    assert "(1 of 1)" not in printed.out
    assert "has another config: steps: 100 -> 65536" in printed.err
    # Asked for, it is collected, and said to be what it is.
    _, printed = command(*arguments, "--config.steps=100")
    assert "(1 of 1)" in printed.out
    assert "**NOT THE PAPER'S SETTING: steps=100**" in printed.out
    # Where data is from makes no other run.
    finish(cell.runs[0], *[{"per_class_recall": [50.0] * 10}] * 15)
    _, printed = command(*arguments, "--config.data.data_dir=/data")
    assert "(1 of 1)" in printed.out
    assert "NOT THE PAPER" not in printed.out


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"generations": []}'])
def test_a_damaged_run_is_named_and_the_others_are_collected(
    command, tmp_path, content, cells_of, finish
):
    found = cells_of(5, folds=1)
    damaged, whole = cells.named_runs(found)
    for run in (damaged, whole):
        generation = {"per_class_recall": [50.0] * 10, "pseudo_labels": {"recall": [40.0] * 10}}
        finish(run, *[generation] * run.config().generations)
    (damaged.workdir / "results.json").write_text(content)
    status, printed = command("--table=5", "--collect", f"--runs={tmp_path}")
    assert status == 0
    assert printed.out.count("(1 of 1)") == 22  # two rows of CReST+
    assert printed.err.count(f"left out: {damaged.workdir}") == 1


def test_a_figure_is_drawn_from_the_runs_there_are(command, tmp_path, finish, settings):
    output = tmp_path / "figure.svg"
    arguments = ["--figure=4", "--collect", "--scale=smoke", f"--runs={tmp_path}"]
    status, printed = command(*arguments, f"--output={output}")
    assert status == 64
    assert "--run them first" in printed.err
    (run, other) = curves.of_figure(FIGURES[4], settings("smoke"))["α=0"]
    generation = {"accuracy": 70.0, "labeled_per_class": [9, 3, *[1] * 8]}
    finish(run, generation)
    status, printed = command(*arguments, f"--output={output}")
    assert status == 64  # one of two generations
    finish(run, generation, generation)
    status, printed = command(*arguments, f"--output={output}")
    assert (status, printed.out) == (0, f"{output}: from 1 of 5 runs\n")
    assert "NOT THE PAPER" in output.read_text()
    assert "Not finished: α=1, α=1/2, α=1/3, α=1/4" in output.read_text()
    assert "CIFAR10-LT" not in output.read_text()  # nothing of it has run
    _, printed = command(*arguments, "--folds=2", f"--output={output}")
    assert printed.out == f"{output}: from 1 of 10 runs\n"
    assert "α=0 (1 of 2 folds are)" in output.read_text()
    finish(other, generation, {**generation, "accuracy": 74.0})
    _, printed = command(*arguments, "--folds=2", f"--output={output}")
    assert printed.out == f"{output}: from 2 of 10 runs\n"
    assert "Mean and standard deviation of 2 folds" in output.read_text()
    for mistake, expected, message in (
        ([], 64, "--output=FILE"),
        (["--output=figure.txt"], 64, "must end in .svg or .pdf or .png"),
        ([f"--output={tmp_path}/none/figure.svg"], 1, "in a folder that does not exist"),
    ):
        status, printed = command(*arguments, *mistake)
        assert status == expected
        assert message in printed.err


@pytest.mark.parametrize("scale", ["small", "smoke"])
def test_what_is_not_full_says_so(command, tmp_path, scale):
    for ending in ("md", "csv"):
        output = tmp_path / f"table.{ending}"
        arguments = ["--table=3", "--collect", f"--scale={scale}", f"--runs={tmp_path}"]
        status, printed = command(*arguments, f"--output={output}")
        assert status == 0
        assert "NOT THE PAPER'S SETTING" in printed.out
        assert "NOT THE PAPER'S SETTING" in output.read_text()
    _, printed = command("--table=3", "--collect", f"--runs={tmp_path}")
    assert "NOT THE PAPER'S" not in printed.out
    assert "- (0 of 5) / 65.2 ± 0.05 / -" in printed.out
    _, printed = command("--table=3", "--list", f"--scale={scale}")
    assert f"({scale} scale)" in printed.out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "--cell=999"], "--cell=999 must be between 1 and 135"),
        (["--run", "--cell=0"], "--cell=0 must be between 1 and"),
        (["--list", "--folds=0"], "--folds=0 must be at least 1"),
        (["--list", "--steps=3"], "'--steps=3' is neither an option"),
        (["--collect", "--output=table.txt"], "--output=table.txt must end in .md or .csv"),
        (["--run", "--", "--config.steps=3"], "--config.steps=3 cannot follow --"),
        (["--list", "--config.stepz=3"], "--config.stepz=3: there is no such field"),
        (["--run", "--config.crest.alfa=3"], "--config.crest.alfa=3: there is no such field"),
        (["--run", "--", "--workdir", "here"], "--workdir cannot follow --"),
    ],
)
def test_a_mistake_is_one_readable_error(command, arguments, message):
    status, printed = command("--table=3", *arguments)
    assert status == 64
    assert f"error: {message}" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=3", "--list", "--cell=1"], "--cell goes with --run"),
        (["--table=3", "--run", "--output=a.md"], "--output goes with --collect"),
        (["--table=3", "--list", "--", "--find_hosts"], "-- and what follows it go with --run"),
        (["--table=3", "--run", "--unfinished"], "--unfinished goes with --list"),
    ],
)
def test_options_that_do_not_go_together_are_refused(command, arguments, message):
    status, printed = command(*arguments)
    assert status == 2
    assert message in printed.err


def test_a_table_in_miniature_from_the_command_to_its_cells(tmp_path):
    """Runs one cell's run as a user would, and collects it."""

    def start(*arguments):
        options = ["--table=5", "--scale=smoke", f"--runs={tmp_path}", *arguments]
        return subprocess.run(
            [sys.executable, "-m", "crest_jax.paper", *options],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip

    ran = start("--run", "--cell=1")
    assert ran.returncode == 0, ran.stderr
    collected = start("--collect").stdout
    line = next(row for row in collected.splitlines() if row.startswith("| FixMatch, test"))
    assert line.count("(1 of 1)") == 11
    assert "w/ CReST+, test | - (0 of 1) / 93.8 / -" in collected
    again = start("--run", "--cell=1")
    assert again.returncode == 0
    assert "generation" not in again.stdout
