"""Run the experiments behind the paper's tables and figures, and collect the results.

python -m crest_jax.paper --table=N --list [--unfinished]
                                                         list the commands, one per line
python -m crest_jax.paper --table=N --run [--cell=I] [-- FLAGS]
                                                         run all of them, or the I-th, here
python -m crest_jax.paper --table=N --collect [--output=FILE.md|FILE.csv]
                                                         our figures so far and the published ones
python -m crest_jax.paper --figure=N --list | --run [--cell=I]
python -m crest_jax.paper --figure=N --collect --output=FILE.svg|FILE.pdf|FILE.png
Everywhere: [--scale=full|small|mnist|smoke] [--folds=K] [--runs=DIR] [--config.field=value ...]

Each line of --list is a shell command that any batch system can start. Cells that need the same
run share it, also across tables. Interrupted runs continue where they stopped.

FLAGS after a bare `--` are passed unchanged to crest_jax.main: `-- --find_hosts`. On several hosts,
start the same command on each. All hosts agree on which runs are finished, because each of them
checks before any of them can train: a run begins only when every host has joined it.
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
from crest_jax.paper import table as paper_table
from crest_jax.paper.figures import FIGURES, PaperFigure, drawn
from crest_jax.paper.published import TABLES, Column, Figure, Row, Table
from crest_jax.paper.table import Comparison
from crest_jax.rebalancing import self_trains

# Exit statuses of a run that was told to stop and can be continued.
STOPPED, INTERRUPTED = Preempted.exit_status, command.INTERRUPTED
TABLE_FORMATS = {".md": paper_table.markdown, ".csv": paper_table.comma_separated}
FIGURE_FORMATS = (".svg", ".pdf", ".png")


class Scale(NamedTuple):
    """A scale of runs: how much smaller they are than the paper's."""

    note: str  # remark in every output; empty for the paper's own scale
    fields: Mapping[str, str]  # config fields to set
    steps: int  # steps per generation; 0 keeps the experiment's
    generations: int  # generations of self-training; 0 keeps the experiment's
    experiment: str | None = None  # the experiment that runs instead of the paper's
    stands_for: Collection[str] | None = None  # the experiments that it replaces; None for all
    gamma: float = 1  # divisor of imbalance ratios
    beta: float = 1  # divisor of labeled fractions
    arguments: Mapping[str, Mapping[str, str]] = {}  # additional arguments, by experiment


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


# Experiments in which methods without self-training train for as many steps as one generation of
# self-training, instead of as many as all its generations together.
ONE_GENERATION = ("imagenet127",)


class Job(NamedTuple):
    """A run that cells of a table, or a curve of a figure, come from."""

    experiment: str
    arguments: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...]  # config fields
    workdir: Path

    @property
    def command(self) -> list[str]:
        """The command that starts or continues the run."""
        arguments = ",".join(f"{key}={value}" for key, value in self.arguments)
        return [
            "python", "-m", "crest_jax.main",
            f"--config={experiments.folder() / self.experiment}.py:{arguments}",
            f"--workdir={self.workdir}",
            *(f"--config.{field}={value}" for field, value in self.fields),
        ]  # fmt: skip


class Cell(NamedTuple):
    """A published figure of a table, and the runs that ours comes from, one for each fold."""

    row: Row
    column: Column
    published: Figure
    jobs: tuple[Job, ...]


