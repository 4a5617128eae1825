"""Compare methods side by side, from the results.json files of finished runs.

python -m crest_jax.report.comparison WORKDIR [WORKDIR ...] [--rarest 3] [--baseline none]

With --rarest=N, rows are added for recall and precision of the N classes with the fewest labels.
With --baseline, a value of rebalance, a second table shows how far the others are ahead of it on
the same folds, and how likely chance alone would put them so far ahead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from crest_jax import command, files, results
from crest_jax.algorithms import ALGORITHMS
from crest_jax.errors import ConfigError, DataError
from crest_jax.rebalancing import REBALANCING
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
    have.

    Args:
      runs: contents of results.json files, all of one data set, one long tail and one budget.
      rarest: the number of classes, those with the fewest labels, to add rows of recall and
        precision for; 0 adds none.

    Raises:
      DataError: There are no runs; two have the same method, rebalancing and fold; or they differ
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
    for run in runs:
        folds = cells.setdefault((run["method"], _rebalance(run)), {})
        if run["fold"] in folds:
            raise DataError(
                f"two runs are of method={run['method']}, rebalance={_rebalance(run)}, "
                f"fold={run['fold']}: leave one out"
            )
        folds[run["fold"]] = run
    return cells


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


@command.entry
def main() -> None:
    """Print the tables."""
    parser = command.parser(__doc__)
    parser.add_argument("workdir", type=files.given, nargs="+", help="folders of finished runs")
    parser.add_argument("--rarest", type=int, default=0, help="classes to add lines of")
    parser.add_argument("--baseline", help="a value of rebalance that others are held against")
    arguments = parser.parse_args()
    runs = [results.read(workdir) for workdir in arguments.workdir]
    tables = [comparison(runs, arguments.rarest)]
    if arguments.baseline is not None:
        tables.append(paired(runs, arguments.baseline))
    print("\n".join(tables), end="")


if __name__ == "__main__":
    main()
