"""The paper's figures, drawn from the results.json files of runs.

A curve is the mean over folds; with several folds, error bars show their standard deviation.
Colours can be told apart by colour-blind readers, and markers and line styles in grey.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crest_jax.paper.published import TABLES
from crest_jax.rebalancing import crest
from crest_jax.report.figures import STYLE, mean_of_folds

Results = Mapping[str, Any]


class Curve(NamedTuple):
    """A curve of a figure: the run that it is drawn from."""

    name: str
    experiment: str  # name of a file in experiments/
    arguments: Mapping[str, str]
    fields: Mapping[str, str] = {}  # config fields to set


class PaperFigure(NamedTuple):
    """One of the paper's figures."""

    title: str
    data: str  # data set that the paper uses
    curves: tuple[Curve, ...]
    # Draws the means over folds, given by the names of those curves that have finished runs, into a
    # figure of `size`, which is in inches.
    draw: Callable[[Figure, Mapping[str, Results]], None]
    size: tuple[float, float]


def drawn(
    figure: PaperFigure, runs: Mapping[str, Sequence[Results]], remarks: Sequence[str], kind: str
) -> bytes:
    """Draw a figure, and return the content of its file.

    Args:
      figure: The figure.
      runs: Contents of results.json files by the names of the figure's curves, one for each
        finished fold; at least one curve.
      remarks: Lines for below the title, on the runs' scale and on missing runs.
      kind: The file format: "svg", "pdf" or "png".
    """
    with mpl.rc_context(STYLE):
        content = io.BytesIO()
        canvas(figure, runs, remarks).savefig(content, format=kind, dpi=200)
        return content.getvalue()


def canvas(
    figure: PaperFigure, runs: Mapping[str, Sequence[Results]], remarks: Sequence[str]
) -> Figure:
    """Draw a figure. Arguments are as for `drawn`."""
    made = Figure(figsize=figure.size, layout="constrained")
    figure.draw(made, {name: mean_of_folds(folds) for name, folds in runs.items()})
    lines = [textwrap.fill(line, int(15 * figure.size[0])) for line in (figure.title, *remarks)]
    made.suptitle("\n".join(lines), fontsize=10)
    return made


# Okabe and Ito's colours, each with its own combination of marker and line style.
_LOOKS = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#0072B2", "marker": "D", "linestyle": "--"},
    {"color": "#D55E00", "marker": "s", "linestyle": "-."},
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "v", "linestyle": "-"},
    {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
)
_MOST_MARKED = 20  # with more classes than that, markers would hide the line
_ON_CIFAR10 = {"gamma": "100", "beta": "0.1"}


def _run(method: str, rebalance: str, **arguments: str) -> dict[str, str]:
    return {"method": method, "rebalance": rebalance, **arguments}


def _order(results: Results) -> Int[np.ndarray, " classes"]:
    """Return the classes by their size in the labeled set, largest first."""
    return np.argsort(-np.array(_first(results)["labeled_per_class"]), kind="stable")


def _first(results: Results) -> Results:
    return results["generations"][0]


def _by_class(
    values: Sequence[int | float | None], results: Results
) -> Float[np.ndarray, " classes"]:
    """Return the values of the classes, largest class first; NaN where a class has none."""
    return np.array([np.nan if value is None else value for value in values], float)[
        _order(results)
    ]


def _plot_by_class(axes: Axes, values: np.ndarray, label: str, number: int, **changes) -> None:
    look: dict[str, Any] = {**_LOOKS[number % len(_LOOKS)], "markersize": 4, **changes}
    if len(values) > _MOST_MARKED:
        look["marker"] = ""
    # Without clipping, markers at 0 and 100 % stay whole. The limits of the axis are set, so that
    # classes without a value keep their place.
    places = 1 + np.arange(len(values))
    (line,) = axes.plot(places, values, label=label, clip_on=False, **look)
    right = max(len(values) + 0.5, axes.get_xlim()[1] if len(axes.lines) > 1 else 0)
    axes.set_xlim(0.5, right)
    # A value whose neighbours have none makes no line: draw it as a dot.
    there = np.pad(np.isfinite(values), 1)
    lone = there[1:-1] & ~there[:-2] & ~there[2:]
    if not look["marker"] and lone.any():
        axes.plot(places[lone], values[lone], ".", color=line.get_color(), label="_lone")


