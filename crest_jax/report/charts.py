"""Line charts: where on a page their parts stand, for a template that draws them as SVG."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

# Width of a letter, and the extra room that slanted labels need below the axis, in SVG units.
LETTER, SLANTED = 6.5, 34
# Number of distinct looks; further series repeat them.
LOOKS = 6
_MOST_LABELS = 12
_MOST_MARKED = 30


class Series(NamedTuple):
    """A line of a chart; its values are None where it has a gap."""

    name: str
    values: Sequence[int | float | None]
    look: int  # number of its colour, marker and dashes, modulo `LOOKS`
    faint: bool = False  # pale and dotted, such as an earlier generation


class Frame(NamedTuple):
    """The size of a chart and the edges of its plot, in SVG units from the top left."""

    width: int = 480
    height: int = 250
    left: int = 44
    right: int = 468
    top: int = 12
    bottom: int = 208

    @property
    def middle(self) -> int | float:
        """The middle of the horizontal axis."""
        return (self.left + self.right) / 2


class Tick(NamedTuple):
    """A line of the grid, and its number."""

    y: float
    text: str


class Label(NamedTuple):
    """A label of the horizontal axis."""

    x: float
    text: str


class Point(NamedTuple):
    """A value of a line, and the text that is shown when the pointer is on it."""

    x: float
    y: float
    tip: str


class Stretch(NamedTuple):
    """A part of a line between gaps."""

    points: Sequence[Point]
    marked: bool  # whether its points have markers


class Line(NamedTuple):
    """A series as it is drawn."""

    name: str
    look: int  # below `LOOKS`
    faint: bool
    stretches: Sequence[Stretch]


class Chart(NamedTuple):
    """A line chart; coordinates are in SVG units, with one decimal."""

    title: str
    x_title: str
    frame: Frame
    ticks: Sequence[Tick]
    labels: Sequence[Label]
    slanted: bool  # whether the labels are slanted, to have room
    lines: Sequence[Line]


def line_chart(
    title: str,
    series: Sequence[Series],
    labels: Sequence[str],
    x_title: str,
    *,
    within: Sequence[int | float] = (),
    counts: bool = False,
) -> Chart:
    """Return a line chart.

    Args:
      title: the caption, which says what the values are.
      series: the lines, with at most as many values as there are labels.
      labels: the labels of the places along the horizontal axis.
      x_title: the title of the horizontal axis.
      within: values that the vertical axis must include.
      counts: whether the vertical axis is logarithmic, with ticks at 0 and powers of ten, so that
        small counts can be told apart beside large ones.
    """
    values = [value for each in series for value in each.values if value is not None]
    ticks = _ticks([*values, *within], counts=counts)
    scale = math.log1p if counts else float
    low, high = scale(ticks[0]), scale(ticks[-1])
    every = -(-len(labels) // _MOST_LABELS)
    shown = {place: _short(labels[place]) for place in range(0, len(labels), every)}
    frame = Frame()
    room = (frame.right - frame.left) / max(len(shown), 1)
    slanted = max(map(len, shown.values()), default=0) * LETTER > room
    if slanted:
        frame = frame._replace(bottom=frame.bottom - SLANTED)

    def x(place: int) -> float:
        if len(labels) < 2:
            return round(frame.middle, 1)
        return round(frame.left + (frame.right - frame.left) * place / (len(labels) - 1), 1)

    def y(value: int | float) -> float:
        share = (high - scale(value)) / ((high - low) or 1)
        return round(frame.top + (frame.bottom - frame.top) * share, 1)

    def point(name: str, place: int, value: int | float) -> Point:
        said = _number(value) if counts else f"{value:.1f}"
        return Point(x(place), y(value), f"{name}, {labels[place]}: {said}")

    def line(of: Series) -> Line:
        parts = [[point(of.name, *pair) for pair in part] for part in _stretches(of.values)]
        # A lone value is always marked, as a line of one point is invisible.
        stretches = [
            Stretch(part, marked=len(labels) <= _MOST_MARKED or len(part) == 1) for part in parts
        ]
        return Line(of.name, of.look % LOOKS, of.faint, stretches)

    return Chart(
        title,
        x_title,
        frame,
        [Tick(y(tick), _number(tick)) for tick in ticks],
        [Label(x(place), label) for place, label in shown.items()],
        slanted,
        [*map(line, series)],
    )


def _ticks(values: Sequence[int | float], *, counts: bool) -> list[float]:
    """Return the ticks of an axis that includes all values, from the lowest to the highest."""
    if counts:
        powers = len(str(int(max(values, default=1)))) + 1
        return [0.0, *(10.0**power for power in range(powers))]
    locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    found = locator.tick_values(min(values, default=0.0), max(values, default=1.0))
    return [float(tick) for tick in found]


def _stretches(values: Sequence[int | float | None]) -> Iterator[list[tuple[int, int | float]]]:
    """Yield the places and values of each part of a line between gaps."""
    for there, part in groupby(enumerate(values), key=lambda pair: pair[1] is not None):
        if there:
            yield [(place, value) for place, value in part if value is not None]


def _number(value: int | float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.1f}"


def _short(label: str) -> str:
    return label if len(label) <= 10 else label[:9] + "…"
