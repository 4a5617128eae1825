"""The paper's tables and figures: what to run for each, and what came out.

python -m crest_jax.paper --table=N --list [--unfinished]
                                                         commands, one a line
python -m crest_jax.paper --table=N --run [--cell=I] [-- FLAGS]
                                                         runs them, or the I-th, here
python -m crest_jax.paper --table=N --collect [--output=FILE.md|FILE.csv]
                                                         ours beside the published, so far
python -m crest_jax.paper --figure=N --list | --run [--cell=I]
python -m crest_jax.paper --figure=N --collect --output=FILE.svg|FILE.pdf|FILE.png
Everywhere: [--scale=full|small|mnist|smoke] [--folds=K] [--runs=DIR] [--config.field=value ...]

A line of --list is a command for a shell, whichever batch system starts it. Cells that come from
the same run share it, tables too. Whatever was interrupted continues.

FLAGS after a bare `--` are for crest_jax.main, as they are: `-- --find_hosts`. On several hosts the
same command is started on each. They find the same runs finished, because all of them look before
any of them can train: a run begins when every host has joined it.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import command, experiments, files, results, workdir
from crest_jax.algorithms import ALGORITHMS
from crest_jax.errors import ConfigError, Preempted, WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.rebalancing import SELF_TRAINING, parts
from crest_jax.report import paper_table
from crest_jax.report.paper_figures import FIGURES, PaperFigure, drawn
from crest_jax.report.paper_table import Comparison
from crest_jax.report.published import TABLES, Column, Figure, Row, Table

# Exit statuses of a run that was told to stop, and can go on.
STOPPED, INTERRUPTED = Preempted.exit_status, command.INTERRUPTED
TABLE_FORMATS = {".md": paper_table.markdown, ".csv": paper_table.comma_separated}
FIGURE_FORMATS = (".svg", ".pdf", ".png")


class Scale(NamedTuple):
    """How much smaller than the paper's a run is."""

    note: str  # what every output says of it; nothing of the paper's own
    fields: Mapping[str, str]  # config fields
    steps: int  # of a generation; 0 leaves the experiment's
    generations: int  # of self-training; 0 likewise
    experiment: str | None = None  # in place of others
    stands_for: Collection[str] | None = None  # the experiments that it replaces; None for all
    gamma: float = 1  # by what imbalance ratios are divided
    beta: float = 1  # and labeled parts
    arguments: Mapping[str, Mapping[str, str]] = {}  # further ones of some experiments


SCALES = {
    "full": Scale("", {}, 0, 0),
    "small": Scale(
        "WRN-10-1, 3 generations of 4000 steps of 16 + 2 x 32 images (ImageNet127: 32 pixels)",
        {
            "model.depth": "10",
            "model.width": "1",
            "model.batch_norm_momentum": "0.99",
            "batch_size": "16",
            "unlabeled_ratio": "2",
            "eval_every": "400",
            "checkpoint_every": "1000",
            "ema_decay": "0.99",
            "optimizer.learning_rate": "0.1",
            "ramp_up_steps": "500",
        },
        4000,
        3,
        arguments={"imagenet127": {"resolution": "32"}},
    ),
    "mnist": Scale(
        "MNIST-LT, 14 x 14 pixels, a fifth of β, WRN-10-1, 3 generations of 2000 steps",
        {},
        0,
        3,
        "mnist_lt",
        stands_for=("cifar10_lt",),
        beta=5,
    ),
    "smoke": Scale(
        "handwritten digits with γ / 10, 2 generations of 20 steps",
        {
            "batch_size": "8",
            "unlabeled_ratio": "2",
            "eval_every": "4",
            "checkpoint_every": "20",
            "model.batch_norm_momentum": "0.8",
            "ema_decay": "0.8",
            "ramp_up_steps": "2",
        },
        20,
        2,
        "digits_lt",
        gamma=10,
    ),
}


# Where methods of one generation train as long as one of self-training's, and not as all of them.
ONE_GENERATION = ("imagenet127",)


