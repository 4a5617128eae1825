"""The paper's figures, drawn from the results.json files of runs.

A curve is the mean over folds; with several folds, error bars show their standard deviation.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crest_jax.paper import plots
from crest_jax.paper.progress import Results
from crest_jax.paper.published import TABLES, arguments_of
from crest_jax.rebalancing import crest
from crest_jax.report.figures import STYLE, mean_of_folds


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


def render(
    figure: PaperFigure, runs: Mapping[str, Sequence[Results]], remarks: Sequence[str], kind: str
) -> bytes:
    """Draw a figure, and return the content of its file.

    Args:
      figure: the figure.
      runs: contents of results.json files by the names of the figure's curves, one for each
        finished fold; at least one curve.
      remarks: lines for below the title, on the runs' setting and on missing runs.
      kind: the file format: "svg", "pdf" or "png".
    """
    with mpl.rc_context(STYLE):
        content = io.BytesIO()
        draw(figure, runs, remarks).savefig(content, format=kind, dpi=200)
        return content.getvalue()


def draw(
    figure: PaperFigure, runs: Mapping[str, Sequence[Results]], remarks: Sequence[str]
) -> Figure:
    """Draw a figure. Arguments are as for `render`."""
    made = Figure(figsize=figure.size, layout="constrained")
    figure.draw(made, {name: mean_of_folds(folds) for name, folds in runs.items()})
    lines = [textwrap.fill(line, int(15 * figure.size[0])) for line in (figure.title, *remarks)]
    made.suptitle("\n".join(lines), fontsize=10)
    return made


def _on_cifar10(name: str, arguments: str, fields: Mapping[str, str] = {}) -> Curve:
    """Return a curve of a run on CIFAR10-LT with γ = 100 and β = 10 %."""
    return Curve(name, "cifar10_lt", arguments_of(f"{arguments},gamma=100,beta=0.1"), fields)


# Figure 1


def _draw_1(canvas: Figure, runs: Mapping[str, Results]) -> None:
    sizes, bias, pseudo, test = canvas.subplots(1, 4)
    any_run = next(iter(runs.values()))
    labeled, unlabeled = plots.labeled_sizes(any_run), plots.unlabeled_sizes(any_run)
    plots.bars(sizes, {"labeled": labeled, "unlabeled": unlabeled})
    sizes.legend(fontsize=8)
    shown = {name: results["generations"][-1] for name, results in runs.items()}
    # CReST's first generation is FixMatch; that of CReST+ already aligns its pseudo-labels.
    if "CReST" in runs:
        first = runs["CReST"]["generations"][0]
        shown = {"FixMatch": first} | shown
        for number, measure in enumerate(("recall", "precision")):
            values = plots.largest_first(first[f"per_class_{measure}"], any_run)
            plots.by_class(bias, values, measure, number)
        bias.legend(fontsize=8)
    bias.set(title="FixMatch on the test set (%)", xlabel="class index", ylim=(0, 104))
    for name, result in shown.items():
        number = ("FixMatch", "CReST", "CReST+").index(name)
        for axes, values in (
            (pseudo, result["pseudo_labels"]["recall"]),
            (test, result["per_class_recall"]),
        ):
            plots.by_class(axes, plots.largest_first(values, any_run), name, number)
        if any_run["data"] == "cifar10":
            _plot_published(pseudo, f"{name}, unlabeled", number)
            _plot_published(test, f"{name}, test", number)
    pseudo.set(title="recall of pseudo-labels (%)", xlabel="class index", ylim=(0, 104))
    test.set(title="recall on the test set (%)", xlabel="class index", ylim=(0, 104))
    test.legend(fontsize=8)


def _plot_published(axes: Axes, name: str, number: int) -> None:
    """Draw the published values of a row of Table 5 as a thin, pale line."""
    (row,) = [row for row in TABLES[5].rows if row.name.removeprefix("w/ ") == name]
    recall = np.array([value.mean for value in row.published[:10] if value is not None])
    is_first = all(line.get_label() != "the paper's" for line in axes.lines)
    label = "the paper's" if is_first else "_published"
    plots.by_class(axes, recall, label, number, linewidth=0.8, alpha=0.5, marker="")


# Figures 2 and 7


def _draw_pairs(canvas: Figure, runs: Mapping[str, Results]) -> None:
    """Draw recall and precision of every run's first generation, a row per run."""
    rows = canvas.subplots(len(runs), 2, squeeze=False)
    for pair, (name, results) in zip(rows, runs.items(), strict=True):
        first = results["generations"][0]
        for axes, measure in zip(pair, ("recall", "precision"), strict=True):
            values = plots.largest_first(first[f"per_class_{measure}"], results)
            plots.by_class(axes, values, name, 0)
            axes.set(title=f"{name}: {measure} (%)", xlabel="class index", ylim=(0, 104))


