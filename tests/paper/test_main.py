import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import finished_run
import pytest
from etils.epath import Path

from crest_jax.config import FORMAT, to_plain
from crest_jax.paper import __main__ as paper
from crest_jax.paper import table as paper_table
from crest_jax.paper.figures import FIGURES
from crest_jax.paper.published import TABLES, Figure
from crest_jax.paper.table import Comparison

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line, and gives its exit status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["paper", *arguments])
        try:
            paper.main()
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


def cells(number, tmp_path, scale="full", folds=2):
    return paper.cells(TABLES[number], scale=scale, folds=folds, runs=tmp_path, fields={})


def test_commands_name_experiments_that_are_there_wherever_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (config,) = [word for word in cells(1, tmp_path)[0].jobs[0].command if "--config=" in word]
    assert config.startswith("--config=experiments/cifar10_lt.py:")
    monkeypatch.chdir(tmp_path)
    job = cells(1, tmp_path)[0].jobs[0]
    (config,) = [word for word in job.command if "--config=" in word]
    assert config.startswith(f"--config={REPOSITORY}/experiments/cifar10_lt.py:")
    assert paper.config_of(job).data.name == "cifar10"


def finish(job, *generations, **changes):
    """Leaves what a run with these generations' results leaves."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    config = to_plain(paper.config_of(job)) | changes
    (job.workdir / "config.json").write_text(json.dumps({"format": FORMAT, "config": config}))
    results = finished_run.results([finished_run.generation(10, **each) for each in generations])
    (job.workdir / "results.json").write_text(json.dumps(results))


def figure_of(job, cell):
    """Ours, as `collect` has it."""
    one = paper.done(job)
    return None if one is None else paper.figure_of(one, cell.row, cell.column)


# What to run


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


def test_tables_share_the_runs_that_they_have_in_common(tmp_path):
    first, second, fifth = (paper.jobs(cells(number, tmp_path)).keys() for number in (1, 2, 5))
    # CReST and CReST+ on CIFAR10-LT with beta = 10 %: three imbalance ratios, two folds.
    assert len(first & second) == 12
    assert len(first & fifth) == 4
    assert fifth <= second


@pytest.mark.parametrize("scale", paper.SCALES)
@pytest.mark.parametrize("number", TABLES)
def test_every_listed_config_is_valid(number, scale, tmp_path):
    """As the command line would build it, in one process."""
    from ml_collections import ConfigDict

    from crest_jax.config import validate

    experiments: dict[str, dict] = {}
    for job in paper.jobs(cells(number, tmp_path, scale, folds=1)):
        if job.experiment not in experiments:
            namespace: dict = {}
            exec((REPOSITORY / "experiments" / f"{job.experiment}.py").read_text(), namespace)
            experiments[job.experiment] = namespace
        text = ",".join(f"{key}={value}" for key, value in job.arguments)
        config: ConfigDict = experiments[job.experiment]["get_config"](text)
        for field, value in job.fields:
            *path, last = field.split(".")
            holder = config
            for key in path:
                holder = holder[key]
            holder[last] = type(holder[last])(value)
        validate(config)


def test_smaller_scales_have_equal_budgets_too(tmp_path):
    for scale in ("small", "smoke"):
        steps = set()
        for job in paper.jobs(cells(2, tmp_path, scale, folds=1)):
            fields = dict(job.fields)
            steps.add(int(fields["steps"]) * int(fields.get("generations", 1)))
        assert len(steps) == 1


def test_in_table_4_a_method_of_one_generation_trains_as_long_as_one(tmp_path):
    for scale in ("full", "small", "smoke"):
        steps = {
            paper.config_of(job).steps for job in paper.jobs(cells(4, tmp_path, scale, folds=1))
        }
        assert len(steps) == 1


def test_figures_share_runs_with_tables_but_for_what_they_vary(tmp_path):
    where = {"scale": "full", "folds": 1, "runs": tmp_path, "fields": {}}
    table = set(paper.jobs(cells(5, tmp_path)))
    drawn_from = {name: job for name, (job,) in paper.curves(FIGURES[4], **where).items()}
    assert [name for name, job in drawn_from.items() if job in table] == ["α=1/3"]
    assert "--config.crest.alpha=0.25" in drawn_from["α=1/4"].command
    assert len({job.workdir for job in drawn_from.values()}) == 5
    assert {job for (job,) in paper.curves(FIGURES[1], **where).values()} <= table


def test_mnist_stands_for_cifar10_alone(command, tmp_path):
    """In Table 1, CIFAR-10 is half of the columns, of three runs over five folds each."""
    found = cells(1, tmp_path, "mnist")
    assert {cell.column.experiment for cell in found} == {"cifar10_lt"}
    config = paper.config_of(found[-1].jobs[1])
    assert (config.data.name, config.generations, config.steps) == ("mnist", 3, 2000)
    labeled = {paper.config_of(cell.jobs[0]).long_tail.beta for cell in found}
    assert labeled == {0.02, 0.06}  # a fifth of 10 and 30 %
    (one, *_) = paper.curves(FIGURES[5], scale="mnist", folds=2, runs=tmp_path, fields={}).values()
    constant = [paper.config_of(job) for job in one]
    assert [(each.fold, each.generations, each.steps) for each in constant] == [
        (0, 3, 2000),
        (1, 3, 2000),
    ]
    status, printed = command("--figure=6", "--scale=mnist", "--list")
    assert status == 64
    assert "--scale=mnist is of cifar10_lt alone" in printed.err


# What came out


def test_a_figure_is_that_of_its_generation(tmp_path):
    plain, crest, plus = (cells(1, tmp_path, "small", folds=1)[at] for at in (0, 10, 20))
    (job,) = crest.jobs
    assert plain.jobs == crest.jobs != plus.jobs
    assert figure_of(job, crest) is None
    finish(job, {"accuracy": 70.0}, {"accuracy": 75.0})
    assert figure_of(job, plain) == 70.0
    assert figure_of(job, crest) is None  # the last of 3 is not done
    assert not paper.done(job).is_finished
    finish(job, {"accuracy": 70.0}, {"accuracy": 75.0}, {"accuracy": 77.0})
    assert figure_of(job, crest) == 77.0
    assert paper.done(job).is_finished


def test_a_generation_beyond_the_last_is_the_last(tmp_path):
    accuracies = [{"accuracy": float(number)} for number in range(1, 16)]
    for scale, generations, expected in (("full", 15, 6.0), ("small", 3, 3.0), ("full", 5, None)):
        (cell,) = [
            cell for cell in cells(2, tmp_path, scale, folds=1)
            if cell.row.name == "FixMatch w/ CReST" and "γ=100" in cell.column.name
        ]  # fmt: skip
        finish(cell.jobs[0], *accuracies[:generations])
        assert figure_of(cell.jobs[0], cell) == expected


def test_a_run_with_another_config_is_no_run_of_the_papers(command, tmp_path):
    """One with fewer steps, say, whose folder is the same."""
    (cell,) = cells(5, tmp_path, folds=1)[:1]
    finish(cell.jobs[0], *[{"per_class_recall": [50.0] * 10}] * 15, steps=100)
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
    finish(cell.jobs[0], *[{"per_class_recall": [50.0] * 10}] * 15)
    _, printed = command(*arguments, "--config.data.data_dir=/data")
    assert "(1 of 1)" in printed.out
    assert "NOT THE PAPER" not in printed.out


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"generations": []}'])
def test_a_damaged_run_is_named_and_the_others_are_collected(command, tmp_path, content):
    found = cells(5, tmp_path, folds=1)
    damaged, whole = paper.jobs(found)
    for job in (damaged, whole):
        generation = {"per_class_recall": [50.0] * 10, "pseudo_labels": {"recall": [40.0] * 10}}
        finish(job, *[generation] * paper.config_of(job).generations)
    (damaged.workdir / "results.json").write_text(content)
    status, printed = command("--table=5", "--collect", f"--runs={tmp_path}")
    assert status == 0
    assert printed.out.count("(1 of 1)") == 22  # two rows of CReST+
    assert printed.err.count(f"left out: {damaged.workdir}") == 1


def test_figures_by_class_and_their_mean(tmp_path):
    found = cells(5, tmp_path, folds=1)
    recall = [float(10 * label) for label in range(9)]
    result = {"per_class_recall": [*recall, 5.0], "pseudo_labels": {"recall": [*recall, None]}}
    finish(found[0].jobs[0], *[result] * 15)
    by_name = {(cell.row.name, cell.column.name): cell for cell in found}

    def ours(row, column):
        cell = by_name[row, column]
        return figure_of(cell.jobs[0], cell)

    assert ours("FixMatch, test", "3") == 20.0
    assert ours("FixMatch, test", "Avg.") == pytest.approx((360 + 5) / 10)
    # A class without unlabeled examples has no recall.
    assert ours("FixMatch, unlabeled", "10") is None
    assert ours("FixMatch, unlabeled", "Avg.") == 40.0


COMPARED = [
    Comparison("FixMatch", "γ=50", Figure(80.0, 0.5), (78.0, 80.0), 2),
    Comparison("FixMatch", "γ=100", Figure(70.0, 1.25), (71.26,), 2),
    Comparison("CReST", "γ=50", Figure(84.0), (), 2),
]


def test_markdown_has_ours_the_papers_and_the_difference():
    lines = paper_table.markdown("Table 9. Things", COMPARED, note="Small").splitlines()
    assert lines[0] == "**Table 9. Things**"
    assert lines[2] == "**Small**"
    assert lines[-4:] == [
        "| | γ=50 | γ=100 |",
        "|---|---|---|",
        "| FixMatch | 79.0 ± 1.00 (2 of 2) / 80.0 ± 0.50 / -1.0 "
        "| 71.3 (1 of 2) / 70.0 ± 1.25 / +1.3 |",
        "| CReST | - (0 of 2) / 84.0 / - |  |",
    ]


def test_comma_separated_values_have_a_line_per_cell():
    text = paper_table.comma_separated("Table 9", COMPARED, note="Small")
    first, second, third = csv.DictReader(text.splitlines())
    assert first == {
        "table": "Table 9", "note": "Small", "row": "FixMatch", "column": "γ=50", "mean": "79.00",
        "deviation": "1.00", "folds": "2", "missing_folds": "0", "paper_mean": "80.00",
        "paper_deviation": "0.50", "difference": "-1.00",
    }  # fmt: skip
    assert (second["deviation"], second["missing_folds"]) == ("", "1")
    assert (third["mean"], third["paper_deviation"], third["difference"]) == ("", "", "")


def test_a_figure_is_drawn_from_the_runs_there_are(command, tmp_path):
    output = tmp_path / "figure.svg"
    arguments = ["--figure=4", "--collect", "--scale=smoke", f"--runs={tmp_path}"]
    status, printed = command(*arguments, f"--output={output}")
    assert status == 64
    assert "--run them first" in printed.err
    (job, other) = paper.curves(
        FIGURES[4], scale="smoke", folds=2, runs=tmp_path, fields={}
    )["α=0"]  # fmt: skip
    generation = {"accuracy": 70.0, "labeled_per_class": [9, 3, *[1] * 8]}
    finish(job, generation)
    status, printed = command(*arguments, f"--output={output}")
    assert status == 64  # one of two generations
    finish(job, generation, generation)
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
        ([f"--output={tmp_path}/none/figure.svg"], 1, "in no folder that exists"),
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


def test_a_failing_run_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    started = []

    class Process:
        def __init__(self, command):
            started.append(command[4])

        def wait(self):
            return 1 if len(started) == 1 else 0

        def terminate(self):
            started.append("terminated")

    monkeypatch.setattr(subprocess, "Popen", Process)
    chosen = list(paper.jobs(cells(5, tmp_path, folds=2)))[:3]
    finish(chosen[1], *[{"accuracy": 1.0}] * paper.config_of(chosen[1]).generations)
    assert paper.run(chosen) == 1
    assert len(started) == 2  # the finished one is skipped
    assert f"failed: {chosen[0].workdir} (exit status 1)" in capsys.readouterr().err

    started.clear()
    monkeypatch.setattr(Process, "wait", lambda self: 75)
    assert paper.run(chosen) == 75  # told to stop
    assert len(started) == 1

    # Ended by JAX because another host has died.
    monkeypatch.setattr(Process, "wait", lambda self: -signal.SIGABRT)
    assert paper.run(chosen[:1]) == 134
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
        assert paper.run(chosen) == expected
        assert started[1:] == (["terminated"] if told == signal.SIGTERM else [])


def test_sigterm_reaches_the_run_whose_status_is_the_commands(tmp_path, monkeypatch):
    """With real processes; what a run itself does on SIGTERM is tested elsewhere."""
    started = tmp_path / "started"
    program = (
        "import pathlib, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        f"pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    )
    monkeypatch.setattr(paper.Job, "command", ["python", "-c", program])
    monkeypatch.setattr(paper, "is_finished", lambda job: False)

    def preempt():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    assert paper.run(list(paper.jobs(cells(5, tmp_path)))[:2]) == 75
    thread.join()


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


def test_what_is_unfinished_is_listed_under_the_same_numbers(command, tmp_path):
    first, second, third = list(paper.jobs(cells(1, tmp_path, folds=5)))[:3]
    for job, steps in ((first, 65536), (second, 100), (third, 65536)):  # the second is another's
        finish(job, *[{"accuracy": 1.0}] * paper.config_of(job).generations, steps=steps)
    (third.workdir / "results.json").write_text("no JSON")
    arguments = ["--table=1", "--list", f"--runs={tmp_path}"]
    _, everything = command(*arguments)
    status, printed = command(*arguments, "--unfinished")
    assert status == 0
    assert printed.out.splitlines() == everything.out.splitlines()[1:]


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