class Job(NamedTuple):
    """A run that some cells of a table come from."""

    experiment: str
    arguments: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...]  # config fields
    workdir: Path

    @property
    def command(self) -> list[str]:
        """The command that runs it, and continues it."""
        arguments = ",".join(f"{key}={value}" for key, value in self.arguments)
        return [
            "python", "-m", "crest_jax.main",
            f"--config={experiments.folder() / self.experiment}.py:{arguments}",
            f"--workdir={self.workdir}",
            *(f"--config.{field}={value}" for field, value in self.fields),
        ]  # fmt: skip


class Cell(NamedTuple):
    """One figure of a table, and the runs that ours comes from, one for each fold."""

    row: Row
    column: Column
    published: Figure
    jobs: tuple[Job, ...]


def cells(
    table: Table, *, scale: str, folds: int, runs: Path, fields: Mapping[str, str]
) -> list[Cell]:
    """Every cell that has a published figure and is run at this scale, row by row.

    Args:
      table: of the paper.
      scale: a key of `SCALES`.
      folds: how many.
      runs: the folder of all runs.
      fields: config fields, as on the command line; they overrule the scale's.
    """
    return [
        Cell(
            row,
            column,
            published,
            tuple(
                job_of(
                    column.experiment,
                    # In one order, so that tables share what they have in common.
                    {**row.arguments, **column.arguments, "fold": str(fold)},
                    scale=scale,
                    runs=runs,
                    fields=fields,
                )
                for fold in range(folds)
            ),
        )
        for row in table.rows
        for column, published in zip(table.columns, row.figures, strict=True)
        if published is not None and _stands_for(scale, column.experiment)
    ]


def _stands_for(scale: str, experiment: str) -> bool:
    """Whether an experiment of the paper is run at this scale."""
    replaced = SCALES[scale].stands_for
    return replaced is None or experiment in replaced


def jobs(found: Sequence[Cell]) -> dict[Job, list[str]]:
    """Every run once, with the names of the cells that come from it."""
    columns: dict[Job, dict[str, list[str]]] = {}
    for cell in found:
        for job in cell.jobs:
            columns.setdefault(job, {}).setdefault(cell.row.name, []).append(cell.column.name)
    return {
        job: [f"{row} ({'; '.join(names)})" for row, names in of_row.items()]
        for job, of_row in columns.items()
    }


def job_of(
    experiment: str,
    arguments: Mapping[str, str],
    *,
    scale: str,
    runs: Path,
    fields: Mapping[str, str],
    own: Mapping[str, str] = {},
) -> Job:
    """The run of an experiment at a scale.

    Args:
      experiment: its file's name.
      arguments: of the experiment.
      scale: a key of `SCALES`.
      runs: the folder of all runs; those of a scale share a folder in it.
      fields: config fields that overrule the scale's.
      own: config fields that make it another run than that of its arguments, as arguments do.
    """
    at = SCALES[scale]
    arguments = {**arguments, **at.arguments.get(experiment, {})}
    for name, smaller in (("gamma", at.gamma), ("beta", at.beta)):
        if at.experiment and name in arguments and smaller != 1:
            arguments = {**arguments, name: f"{float(arguments[name]) / smaller:g}"}
    as_all = experiment not in ONE_GENERATION
    # After what runs, and not after what it stands for.
    experiment = at.experiment or experiment
    name = "-".join(
        [experiment, *(f"{key}={value}" for key, value in {**arguments, **own}.items())]
    )
    scaled = {**own, **at.fields}
    algorithm = ALGORITHMS[arguments["method"]]
    if not algorithm.unlabeled:
        scaled.pop("unlabeled_ratio", None)
    if "ramp_up_steps" not in algorithm.hyper_parameters:
        scaled.pop("ramp_up_steps", None)
    self_trains = bool(set(parts(arguments["rebalance"])) & set(SELF_TRAINING))
    if at.steps:
        # As many in all, whether in one generation or in several.
        scaled["steps"] = str(at.steps * (at.generations if as_all and not self_trains else 1))
    if at.generations and self_trains:
        scaled["generations"] = str(at.generations)
    return Job(
        experiment,
        tuple(arguments.items()),
        tuple({**scaled, **fields}.items()),
        runs / scale / name,
    )