# Figure 4

_ALPHAS = {"1": "1.0", "1/2": "0.5", "1/3": "", "1/4": "0.25", "0": "0.0"}


def _draw_4(canvas: Figure, runs: Mapping[str, Results]) -> None:
    rates, accuracy = canvas.subplots(1, 2)
    sizes = plots.labeled_sizes(next(iter(runs.values())))
    for number, name in enumerate(_ALPHAS):
        numerator, _, denominator = name.partition("/")
        alpha = float(numerator) / float(denominator or 1)
        plots.by_class(rates, crest.sampling_rates(sizes, alpha), f"α={name}", number)
    rates.set(title="sampling rate", xlabel="class index", ylim=(0, 1.04))
    rates.legend(fontsize=8)
    plots.by_generation(accuracy, runs, [f"α={name}" for name in _ALPHAS])


# Figure 5

_TEMPERATURES = ("1.0", "0.75", "0.5", "0.25", "0.1")
_PROGRESSIVE = "progressive t"


def _draw_5(canvas: Figure, runs: Mapping[str, Results]) -> None:
    targets, accuracy = canvas.subplots(1, 2)
    sizes = plots.labeled_sizes(next(iter(runs.values())))
    shares = sizes / sizes.sum()
    for number, temperature in enumerate(_TEMPERATURES):
        powered = shares ** float(temperature)
        plots.by_class(targets, powered / powered.sum(), f"t={temperature}", number)
    targets.set(title="target distribution", xlabel="class index")
    targets.set_ylim(bottom=0)
    targets.legend(fontsize=8)
    plots.by_generation(accuracy, runs, [*(f"t={t}" for t in _TEMPERATURES), _PROGRESSIVE])


# Figure 6


def _draw_6(canvas: Figure, runs: Mapping[str, Results]) -> None:
    (results,) = runs.values()
    axes = canvas.subplots()
    sizes = plots.labeled_sizes(results) + plots.unlabeled_sizes(results)
    plots.bars(axes, {"training images": np.sort(sizes)[::-1]})
    axes.set_yscale("log")


FIGURES = {
    1: PaperFigure(
        "Figure 1. Bias of FixMatch, and what CReST and CReST+ make of it",
        "CIFAR10-LT",
        (
            _on_cifar10("CReST", "method=fixmatch,rebalance=crest"),
            _on_cifar10("CReST+", "method=fixmatch,rebalance=crest_plus"),
        ),
        _draw_1,
        (13, 3.2),
    ),
    2: PaperFigure(
        "Figure 2. Recall and precision of FixMatch by class",
        "CIFAR10-LT and CIFAR100-LT",
        (
            _on_cifar10("CIFAR10-LT", "method=fixmatch,rebalance=crest"),
            Curve(
                "CIFAR100-LT",
                "cifar100_lt",
                arguments_of("method=fixmatch,rebalance=crest,gamma=50,beta=0.3"),
            ),
        ),
        _draw_pairs,
        (8, 5.2),
    ),
    4: PaperFigure(
        "Figure 4. The sampling rate's α in CReST",
        "CIFAR10-LT",
        tuple(
            _on_cifar10(
                f"α={name}",
                "method=fixmatch,rebalance=crest",
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
                _on_cifar10(
                    f"t={temperature}",
                    f"method=fixmatch,rebalance=da+crest,t={temperature}",
                    {"generations": "6"},
                )
                for temperature in _TEMPERATURES
            ),
            _on_cifar10(_PROGRESSIVE, "method=fixmatch,rebalance=crest_plus"),
        ),
        _draw_5,
        (8, 3.2),
    ),
    6: PaperFigure(
        "Figure 6. Class distribution of the training set",
        "ImageNet127",
        (
            Curve(
                "ImageNet127",
                "imagenet127",
                arguments_of("method=fixmatch,rebalance=crest,beta=0.1"),
            ),
        ),
        _draw_6,
        (6, 3.2),
    ),
    7: PaperFigure(
        "Figure 7. Recall and precision of other algorithms by class",
        "CIFAR10-LT",
        tuple(
            _on_cifar10(name, f"method={method},rebalance=none")
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
