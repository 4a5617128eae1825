"""Line charts as inline SVG, with colours that follow the page's light or dark scheme."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 42
# Width of a letter, and the extra room that slanted labels need below the axis, in SVG units.
LETTER, SLANTED = 6.5, 34
# Number of distinct looks; further series repeat them.
LOOKS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_MOST_LABELS = 12
_MOST_MARKED = 30


class Series(NamedTuple):
    """A line of a chart; its values are None where it has a gap."""

    name: str
    values: Sequence[int | float | None]
    look: int  # number of its colour, marker and dashes, modulo `LOOKS`
    faint: bool = False  # pale and dotted, such as an earlier generation


def line_chart(
    title: str,
    series: Sequence[Series],
    labels: Sequence[str],
    x_title: str,
    *,
    within: Sequence[int | float] = (),
    counts: bool = False,
) -> str:
    """Return an HTML figure: a line chart with a legend.

    Args:
      title: The caption, which says what the values are.
      series: The lines, with at most as many values as there are labels.
      labels: The labels of the places along the horizontal axis.
      x_title: The title of the horizontal axis.
      within: Values that the vertical axis must include.
      counts: Whether the vertical axis is logarithmic, with ticks at 0 and powers of ten, so that
        small counts can be told apart beside large ones.
    """
    values = [value for each in series for value in each.values if value is not None]
    values += within
    scale = math.log1p if counts else float
    if counts:
        ticks = [0.0, *(10.0**power for power in range(len(str(int(max(values, default=1)))) + 1))]
    else:
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(
            min(values, default=0.0), max(values, default=1.0)
        )
    low, high = scale(ticks[0]), scale(ticks[-1])
    every = -(-len(labels) // _MOST_LABELS)
    shown = {place: _short(labels[place]) for place in range(0, len(labels), every)}
    room = (WIDTH - LEFT - RIGHT) / max(len(shown), 1)
    slanted = max(map(len, shown.values()), default=0) * LETTER > room
    bottom = BOTTOM + (SLANTED if slanted else 0)

    def x(place: int) -> float:
        usable = WIDTH - LEFT - RIGHT
        if len(labels) < 2:
            return LEFT + usable / 2
        return LEFT + usable * place / (len(labels) - 1)

    def y(value: int | float) -> float:
        return TOP + (HEIGHT - TOP - bottom) * (high - scale(value)) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{_number(tick)}</text>'
        )
    for place, label in shown.items():
        at = f"{x(place):.1f} {HEIGHT - bottom + 16}"
        turned, anchor = (" rotate(-35)", "end") if slanted else ("", "middle")
        parts.append(
            f'<text transform="translate({at}){turned}" text-anchor="{anchor}">'
            f"{escape(label)}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    for each in series:
        for stretch in _stretches(each.values):
            path = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in stretch)
            parts.append(f'<polyline {_stroke(each)} points="{path}"/>')
            # A lone value is always marked, as a line of one point is invisible.
            if len(labels) > _MOST_MARKED and len(stretch) > 1:
                continue
            for place, value in stretch:
                shown_value = _number(value) if counts else f"{value:.1f}"
                tip = escape(f"{each.name}, {labels[place]}: {shown_value}")
                marker = _marker(each, x(place), y(value))
                parts.append(f"<g {_fill(each)}><title>{tip}</title>{marker}</g>")
    legend = "".join(
        f'<li><svg width="28" height="12" aria-hidden="true"><line {_stroke(each)} x1="0" x2="28" '
        f'y1="6" y2="6"/><g {_fill(each)}>{_marker(each, 14.0, 6.0)}</g></svg>'
        f"{escape(each.name)}</li>"
        for each in series
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


def _stretches(values: Sequence[int | float | None]) -> Iterator[list[tuple[int, int | float]]]:
    """Yield the places and values of each part of a line between gaps."""
    for there, part in groupby(enumerate(values), key=lambda pair: pair[1] is not None):
        if there:
            yield [(place, value) for place, value in part if value is not None]


def _number(value: int | float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.1f}"


def _stroke(series: Series) -> str:
    look = series.look % LOOKS
    dashes = "2 3" if series.faint else _DASHES[look]
    faint = ' opacity="0.55"' if series.faint else ""
    return f'class="line s{look}" stroke-dasharray="{dashes}"{faint}'


def _fill(series: Series) -> str:
    faint = ' opacity="0.55"' if series.faint else ""
    return f'class="mark s{series.look % LOOKS}"{faint}'


def _marker(series: Series, x: float, y: float) -> str:
    """Return the shape of a look: circle, square, diamond, triangle (up or down) or bar."""
    match series.look % LOOKS:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        case 1:
            return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
        case look:
            corners = {
                2: ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
                3: ((0, -4), (4, 3), (-4, 3)),
                4: ((0, 4), (4, -3), (-4, -3)),
                5: ((-4, -1.3), (4, -1.3), (4, 1.3), (-4, 1.3)),
            }[look]
            points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
            return f'<polygon points="{points}"/>'


def _short(label: str) -> str:
    return label if len(label) <= 10 else label[:9] + "…"