def config_of(job: Job) -> ConfigDict:
    """The config that a run's command makes.

    Raises:
      ConfigError: the experiment's file is not there, or a field is not one of it.
    """
    words = [word for word in job.command[2:] if not word.startswith("--workdir=")]
    try:
        return experiments.read(words)
    except ConfigError as error:
        raise ConfigError(f"{error} (in: {shlex.join(job.command)})") from error


class Done(NamedTuple):
    """What a run has come to."""

    results: Mapping[str, Any]  # results.json
    planned: int  # generations

    @property
    def generations(self) -> Sequence[Mapping[str, Any]]:
        """Results of those that are finished."""
        return self.results["generations"]

    @property
    def is_finished(self) -> bool:
        """Whether all of them are."""
        return len(self.generations) == self.planned


def done(job: Job) -> Done | None:
    """Reads what a run has come to; None before its first generation is finished.

    Raises:
      WorkdirError: its files are damaged, or it has another config than the job.
      ConfigError: as `config_of`.
    """
    if not RunFolder(job.workdir).results.exists():
        return None
    config = config_of(job)
    theirs = workdir.read_config(job.workdir)
    changed = workdir.differences(theirs, config)
    if changed:
        raise WorkdirError(f"{job.workdir} has another config: {'; '.join(changed)}")
    return Done(results.read(job.workdir), config.generations)


def found_of(jobs: Iterable[Job]) -> dict[Job, Done]:
    """Reads what there is of these runs; says of those that are not usable why."""
    found = {}
    for job in jobs:
        try:
            one = done(job)
        except WorkdirError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if one is not None:
            found[job] = one
    return found


def figure_of(one: Done, row: Row, column: Column) -> int | float | None:
    """Ours, from one run; None where it has not come that far.

    A generation beyond the run's last, at a smaller scale than the paper's, is its last.

    Raises:
      WorkdirError: results.json lacks the figure.
    """
    wanted = min(column.generation or row.generation or one.planned, one.planned)
    if len(one.generations) < wanted:
        return None
    value: Any = one.generations[wanted - 1]
    try:
        for key in row.reported.split("."):
            value = value[key]
        if not isinstance(value, list):
            return value
        if column.label is not None:
            return value[column.label]
    except (KeyError, IndexError, TypeError) as error:
        raise WorkdirError(f"its results.json lacks {row.reported}") from error
    known = [of_class for of_class in value if of_class is not None]
    return float(np.mean(known)) if known else None


def is_finished(job: Job) -> bool:
    """Whether nothing is left to run. Damage is not looked into: the run will report or mend it.

    Raises:
      ConfigError: as `config_of`.
    """
    try:
        one = done(job)
    except WorkdirError:
        return False
    return one is not None and one.is_finished


def run(chosen: Sequence[Job], flags: Sequence[str] = ()) -> int:
    """Runs, or continues, one after the other what is not finished.

    A run that fails does not keep the others from running; being told to stop does, once the run
    that is going on has saved itself.

    Args:
      chosen: what to run.
      flags: further ones for the command of each.

    Returns:
      The exit status: 0, that of a run that was stopped, or that of the first that has failed; as
      in a shell, 128 and the signal where one has died by it.
    """
    failed = {}
    process: subprocess.Popen | None = None
    stopped = 0

    def stop(signum, frame) -> None:
        nonlocal stopped
        stopped = STOPPED
        if process is not None:
            process.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        for number, job in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {job.workdir}", flush=True)
            if is_finished(job):
                continue
            process = subprocess.Popen([sys.executable, *job.command[1:], *flags])
            if stopped:  # just before there was a process to tell
                process.terminate()
            while True:
                try:
                    status = process.wait()
                    break
                except KeyboardInterrupt:  # which the run gets too, and answers
                    stopped = INTERRUPTED
            if stopped or status in (STOPPED, INTERRUPTED):
                return stopped or status
            if status:
                failed[job.workdir] = status if status > 0 else 128 - status
    finally:
        signal.signal(signal.SIGTERM, previous)
    for folder, status in failed.items():
        print(f"error: failed: {folder} (exit status {status})", file=sys.stderr)
    return next(iter(failed.values()), 0)


