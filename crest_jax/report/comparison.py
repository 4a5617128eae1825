"""Compare methods side by side, from the results.json files of finished runs.

python -m crest_jax.report.comparison WORKDIR [WORKDIR ...] [--rarest 3] [--baseline none]

With --rarest=N, rows are added for recall and precision of the N classes with the fewest labels.
Runs that differ in their model, or in a hyper-parameter of their method or rebalancing, have rows
or columns of their own, which name the difference.
With --baseline, a value of rebalance, a second table shows how far the others are ahead of it on
the same folds, and how likely chance alone would put them so far ahead.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils.epath import Path
from scipy import stats

from crest_jax import command, files, results
from crest_jax.algorithms import ALGORITHMS
from crest_jax.config import common_fields
from crest_jax.errors import ConfigError, DataError
from crest_jax.layout import RunFolder
from crest_jax.rebalancing import REBALANCING, parts
from crest_jax.wording import printable

# A function from a run's results.json to a number, which is NaN where the run has none.
Measure = Callable[[Mapping[str, Any]], float]
ACCURACIES: Mapping[str, Measure] = {
    "": lambda run: run["accuracy"],
    " + la": lambda run: run["accuracy_logit_adjusted"],
}


def measures_of_rarest(count: int) -> dict[str, Measure]:
    """Return the measures of recall and precision of the classes with the fewest labels.

    Both are in % and are means over these classes. Classes that the model never predicts have no
    precision and are left out of its mean.

    Args:
      count: the number of classes.
    """

    def mean_of(name: str) -> Measure:
        def measure(run: Mapping[str, Any]) -> float:
            sizes = np.array(run["generations"][0]["labeled_per_class"])
            rarest = np.argsort(-sizes, kind="stable")[-count:]
            values = [run["generations"][-1][f"per_class_{name}"][label] for label in rarest]
            known = [value for value in values if value is not None]
            return float(np.mean(known)) if known else math.nan

        return measure

    return {f", {name} of rarest {count}": mean_of(name) for name in ("recall", "precision")}


def comparison(runs: Sequence[Mapping[str, Any]], rarest: int = 0) -> str:
    """Return a Markdown table of accuracy, as mean ± standard deviation over folds.

    Accuracy is class-balanced, in %. Each method has a row as trained and a row after logit
    adjustment; each rebalancing has a column. Cells with fewer folds than others say how many they
    have. Models, and hyper-parameters of a method or a rebalancing, that not all of its runs share
    have rows or columns of their own.

    Args:
      runs: contents of results.json files, all of one data set, one long tail and one budget; each
        may have its run's plain config too, as `config`.
      rarest: the number of classes, those with the fewest labels, to add rows of recall and
        precision for; 0 adds none.

    Raises:
      DataError: There are no runs; two have the same row, column and fold; or they differ
        in data or in their total number of training steps.
      ConfigError: `rarest` is not from 0 to the number of classes.
    """
    cells = _cells(runs)
    classes = len(runs[0]["class_names"])
    if not 0 <= rarest <= classes:
        raise ConfigError(f"--rarest={rarest} must be from 0 to {classes}, the number of classes")
    measures = {**ACCURACIES, **(measures_of_rarest(rarest) if rarest else {})}
    methods = _in_order({method for method, _ in cells}, ALGORITHMS)
    rebalances = _in_order({rebalance for _, rebalance in cells}, ["none", *REBALANCING])
    most = max(map(len, cells.values()))

    def cell(method: str, rebalance: str, measure: Measure) -> str:
        folds = cells.get((method, rebalance), {})
        values = np.array([measure(run) for run in folds.values()])
        values = values[np.isfinite(values)]
        if not len(values):
            return "-"
        fewer = f" ({len(values)} of {most} folds)" if len(values) < most else ""
        deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
        return f"{values.mean():.1f}{deviation}{fewer}"

    columns = " | ".join(map(printable, rebalances))
    lines = [f"| | {columns} |", "|---" * (1 + len(rebalances)) + "|"]
    for method in methods:
        for suffix, measure in measures.items():
            row = " | ".join(cell(method, rebalance, measure) for rebalance in rebalances)
            lines.append(f"| {printable(method)}{suffix} | {row} |")
    return "\n".join(lines) + "\n"


def paired(runs: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return a Markdown table of how far rebalancings are ahead of one of them, fold by fold.

    Differences are means in percentage points, with their 95 % confidence interval; p is that of a
    one-sided paired t-test: how often chance alone would put a method as far ahead, or farther.
    Methods that share fewer than two folds with the baseline are left out.

    Args:
      runs: as for `comparison`.
      baseline: a value of `rebalance`.

    Raises:
      DataError: As for `comparison`; or no method shares two folds with the baseline.
    """
    cells = _cells(runs)
    lines = []
    for method in _in_order({method for method, _ in cells}, ALGORITHMS):
        reference = cells.get((method, baseline), {})
        others = {name for other, name in cells if other == method and name != baseline}
        for rebalance in _in_order(others, ["none", *REBALANCING]):
            folds = cells[method, rebalance]
            shared = sorted(reference.keys() & folds.keys())
            if len(shared) < 2:
                continue
            found = []
            for measure in ACCURACIES.values():
                values, expected = (
                    [measure(run[fold]) for fold in shared] for run in (folds, reference)
                )
                found.append(_ahead(np.array(values) - np.array(expected)))
            lines.append(
                f"| {printable(method)}, {printable(rebalance)} | {len(shared)} | "
                f"{' | '.join(found)} |"
            )
    if not lines:
        raise DataError(
            f"no runs share two folds with runs of rebalance={printable(baseline)}, the "
            "baseline: name another one, or more runs"
        )
    columns = " | ".join(f"points ahead{suffix} | p" for suffix in ACCURACIES)
    return (
        "\n".join(
            [
                f"| against {printable(baseline)} | folds | {columns} |",
                "|---" * (2 + 2 * len(ACCURACIES)) + "|",
                *lines,
            ]
        )
        + "\n"
    )


