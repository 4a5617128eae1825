"""Methods side by side, from the results.json of finished runs.

python -m crest_jax.report.comparison WORKDIR [WORKDIR ...]
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crest_jax import command, files, results
from crest_jax.algorithms import ALGORITHMS
from crest_jax.errors import DataError
from crest_jax.rebalancing import REBALANCING, parts
from crest_jax.schema import printable

# Rows of each method: what is reported, and where results.json has it.
FIGURES = {"": "accuracy", " + la": "accuracy_logit_adjusted"}


def comparison(runs: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of class-balanced accuracy in %, mean ± standard deviation over folds.

    Each method has a line as trained and one after logit adjustment; each rebalancing a column.
    Cells of fewer folds than others say how many they have.

    Args:
      runs: contents of results.json files, all of one data set, one long tail and one budget.

    Raises:
      DataError: there are no runs, two are of one method, rebalancing and fold, or they are not
        of the same data or of as many training steps in all.
    """
    if not runs:
        raise DataError("there are no runs to compare")
    cells: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        for field, of in _COMMON.items():
            if of(run) != of(runs[0]):
                raise DataError(
                    f"runs differ in {field}, {of(runs[0])} and {of(run)}: compare those of one "
                    "experiment, finished"
                )
        folds = cells.setdefault((run["method"], _rebalance(run)), {})
        if run["fold"] in folds:
            raise DataError(
                f"two runs are of method={run['method']}, rebalance={_rebalance(run)}, "
                f"fold={run['fold']}: leave one out"
            )
        folds[run["fold"]] = run
    methods = _in_order({method for method, _ in cells}, ALGORITHMS)
    rebalances = _in_order({rebalance for _, rebalance in cells}, ["none", *REBALANCING])
    most = max(map(len, cells.values()))

    def cell(method: str, rebalance: str, figure: str) -> str:
        folds = cells.get((method, rebalance))
        if folds is None:
            return "-"
        values = np.array([run[figure] for run in folds.values()])
        fewer = f" ({len(values)} of {most} folds)" if len(values) < most else ""
        return f"{values.mean():.1f} ± {values.std():.1f}{fewer}"

    columns = " | ".join(map(printable, rebalances))
    lines = [f"| | {columns} |", "|---" * (1 + len(rebalances)) + "|"]
    for method in methods:
        for suffix, figure in FIGURES.items():
            row = " | ".join(cell(method, rebalance, figure) for rebalance in rebalances)
            lines.append(f"| {printable(method)}{suffix} | {row} |")
    return "\n".join(lines) + "\n"


# What runs that are compared must have in common.
_COMMON: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "data": lambda run: run["data"],
    "long_tail": lambda run: run["long_tail"],
    "class_distribution": lambda run: run["class_distribution"],
    "data.labeled_in_unlabeled": lambda run: run["labeled_in_unlabeled"],
    "steps in all": lambda run: sum(each["steps"] for each in run["generations"]),
}


def _rebalance(run: Mapping[str, Any]) -> str:
    """With the temperature where it is not that of plain alignment, and where p(y) is from."""
    name = run["rebalance"]
    if "da" in parts(name) and run["alignment"]["t"] != 1:
        name += f" t={run['alignment']['t']:g}"
    source = run["unlabeled_distribution"]["source"]
    return name if source == "labeled" else f"{name} ({source} p(y))"


def _in_order(names: set[str], order: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Known names in the registry's order, then combinations such as crest+rs."""
    known = [name for name in order if name in names]
    return known + sorted(names - set(known))


@command.entry
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=files.given, nargs="+", help="folders of finished runs")
    arguments = parser.parse_args()
    runs = [results.read(workdir) for workdir in arguments.workdir]
    print(comparison(runs), end="")


if __name__ == "__main__":
    main()