def collect(found: Sequence[Cell]) -> list[Comparison]:
    """Sets ours beside the published figure in every cell."""
    compared = []
    there = found_of(jobs(found))
    for cell in found:
        ours = []
        for job in cell.jobs:
            if job not in there:
                continue
            try:
                ours.append(figure_of(there[job], cell.row, cell.column))
            except WorkdirError as error:
                print(f"left out: {job.workdir}: {error}", file=sys.stderr)
                del there[job]
        compared.append(
            Comparison(
                cell.row.name,
                cell.column.name,
                cell.published,
                tuple(value for value in ours if value is not None),
                len(cell.jobs),
            )
        )
    return compared


@command.entry
def main() -> None:
    """Lists, runs or collects."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=int, choices=TABLES)
    what.add_argument("--figure", type=int, choices=FIGURES)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="the command of each run, numbered")
    action.add_argument("--run", action="store_true", help="run what is not finished")
    action.add_argument(
        "--collect", action="store_true", help="the table or figure, from finished runs"
    )
    parser.add_argument("--cell", type=int, help="with --run: line I of --list alone")
    parser.add_argument(
        "--unfinished", action="store_true", help="with --list: only what is left to run"
    )
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--folds", type=int, help="of a table, instead of the paper's")
    parser.add_argument("--runs", type=files.given, default=Path("runs/paper"), help="of all runs")
    parser.add_argument("--output", type=files.given, help="with --collect: the file to write")
    words, dashes, for_runs = _split(sys.argv[1:])
    arguments, rest = parser.parse_known_args(words)
    if arguments.cell is not None and not arguments.run:
        parser.error("--cell goes with --run")
    if dashes and not arguments.run:
        parser.error("-- and what follows it go with --run")
    if arguments.unfinished and not arguments.list:
        parser.error("--unfinished goes with --list")
    if arguments.output and not arguments.collect:
        parser.error("--output goes with --collect")
    if arguments.output:
        _check_output(arguments.output, TABLE_FORMATS if arguments.table else FIGURE_FORMATS)
    where = {"scale": arguments.scale, "runs": arguments.runs, "fields": _fields(rest)}
    # The paper's figures are of one run a curve.
    published = TABLES[arguments.table].folds if arguments.table else 1
    folds = published if arguments.folds is None else arguments.folds
    if folds < 1:
        raise ConfigError(f"--folds={folds} must be at least 1")
    if arguments.table:
        table = TABLES[arguments.table]
        found = cells(table, folds=folds, **where)
        named = jobs(found)
    else:
        drawn_from = curves(FIGURES[arguments.figure], folds=folds, **where)
        named = {job: [name] for name, of_curve in drawn_from.items() for job in of_curve}
    if not named:
        raise ConfigError(
            f"--scale={arguments.scale} is of {', '.join(SCALES[arguments.scale].stands_for or ())}"
            " alone, of which there is nothing here: take another --scale"
        )
    note = note_of(arguments.scale, where["fields"])
    if where["fields"] or arguments.run:  # before any of them has run for days
        for job in named:
            config_of(job)
    if arguments.list:
        scale = "" if arguments.scale == "full" else f" ({arguments.scale} scale)"
        for number, (job, names) in enumerate(named.items(), 1):
            if not (arguments.unfinished and is_finished(job)):
                print(f"{shlex.join(job.command)}  # {number}{scale}: {'; '.join(names)}")
    elif arguments.run:
        _check_flags(for_runs)
        sys.exit(run(_chosen(list(named), arguments.cell), for_runs))
    elif arguments.table:
        title = f"Table {arguments.table}. {table.title}"
        _write_table(title, collect(found), note, arguments.output)
    else:
        figure = FIGURES[arguments.figure]
        # What runs in place of the paper's data is named by the note.
        data = [] if SCALES[arguments.scale].experiment else [figure.data]
        _write_figure(figure, drawn_from, [*data, *filter(None, [note])], arguments.output)


def curves(
    figure: PaperFigure, *, scale: str, folds: int, runs: Path, fields: Mapping[str, str]
) -> dict[str, tuple[Job, ...]]:
    """The runs of every curve of a figure at this scale, one for each fold.

    Arguments are those of `cells`.
    """
    return {
        curve.name: tuple(
            job_of(
                curve.experiment,
                {**curve.arguments, "fold": str(fold)},
                scale=scale,
                runs=runs,
                fields=fields,
                own=curve.fields,
            )
            for fold in range(folds)
        )
        for curve in figure.curves
        if _stands_for(scale, curve.experiment)
    }


def _chosen(jobs: Sequence[Job], cell: int | None) -> Sequence[Job]:
    if cell is None:
        return jobs
    if not 1 <= cell <= len(jobs):
        raise ConfigError(f"--cell={cell} must be between 1 and {len(jobs)}")
    return [jobs[cell - 1]]


def note_of(scale: str, fields: Mapping[str, str]) -> str:
    """What every output says of runs that are not the paper's; empty for the paper's own."""
    changed = [
        f"{field}={value}" for field, value in fields.items() if field not in workdir.INCIDENTAL
    ]
    remarks = list(filter(None, [SCALES[scale].note, *changed]))
    return f"NOT THE PAPER'S SETTING: {', '.join(remarks)}" if remarks else ""


def _write_table(
    title: str, compared: Sequence[Comparison], note: str, output: Path | None
) -> None:
    print(paper_table.markdown(title, compared, note=note), end="")
    if output:
        files.write_text(output, TABLE_FORMATS[output.suffix](title, compared, note=note))


def _write_figure(
    figure: PaperFigure,
    drawn_from: Mapping[str, Sequence[Job]],
    remarks: Sequence[str],
    output: Path | None,
) -> None:
    if output is None:
        raise ConfigError("--collect draws a figure into --output=FILE: name one")
    there = found_of(job for of_curve in drawn_from.values() for job in of_curve)
    finished, missing = {}, []
    for name, of_curve in drawn_from.items():
        begun = [there[job] for job in of_curve if job in there]
        folds = [one.results for one in begun if one.is_finished]
        if folds:
            finished[name] = folds
        if len(of_curve) == 1 and begun and not folds:
            (one,) = begun
            missing.append(f"{name} ({len(one.generations)} of {one.planned} generations)")
        elif len(folds) < len(of_curve):
            some = f" ({len(folds)} of {len(of_curve)} folds are)" if folds else ""
            missing.append(f"{name}{some}")
    if not finished:
        raise ConfigError(f"none of the runs of {figure.title!r} is finished yet: --run them first")
    several = max(map(len, finished.values()))
    said = [*remarks]
    if several > 1:
        said.append(f"Mean and standard deviation of {several} folds")
    if missing:
        said.append(f"Not finished: {', '.join(missing)}")
    files.write_bytes(output, drawn(figure, finished, said, output.suffix.removeprefix(".")))
    runs = sum(map(len, drawn_from.values()))
    print(f"{output}: from {sum(map(len, finished.values()))} of {runs} runs")


def _check_output(output: Path, formats: Collection[str]) -> None:
    if output.suffix not in formats:
        raise ConfigError(f"--output={output} must end in {' or '.join(formats)}")
    files.check_writable(output)


def _split(words: Sequence[str]) -> tuple[Sequence[str], bool, Sequence[str]]:
    """What is before a bare `--`, whether there is one, and what follows it."""
    if "--" not in words:
        return words, False, ()
    at = words.index("--")
    return words[:at], True, words[at + 1 :]


def _check_flags(for_runs: Sequence[str]) -> None:
    """These two say which run it is, and would make it another than the one that is collected."""
    for flag in for_runs:
        if flag.lstrip("-").startswith(("config", "workdir")):
            raise ConfigError(f"{flag} cannot follow --: put --config.field=value before it")


def _fields(rest: Sequence[str]) -> dict[str, str]:
    """Reads `--config.field=value` arguments."""
    fields = {}
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config.") or not equals:
            raise ConfigError(
                f"{argument!r} is neither an option of this command nor --config.field=value"
            )
        fields[name.removeprefix("--config.")] = value
    return fields


if __name__ == "__main__":
    main()