def _plot_by_generation(axes: Axes, runs: Mapping[str, Results], names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if name in runs:
            results = runs[name]["generations"]
            accuracies = np.array([result["accuracy"] for result in results])
            deviations = [result["accuracy_deviation"] for result in results]
            _plot_by_class(axes, accuracies, name, number)
            if any(deviations):
                axes.errorbar(
                    1 + np.arange(len(accuracies)), accuracies, deviations, linestyle="none",
                    color=_LOOKS[number]["color"], alpha=0.5, capsize=2, label="_deviation",
                )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title="class-balanced accuracy (%)", xlabel="generation")
    axes.legend(fontsize=8)


def _bars(axes: Axes, parts: Mapping[str, np.ndarray]) -> None:
    """Draw the sizes of the classes as stacked bars."""
    below = np.zeros(len(next(iter(parts.values()))))
    for (label, sizes), colour in zip(parts.items(), ("#555555", "#BBBBBB"), strict=False):
        axes.bar(1 + np.arange(len(sizes)), sizes, bottom=below, label=label, color=colour)
        below = below + sizes
    axes.set(title="training images of each class", xlabel="class index")


def _sizes(results: Results) -> dict[str, np.ndarray]:
    first = _first(results)
    return {
        "labeled": _by_class(first["labeled_per_class"], results),
        "unlabeled": _by_class(first["pseudo_labels"]["examples"], results),
    }


def _recall_and_precision(
    pair: Iterable[Axes], result: Results, results: Results, name: str
) -> None:
    for axes, figure in zip(pair, ("recall", "precision"), strict=True):
        _plot_by_class(axes, _by_class(result[f"per_class_{figure}"], results), name, 0)
        axes.set(title=f"{name}: {figure} (%)", xlabel="class index", ylim=(0, 104))


# Figure 1


def _draw_1(canvas: Figure, runs: Mapping[str, Results]) -> None:
    sizes, bias, pseudo, test = canvas.subplots(1, 4)
    any_run = next(iter(runs.values()))
    _bars(sizes, _sizes(any_run))
    sizes.legend(fontsize=8)
    shown = {name: results["generations"][-1] for name, results in runs.items()}
    # CReST's first generation is FixMatch; that of CReST+ already aligns its pseudo-labels.
    if "CReST" in runs:
        first = _first(runs["CReST"])
        shown = {"FixMatch": first} | shown
        for number, figure in enumerate(("recall", "precision")):
            values = _by_class(first[f"per_class_{figure}"], any_run)
            _plot_by_class(bias, values, figure, number)
        bias.legend(fontsize=8)
    bias.set(title="FixMatch on the test set (%)", xlabel="class index", ylim=(0, 104))
    for name, result in shown.items():
        number = ("FixMatch", "CReST", "CReST+").index(name)
        for axes, values in (
            (pseudo, result["pseudo_labels"]["recall"]),
            (test, result["per_class_recall"]),
        ):
            _plot_by_class(axes, _by_class(values, any_run), name, number)
        if any_run["data"] == "cifar10":
            _plot_published(pseudo, f"{name}, unlabeled", number)
            _plot_published(test, f"{name}, test", number)
    pseudo.set(title="recall of pseudo-labels (%)", xlabel="class index", ylim=(0, 104))
    test.set(title="recall on the test set (%)", xlabel="class index", ylim=(0, 104))
    test.legend(fontsize=8)


def _plot_published(axes: Axes, name: str, number: int) -> None:
    """Draw the published values of a row of Table 5 as a thin, pale line."""
    (row,) = [row for row in TABLES[5].rows if row.name.removeprefix("w/ ") == name]
    values = np.array([figure.mean for figure in row.figures[:10] if figure is not None])
    label = (
        "_published"
        if any(each.get_label() == "the paper's" for each in axes.lines)
        else ("the paper's")
    )
    _plot_by_class(axes, values, label, number, linewidth=0.8, alpha=0.5, marker="")


# Figures 2 and 7


def _draw_pairs(canvas: Figure, runs: Mapping[str, Results]) -> None:
    """Draw recall and precision of every run's first generation, a row per run."""
    rows = canvas.subplots(len(runs), 2, squeeze=False)
    for pair, (name, results) in zip(rows, runs.items(), strict=True):
        _recall_and_precision(pair, _first(results), results, name)


# Figure 4

_ALPHAS = {"1": "1.0", "1/2": "0.5", "1/3": "", "1/4": "0.25", "0": "0.0"}