def cells(
    table: Table, *, scale: str, folds: int, runs: Path, fields: Mapping[str, str]
) -> list[Cell]:
    """Return every cell that has a published figure and is run at this scale, row by row.

    Args:
      table: The table of the paper.
      scale: A key of `SCALES`.
      folds: The number of folds.
      runs: The folder of all runs.
      fields: Config fields from the command line; they overrule the scale's.
    """
    return [
        Cell(
            row,
            column,
            published,
            tuple(
                job_of(
                    column.experiment,
                    # The order is part of the run's name: keep it, so that tables share runs.
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
    """Return whether an experiment of the paper is run at this scale."""
    replaced = SCALES[scale].stands_for
    return replaced is None or experiment in replaced


def jobs(found: Sequence[Cell]) -> dict[Job, list[str]]:
    """Return every run once, with the names of the cells that come from it."""
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
    """Return the run of an experiment at a scale.

    Args:
      experiment: The name of the experiment's file.
      arguments: The arguments of the experiment.
      scale: A key of `SCALES`.
      runs: The folder of all runs; it has a subfolder for each scale.
      fields: Config fields that overrule the scale's.
      own: Config fields that distinguish the run; like the arguments, they are part of its name.
    """
    at = SCALES[scale]
    arguments = {**arguments, **at.arguments.get(experiment, {})}
    for name, smaller in (("gamma", at.gamma), ("beta", at.beta)):
        if at.experiment and name in arguments and smaller != 1:
            arguments = {**arguments, name: f"{float(arguments[name]) / smaller:g}"}
    as_all = experiment not in ONE_GENERATION
    # Name the run after the experiment that runs, not after the one that it replaces.
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
    several = self_trains(arguments["rebalance"])
    if at.steps:
        # The same total number of steps, whether in one generation or in several.
        scaled["steps"] = str(at.steps * (at.generations if as_all and not several else 1))
    if at.generations and several:
        scaled["generations"] = str(at.generations)
    return Job(
        experiment,
        tuple(arguments.items()),
        tuple({**scaled, **fields}.items()),
        runs / scale / name,
    )


def config_of(job: Job) -> ConfigDict:
    """Return the config that a run's command makes.

    Raises:
      ConfigError: The experiment's file is missing, or its config lacks one of the fields.
    """
    words = [word for word in job.command[2:] if not word.startswith("--workdir=")]
    try:
        return experiments.read(words)
    except ConfigError as error:
        raise ConfigError(f"{error} (in: {shlex.join(job.command)})") from error


class Done(NamedTuple):
    """What a run has finished so far."""

    results: Mapping[str, Any]  # content of results.json
    planned: int  # number of generations that the run will have

    @property
    def generations(self) -> Sequence[Mapping[str, Any]]:
        """The results of the finished generations."""
        return self.results["generations"]

    @property
    def is_finished(self) -> bool:
        """Whether all planned generations are finished."""
        return len(self.generations) == self.planned


def done(job: Job) -> Done | None:
    """Read the results of a run so far; None before its first generation is finished.

    Raises:
      WorkdirError: The run's files are damaged, or its config is not the job's.
      ConfigError: As for `config_of`.
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
    """Read the results of those runs that have any; print why unusable ones are left out."""
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
    """Return our figure from one run; None where the run has not come that far.

    Runs at a smaller scale than the paper's may have fewer generations: a generation beyond the
    run's last one is replaced by the last.

    Raises:
      WorkdirError: The run's results.json lacks the figure.
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
    """Return whether nothing is left to run.

    A damaged run counts as unfinished: running it will report or repair the damage.

    Raises:
      ConfigError: As for `config_of`.
    """
    try:
        one = done(job)
    except WorkdirError:
        return False
    return one is not None and one.is_finished


def run(chosen: Sequence[Job], flags: Sequence[str] = ()) -> int:
    """Run or continue all unfinished runs, one after the other.

    A run that fails does not keep the others from running. A signal to stop does, once the current
    run has saved itself.

    Args:
      chosen: The runs.
      flags: Additional flags for the command of each run.

    Returns:
      The exit status: 0, that of a run that was stopped, or that of the first run that failed. As
      in a shell, it is 128 plus the signal's number where a run was killed by a signal.
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
            if stopped:  # the signal came before there was a process
                process.terminate()
            while True:
                try:
                    status = process.wait()
                    break
                except KeyboardInterrupt:  # the run gets it too, and handles it
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
    """Compare our figure with the published one in every cell."""
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
    """List, run or collect."""
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
    # The paper's figures have one run per curve.
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
    if where["fields"] or arguments.run:  # find errors before a run has taken days
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
        # Where other data replaces the paper's, the note names it.
        data = [] if SCALES[arguments.scale].experiment else [figure.data]
        _write_figure(figure, drawn_from, [*data, *filter(None, [note])], arguments.output)


def curves(
    figure: PaperFigure, *, scale: str, folds: int, runs: Path, fields: Mapping[str, str]
) -> dict[str, tuple[Job, ...]]:
    """Return the runs of every curve of a figure at this scale, one for each fold.

    Arguments are as for `cells`.
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
    """Return the remark for outputs of runs that differ from the paper's; empty if none does."""
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
    """Return the words before a bare `--`, whether there is one, and the words after it."""
    if "--" not in words:
        return words, False, ()
    at = words.index("--")
    return words[:at], True, words[at + 1 :]


def _check_flags(for_runs: Sequence[str]) -> None:
    """Check that the flags do not change config or workdir, by which runs are collected."""
    for flag in for_runs:
        if flag.lstrip("-").startswith(("config", "workdir")):
            raise ConfigError(f"{flag} cannot follow --: put --config.field=value before it")


def _fields(rest: Sequence[str]) -> dict[str, str]:
    """Parse `--config.field=value` arguments."""
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
