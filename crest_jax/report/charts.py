"""Line charts as inline SVG, whose colours follow the page's light or dark scheme."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
# Series after that many look like earlier ones.
LOOKS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_MOST_LABELS = 12
_MOST_MARKED = 30


class Series(NamedTuple):
    """A line; None where it has no value."""

    name: str
    values: Sequence[int | float | None]
    look: int  # which colour, marker and dashes
    faint: bool = False  # as what came before another


def line_chart(title: str, series: Sequence[Series], labels: Sequence[str], x_title: str) -> str:
    """A figure with a legend, as HTML.

    Args:
      title: what the values are.
      series: lines of as many values as there are labels, or fewer.
      labels: of the places along the horizontal axis.
      x_title: what these are.
    """
    values = [value for each in series for value in each.values if value is not None]
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(
        min(values, default=0.0), max(values, default=1.0)
    )
    low, high = float(ticks[0]), float(ticks[-1])

    def x(place: int) -> float:
        usable = WIDTH - LEFT - RIGHT
        if len(labels) < 2:
            return LEFT + usable / 2
        return LEFT + usable * place / (len(labels) - 1)

    def y(value: int | float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/><text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    every = -(-len(labels) // _MOST_LABELS)
    for place in range(0, len(labels), every):
        parts.append(
            f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{escape(_short(labels[place]))}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    for each in series:
        points = [
            (x(place), y(value), labels[place], value)
            for place, value in enumerate(each.values)
            if value is not None
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        parts.append(f'<polyline {_stroke(each)} points="{path}"/>')
        if len(labels) <= _MOST_MARKED:
            for px, py, label, value in points:
                tip = escape(f"{each.name}, {label}: {value:.1f}")
                parts.append(f"<g {_fill(each)}><title>{tip}</title>{_marker(each, px, py)}</g>")
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


def _stroke(series: Series) -> str:
    look = series.look % LOOKS
    dashes = "2 3" if series.faint else _DASHES[look]
    faint = ' opacity="0.55"' if series.faint else ""
    return f'class="line s{look}" stroke-dasharray="{dashes}"{faint}'


def _fill(series: Series) -> str:
    faint = ' opacity="0.55"' if series.faint else ""
    return f'class="mark s{series.look % LOOKS}"{faint}'


def _marker(series: Series, x: float, y: float) -> str:
    """Circle, square, diamond, triangles, cross: a shape for each look."""
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