def _ahead(differences: np.ndarray) -> str:
    """Return two cells: the mean with its confidence interval, and the p-value."""
    mean = differences.mean()
    if np.ptp(differences) == 0:  # the t-test needs some variance
        return f"{mean:+.1f} | -"
    test = stats.ttest_1samp(differences, 0, alternative="greater")
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=stats.sem(differences))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}) | {test.pvalue:.2g}"


def _cells(
    runs: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """Return the runs by method and rebalancing, then by fold.

    Raises:
      DataError: There are no runs, or they cannot be compared.
    """
    if not runs:
        raise DataError("there are no runs to compare")
    check_alike(runs, {**DATA, **_BUDGET})
    cells: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for run, (method, rebalance) in zip(runs, _labels(runs), strict=True):
        folds = cells.setdefault((method, rebalance), {})
        if run["fold"] in folds:
            raise DataError(
                f"two runs are of method={method}, rebalance={rebalance}, fold={run['fold']}: "
                "leave one out"
            )
        folds[run["fold"]] = run
    return cells


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the names of each run's row and column, with the settings in which it differs.

    Models are compared over all runs, and hyper-parameters over the runs of one method or one
    rebalancing, since others need not have them. Those of the project's rebalancings are compared
    within each method, which may have defaults of its own for them.
    """
    settings = [_settings(run) for run in runs]
    models = _differing([each.model for each in settings])
    of_method, of_rebalance, of_both = defaultdict(list), defaultdict(list), defaultdict(list)
    for run, each in zip(runs, settings, strict=True):
        of_method[run["method"]].append(each.method)
        of_rebalance[_rebalance(run)].append(each.rebalance)
        of_both[run["method"], _rebalance(run)].append(each.rebalance)
    project = common_fields()
    found = []
    for run, each in zip(runs, settings, strict=True):
        method, rebalance = run["method"], _rebalance(run)
        row = [*_named(each.model, models), *_named(each.method, _differing(of_method[method]))]
        within = _differing(of_both[method, rebalance])
        names = [
            name
            for name in _differing(of_rebalance[rebalance])
            if name in within or name not in project
        ]
        found.append(
            (" ".join([method, *row]), " ".join([rebalance, *_named(each.rebalance, names)]))
        )
    return found


class _Settings(NamedTuple):
    """Values of a run's config by the names that they have in the table."""

    model: dict[str, Any]
    method: dict[str, Any]
    rebalance: dict[str, Any]


def _settings(run: Mapping[str, Any]) -> _Settings:
    """Return the settings of a run that make a row or a column; all are empty without its config.

    Which hyper-parameters a plug-in declares is told from the config alone, so that it need not be
    there: they are the fields that are not the project's.
    """
    values = _flat(run.get("config", {}))
    theirs = {name for way in ALGORITHMS.values() for name in way.hyper_parameters}
    known = common_fields()
    own = {
        name
        for name in values
        if name not in {*known, *theirs} and not name.startswith("long_tail.")
    }
    if run["method"] in ALGORITHMS:
        of_method = set(ALGORITHMS[run["method"]].hyper_parameters)
    else:
        of_method = {name for name in {*own, *theirs} if "." not in name}
    of_rebalance = own - of_method
    for part in parts(run["rebalance"]):
        if part in REBALANCING:
            of_rebalance |= set(REBALANCING[part].hyper_parameters)
    model = {name: value for name, value in values.items() if name.startswith("model.")}
    # The same weights may be at another path, but without them a model is another one.
    if model:
        model["model.init_from"] = bool(model.get("model.init_from"))
    return _Settings(
        {"model" if name == "model.name" else name: value for name, value in model.items()},
        {name: value for name, value in values.items() if name in of_method},
        {name: value for name, value in values.items() if name in of_rebalance},
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a plain config by the dotted names of their fields."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _differing(of_each: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that have several values, in their order."""
    names = dict.fromkeys(name for each in of_each for name in each)
    return [
        name for name in names if len({repr(each[name]) for each in of_each if name in each}) > 1
    ]


def _named(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return some settings as words of a row's or column's name."""
    return [f"{name}={values[name]}" for name in names if name in values]


# The fields by which runs are of the same data, and of the same number of steps.
DATA: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "data": lambda run: run["data"],
    "long_tail": lambda run: run["long_tail"],
    "class_distribution": lambda run: run["class_distribution"],
    "data.labeled_in_unlabeled": lambda run: run["labeled_in_unlabeled"],
}
_BUDGET: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "steps in all": lambda run: sum(each["steps"] for each in run["generations"]),
}


def check_alike(
    runs: Sequence[Mapping[str, Any]], fields: Mapping[str, Callable[[Mapping[str, Any]], Any]]
) -> None:
    """Check that runs do not differ in some fields.

    Args:
      runs: contents of results.json files, at least one.
      fields: for the name of each field, a function from a run to its value.

    Raises:
      DataError: Two runs differ in a field.
    """
    for field, value in fields.items():
        for run in runs:
            if value(run) != value(runs[0]):
                raise DataError(
                    f"runs differ in {field}, {value(runs[0])} and {value(run)}: compare those of "
                    "one experiment, finished"
                )


def _rebalance(run: Mapping[str, Any]) -> str:
    """Return the rebalancing of a run.

    The temperature of distribution alignment is added where it is not 1, and the source of p(y)
    where that is not the labeled set.
    """
    name = run["rebalance"]
    if run["alignment"]["t"] != 1:
        name += f" t={run['alignment']['t']:g}"
    source = run["unlabeled_distribution"]["source"]
    return name if source == "labeled" else f"{name} ({source} p(y))"


def _in_order(names: set[str], order: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return known names in the registry's order, then combinations such as crest+rs."""
    known = [name for name in order if name in names]
    return known + sorted(names - set(known))


def _with_config(workdir: Path) -> dict[str, Any]:
    """Return the content of a run's results.json, with its plain config if that is there."""
    run, path = results.read(workdir), RunFolder(workdir).config
    content = files.read_json(path) if path.exists() else {}
    config = content.get("config") if isinstance(content, Mapping) else None
    return {**run, "config": config if isinstance(config, Mapping) else {}}


@command.entry
def main() -> None:
    """Print the tables."""
    parser = command.parser(__doc__)
    parser.add_argument("workdir", type=files.given, nargs="+", help="folders of finished runs")
    parser.add_argument("--rarest", type=int, default=0, help="classes to add lines of")
    parser.add_argument("--baseline", help="a value of rebalance that others are held against")
    arguments = parser.parse_args()
    runs = [_with_config(workdir) for workdir in arguments.workdir]
    tables = [comparison(runs, arguments.rarest)]
    if arguments.baseline is not None:
        tables.append(paired(runs, arguments.baseline))
    print("\n".join(tables), end="")


if __name__ == "__main__":
    main()
