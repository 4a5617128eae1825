"""Draw figures of runs from their results.json files, never from numbers typed in by hand.

python -m crest_jax.report.figures --output=FILE.svg WORKDIR [WORKDIR ...]
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from crest_jax import command, files, results
from crest_jax.errors import ConfigError, DataError
from crest_jax.report import comparison
from crest_jax.wording import printable

NAMES = {"none": "FixMatch", "da": "FixMatch + DA", "crest": "CReST", "crest_plus": "CReST+"}
# Okabe and Ito's colours, which colour-blind readers can tell apart; markers help in grey.
COLOURS = {"none": "#999999", "da": "#56B4E9", "crest": "#E69F00", "crest_plus": "#0072B2"}
MARKERS = {"none": "o", "da": "v", "crest": "s", "crest_plus": "D"}
# Matplotlib's versions differ in how they annotate the names of settings.
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def overview(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw an overview of what the method does, a line per kind of run (as the paper's Figure 1).

    From left to right: the labeled set's class sizes; precision and recall on the test set by
    class, dotted after the first generation, solid after the last; accuracy by generation, where a
    run of one generation is a horizontal line. Classes that are never predicted have no precision
    and leave a gap. Runs with the same `rebalance` are averaged; a band shows the standard
    deviation of their accuracy.

    Args:
      runs: contents of results.json files, at least one, all of FixMatch on the same data.

    Raises:
      DataError: Runs differ in their data, a run is of another method or of a rebalancing that is
        not in `NAMES`, or runs of one kind differ in their number of generations.
    """
    comparison.check_alike(runs, comparison.DATA)
    for run in runs:
        if run["method"] != "fixmatch" or run["rebalance"] not in NAMES:
            raise DataError(
                f"a run is of method={printable(run['method'])}, rebalance="
                f"{printable(run['rebalance'])}: only those of method=fixmatch with rebalance="
                f"{', '.join(NAMES)} are drawn"
            )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 2.8), layout="constrained")
        sizes_axes, *by_class_axes, accuracy_axes = figure.subplots(
            1, 4, width_ratios=(0.8, 1.1, 1.1, 1)
        )
        by_class = dict(zip(("precision", "recall"), by_class_axes, strict=True))
        groups = {name: [run for run in runs if run["rebalance"] == name] for name in NAMES}
        groups = {name: members for name, members in groups.items() if members}

        classes = np.arange(len(runs[0]["class_names"]))
        sizes = runs[0]["generations"][0]["labeled_per_class"]
        sizes_axes.bar(classes, sizes, color="#555555")
        sizes_axes.set(title="labeled images of each class", xlabel="class")
        if max(sizes) > 0 and max(sizes) / max(min(sizes), 1) >= 50:
            sizes_axes.set_yscale("log")

        for name, members in groups.items():
            lengths = {len(run["generations"]) for run in members}
            if len(lengths) > 1:
                raise DataError(
                    f"the {NAMES[name]} runs have {sorted(lengths)} generations: finish or leave "
                    "out the shorter ones"
                )
            look = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 4,
                    "label": NAMES[name]}  # fmt: skip
            dotted = {"linestyle": ":", "color": COLOURS[name], "label": "_first"}
            averaged = mean_of_folds(members)["generations"]
            for what, axes in by_class.items():
                if len(averaged) > 1:
                    axes.plot(classes, averaged[0][f"per_class_{what}"], **dotted)
                axes.plot(classes, averaged[-1][f"per_class_{what}"], **look)
            mean, deviation = (
                np.array([result[name] for result in averaged])
                for name in ("accuracy", "accuracy_deviation")
            )
            band = {"color": COLOURS[name], "alpha": 0.15, "linewidth": 0}
            low, high = mean - deviation, mean + deviation
            if len(mean) == 1:
                accuracy_axes.axhline(mean[0], color=COLOURS[name], linestyle="--")
                accuracy_axes.axhspan(low[0], high[0], **band)
                continue
            generations = 1 + np.arange(len(mean))
            accuracy_axes.plot(generations, mean, **look)
            accuracy_axes.fill_between(generations, low, high, **band)
            accuracy_axes.set_xticks(generations)
        for what, axes in by_class.items():
            axes.set(title=f"{what} on the test set (%)", xlabel="class", ylim=(0, 104))
        by_class["recall"].legend(loc="lower left")
        accuracy_axes.set(title="class-balanced accuracy (%)", xlabel="generation")
        for axes in (sizes_axes, *by_class_axes):
            axes.set_xticks(classes if len(classes) <= 20 else classes[::10])
        return figure


# The values of a generation that are drawn by class, and those of its pseudo-labels.
_BY_CLASS = ("labeled_per_class", "per_class_recall", "per_class_precision")
_OF_PSEUDO_LABELS = ("examples", "recall")


def mean_of_folds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return results whose drawn values are the means over folds.

    Args:
      runs: contents of results.json files, at least one, with the same generations and classes.

    Returns:
      The first run's results, with generations that have `accuracy`, `accuracy_deviation` (its
      standard deviation over folds), and the values by class: means over the folds that have one,
      NaN where none has.
    """
    generations = []
    for folds in zip(*(run["generations"] for run in runs), strict=True):
        accuracies = [result["accuracy"] for result in folds]
        pseudo_labels = [result.get("pseudo_labels", {}) for result in folds]
        generations.append(
            {
                "accuracy": float(np.mean(accuracies)),
                "accuracy_deviation": float(np.std(accuracies)),
                **_means_by_class(folds, _BY_CLASS),
                "pseudo_labels": _means_by_class(pseudo_labels, _OF_PSEUDO_LABELS),
            }
        )
    return {**runs[0], "generations": generations}


def _means_by_class(
    folds: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, list[float]]:
    means = {}
    for name in names:
        if name in folds[0]:
            values = np.ma.masked_invalid(np.array([fold[name] for fold in folds], float))
            means[name] = values.mean(axis=0).filled(np.nan).tolist()
    return means


@command.entry
def main() -> None:
    """Draw the overview of finished runs."""
    parser = command.parser(__doc__)
    parser.add_argument("--output", type=files.given, required=True)
    parser.add_argument("workdir", type=files.given, nargs="+")
    arguments = parser.parse_args()
    kind = arguments.output.suffix[1:] or "svg"
    kinds = Figure().canvas.get_supported_filetypes()
    if kind not in kinds:
        raise ConfigError(f"--output={arguments.output} must end in .{', .'.join(kinds)}")
    files.check_writable(arguments.output)
    runs = [results.read(workdir) for workdir in arguments.workdir]
    picture = io.BytesIO()
    overview(runs).savefig(picture, format=kind, dpi=150)
    files.write_bytes(arguments.output, picture.getvalue())


if __name__ == "__main__":
    main()