def _draw_4(canvas: Figure, runs: Mapping[str, Results]) -> None:
    rates, accuracy = canvas.subplots(1, 2)
    sizes = np.array(_first(next(iter(runs.values())))["labeled_per_class"])
    sizes = np.sort(sizes)[::-1]
    for number, name in enumerate(_ALPHAS):
        numerator, _, denominator = name.partition("/")
        alpha = float(numerator) / float(denominator or 1)
        _plot_by_class(rates, crest.sampling_rates(sizes, alpha), f"α={name}", number)
    rates.set(title="sampling rate", xlabel="class index", ylim=(0, 1.04))
    rates.legend(fontsize=8)
    _plot_by_generation(accuracy, runs, [f"α={name}" for name in _ALPHAS])


# Figure 5

_TEMPERATURES = ("1.0", "0.75", "0.5", "0.25", "0.1")
_PROGRESSIVE = "progressive t"


def _draw_5(canvas: Figure, runs: Mapping[str, Results]) -> None:
    targets, accuracy = canvas.subplots(1, 2)
    sizes = np.array(_first(next(iter(runs.values())))["labeled_per_class"], float)
    shares = np.sort(sizes)[::-1] / sizes.sum()
    for number, temperature in enumerate(_TEMPERATURES):
        powered = shares ** float(temperature)
        _plot_by_class(targets, powered / powered.sum(), f"t={temperature}", number)
    targets.set(title="target distribution", xlabel="class index")
    targets.set_ylim(bottom=0)
    targets.legend(fontsize=8)
    _plot_by_generation(accuracy, runs, [*(f"t={t}" for t in _TEMPERATURES), _PROGRESSIVE])


# Figure 6


def _draw_6(canvas: Figure, runs: Mapping[str, Results]) -> None:
    (results,) = runs.values()
    axes = canvas.subplots()
    sizes = np.sort(sum(_sizes(results).values()))[::-1]
    _bars(axes, {"training images": sizes})
    axes.set_yscale("log")


FIGURES = {
    1: PaperFigure(
        "Figure 1. Bias of FixMatch, and what CReST and CReST+ make of it",
        "CIFAR10-LT",
        (
            Curve("CReST", "cifar10_lt", _run("fixmatch", "crest", **_ON_CIFAR10)),
            Curve("CReST+", "cifar10_lt", _run("fixmatch", "crest_plus", **_ON_CIFAR10)),
        ),
        _draw_1,
        (13, 3.2),
    ),
    2: PaperFigure(
        "Figure 2. Recall and precision of FixMatch by class",
        "CIFAR10-LT and CIFAR100-LT",
        (
            Curve("CIFAR10-LT", "cifar10_lt", _run("fixmatch", "crest", **_ON_CIFAR10)),
            Curve("CIFAR100-LT", "cifar100_lt", _run("fixmatch", "crest", gamma="50", beta="0.3")),
        ),
        _draw_pairs,
        (8, 5.2),
    ),
    4: PaperFigure(
        "Figure 4. The sampling rate's α in CReST",
        "CIFAR10-LT",
        tuple(
            Curve(
                f"α={name}",
                "cifar10_lt",
                _run("fixmatch", "crest", **_ON_CIFAR10),
                {"crest.alpha": value} if value else {},
            )
            for name, value in _ALPHAS.items()
        ),
        _draw_4,
        (8, 3.2),
    ),
    5: PaperFigure(
        "Figure 5. The temperature of distribution alignment in self-training",
        "CIFAR10-LT",
        (
            *(
                Curve(
                    f"t={temperature}",
                    "cifar10_lt",
                    _run("fixmatch", "da+crest", t=temperature, **_ON_CIFAR10),
                    {"generations": "6"},
                )
                for temperature in _TEMPERATURES
            ),
            Curve(_PROGRESSIVE, "cifar10_lt", _run("fixmatch", "crest_plus", **_ON_CIFAR10)),
        ),
        _draw_5,
        (8, 3.2),
    ),
    6: PaperFigure(
        "Figure 6. Class distribution of the training set",
        "ImageNet127",
        (Curve("ImageNet127", "imagenet127", _run("fixmatch", "crest", beta="0.1")),),
        _draw_6,
        (6, 3.2),
    ),
    7: PaperFigure(
        "Figure 7. Recall and precision of other algorithms by class",
        "CIFAR10-LT",
        tuple(
            Curve(name, "cifar10_lt", _run(method, "none", **_ON_CIFAR10))
            for name, method in (
                ("Pseudo-Labeling", "pseudo_label"),
                ("Mean Teacher", "mean_teacher"),
                ("MixMatch", "mixmatch"),
            )
        ),
        _draw_pairs,
        (8, 7.4),
    ),
}
