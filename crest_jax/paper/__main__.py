"""Run the experiments behind the paper's tables and figures, and collect the results.

python -m crest_jax.paper --table=N --list [--unfinished]
                                                         list the commands, one per line
python -m crest_jax.paper --table=N --run [--cell=I] [-- FLAGS]
                                                         run all of them, or the I-th, here
python -m crest_jax.paper --table=N --collect [--output=FILE.md|FILE.csv]
                                                         our values so far and the published ones
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
import sys
from collections.abc import Collection, Mapping, Sequence

from etils.epath import Path

from crest_jax import command, files
from crest_jax.errors import ConfigError
from crest_jax.paper import cells, curves, progress
from crest_jax.paper.cells import PaperCell
from crest_jax.paper.comparison import compare
from crest_jax.paper.execution import run_all
from crest_jax.paper.figures import FIGURES, PaperFigure, render
from crest_jax.paper.published import TABLES
from crest_jax.paper.runs import PaperRun, Setting
from crest_jax.paper.scales import SCALES
from crest_jax.paper.table import comma_separated, markdown

_TABLE_FORMATS = {".md": markdown, ".csv": comma_separated}
_FIGURE_FORMATS = (".svg", ".pdf", ".png")


@command.entry
def main() -> None:
    """List, run or collect."""
    words, dashes, for_runs = _split(sys.argv[1:])
    arguments, fields = _parse(words, dashes=dashes)
    table = TABLES.get(arguments.table)
    # The paper's figures have one run per curve.
    published = table.folds if table else 1
    folds = published if arguments.folds is None else arguments.folds
    if folds < 1:
        raise ConfigError(f"--folds={folds} must be at least 1")
    setting = Setting(arguments.scale, folds, fields, arguments.runs)
    if table:
        in_table = cells.of_table(table, setting)
        named = cells.named_runs(in_table)
    else:
        figure = FIGURES[arguments.figure]
        in_figure = curves.of_figure(figure, setting)
        named = curves.named_runs(in_figure)
    if not named:
        raise ConfigError(
            f"--scale={arguments.scale} is for "
            f"{', '.join(SCALES[arguments.scale].stands_for or ())} only, which this table or "
            "figure does not run: choose another --scale"
        )
    if fields or arguments.run:  # find errors before a run has taken days
        for run in named:
            run.config()
    if arguments.list:
        _list(named, arguments.scale, unfinished=arguments.unfinished)
    elif arguments.run:
        _check_flags(for_runs)
        sys.exit(run_all(_chosen(list(named), arguments.cell), for_runs))
    elif table:
        title = f"Table {arguments.table}. {table.title}"
        _write_table(title, in_table, setting.note, arguments.output)
    else:
        _write_figure(figure, in_figure, setting, arguments.output)


def _split(words: Sequence[str]) -> tuple[Sequence[str], bool, Sequence[str]]:
    """Return the words before a bare `--`, whether there is one, and the words after it."""
    if "--" not in words:
        return words, False, ()
    at = words.index("--")
    return words[:at], True, words[at + 1 :]


def _parse(words: Sequence[str], *, dashes: bool) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the options among the words before a bare `--`, and the config fields."""
    parser = command.parser(__doc__)
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
        _check_output(arguments.output, _TABLE_FORMATS if arguments.table else _FIGURE_FORMATS)
    return arguments, _fields(rest)


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


def _check_output(output: Path, formats: Collection[str]) -> None:
    if output.suffix not in formats:
        raise ConfigError(f"--output={output} must end in {' or '.join(formats)}")
    files.check_writable(output)


def _check_flags(for_runs: Sequence[str]) -> None:
    """Check that the flags do not change config or workdir, by which runs are collected."""
    for flag in for_runs:
        if flag.lstrip("-").startswith(("config", "workdir")):
            raise ConfigError(f"{flag} cannot follow --: put --config.field=value before it")


def _list(named: Mapping[PaperRun, Sequence[str]], scale: str, *, unfinished: bool) -> None:
    at_scale = "" if scale == "full" else f" ({scale} scale)"
    for number, (run, names) in enumerate(named.items(), 1):
        if not (unfinished and progress.is_finished(run)):
            print(f"{shlex.join(run.command)}  # {number}{at_scale}: {'; '.join(names)}")


def _chosen(runs: Sequence[PaperRun], cell: int | None) -> Sequence[PaperRun]:
    if cell is None:
        return runs
    if not 1 <= cell <= len(runs):
        raise ConfigError(f"--cell={cell} must be between 1 and {len(runs)}")
    return [runs[cell - 1]]


def _write_table(title: str, in_table: Sequence[PaperCell], note: str, output: Path | None) -> None:
    compared = compare(in_table)
    print(markdown(title, compared, note=note), end="")
    if output:
        files.write_text(output, _TABLE_FORMATS[output.suffix](title, compared, note=note))


def _write_figure(
    figure: PaperFigure,
    in_figure: Mapping[str, Sequence[PaperRun]],
    setting: Setting,
    output: Path | None,
) -> None:
    if output is None:
        raise ConfigError("--collect draws a figure into --output=FILE: name one")
    finished = curves.collect(in_figure)
    if not finished.folds:
        raise ConfigError(f"none of the runs of {figure.title!r} is finished yet: --run them first")
    # Where other data replaces the paper's, the note names it.
    data = "" if SCALES[setting.scale].experiment else figure.data
    remarks = [*filter(None, [data, setting.note]), *finished.remarks]
    kind = output.suffix.removeprefix(".")
    files.write_bytes(output, render(figure, finished.folds, remarks, kind))
    drawn_from, runs = (sum(map(len, each.values())) for each in (finished.folds, in_figure))
    print(f"{output}: from {drawn_from} of {runs} runs")


if __name__ == "__main__":
    main()
