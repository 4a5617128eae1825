"""The plots that the paper's figures consist of.

Colours can be told apart by colour-blind readers, and markers and line styles in grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from crest_jax.paper.progress import Results

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


def largest_first(
    values: Sequence[int | float | None], results: Results
) -> Float[np.ndarray, " classes"]:
    """Return the values of the classes by the size of the classes in the labeled set of a run.

    A class without a value has NaN.
    """
    sizes = np.array(results["generations"][0]["labeled_per_class"])
    order = np.argsort(-sizes, kind="stable")
    return np.array([np.nan if value is None else value for value in values], float)[order]


def labeled_sizes(results: Results) -> Float[np.ndarray, " classes"]:
    """Return the sizes of the classes in the labeled set of a run, largest first."""
    return largest_first(results["generations"][0]["labeled_per_class"], results)


def unlabeled_sizes(results: Results) -> Float[np.ndarray, " classes"]:
    """Return the sizes of the classes in the unlabeled set, in the order of `labeled_sizes`."""
    return largest_first(results["generations"][0]["pseudo_labels"]["examples"], results)


def by_class(
    axes: Axes, values: Float[np.ndarray, " classes"], label: str, number: int, **changes: Any
) -> None:
    """Plot a line of values at 1, 2, ..., in the look with a number, with changes to that look."""
    look = {**_LOOKS[number % len(_LOOKS)], "markersize": 4, **changes}
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


def by_generation(axes: Axes, runs: Mapping[str, Results], names: Sequence[str]) -> None:
    """Plot the accuracy of those runs that are there, each in the look of its place in `names`."""
    for number, name in enumerate(names):
        if name not in runs:
            continue
        results = runs[name]["generations"]
        accuracies = np.array([result["accuracy"] for result in results])
        deviations = [result["accuracy_deviation"] for result in results]
        by_class(axes, accuracies, name, number)
        if any(deviations):
            axes.errorbar(
                1 + np.arange(len(accuracies)), accuracies, deviations, linestyle="none",
                color=_LOOKS[number]["color"], alpha=0.5, capsize=2, label="_deviation",
            )  # fmt: skip
    axes.locator_params(axis="x", integer=True)
    axes.set(title="class-balanced accuracy (%)", xlabel="generation")
    axes.legend(fontsize=8)


def bars(axes: Axes, parts: Mapping[str, Float[np.ndarray, " classes"]]) -> None:
    """Plot the sizes of the classes as stacked bars."""
    below = np.zeros(len(next(iter(parts.values()))))
    for (label, sizes), colour in zip(parts.items(), ("#555555", "#BBBBBB"), strict=False):
        axes.bar(1 + np.arange(len(sizes)), sizes, bottom=below, label=label, color=colour)
        below = below + sizes
    axes.set(title="training images of each class", xlabel="class index")
