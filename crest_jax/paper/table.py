"""A table of the paper with our figures beside the published ones."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crest_jax.paper.published import Figure


class Comparison(NamedTuple):
    """A cell of a table: the published figure, and ours from the folds that have it so far."""

    row: str
    column: str
    published: Figure
    ours: tuple[float, ...]  # one for each fold that has it
    folds: int  # how many there will be

    @property
    def mean(self) -> float | None:
        """Our mean over folds; None before the first fold has one."""
        return float(np.mean(self.ours)) if self.ours else None

    @property
    def deviation(self) -> float | None:
        """Our standard deviation over folds; None with fewer than two."""
        return float(np.std(self.ours)) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the published one; None before the first fold has one."""
        return None if self.mean is None else self.mean - self.published.mean


def markdown(title: str, compared: Sequence[Comparison], *, note: str) -> str:
    """Return a Markdown table: a row per method, cells with ours, the paper's, the difference.

    Args:
      title: The title of the table.
      compared: The cells of the table.
      note: A remark on the runs' scale; may be empty.
    """
    columns = list(dict.fromkeys(cell.column for cell in compared))
    lines = [f"**{title}**", ""]
    lines += [f"**{note}**", ""] if note else []
    lines += ["Each cell: ours (finished folds) / the paper's / the difference.", ""]
    lines += [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in dict.fromkeys(cell.row for cell in compared):
        of_row = {cell.column: cell for cell in compared if cell.row == row}
        shown = [_cell(of_row[column]) if column in of_row else "" for column in columns]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def comma_separated(title: str, compared: Sequence[Comparison], *, note: str) -> str:
    """Return CSV with a line per cell.

    Arguments are as for `markdown`; title and note are repeated in every line.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(
        ["table", "note", "row", "column", "mean", "deviation", "folds", "missing_folds",
         "paper_mean", "paper_deviation", "difference"]
    )  # fmt: skip
    for cell in compared:
        figures = [cell.mean, cell.deviation, len(cell.ours), cell.folds - len(cell.ours),
                   *cell.published, cell.difference]  # fmt: skip
        shown = [f"{figure:.2f}" if isinstance(figure, float) else figure for figure in figures]
        writer.writerow([title, note, cell.row, cell.column, *shown])
    return lines.getvalue()


def _cell(cell: Comparison) -> str:
    paper = _figure(cell.published.mean, cell.published.deviation)
    if cell.mean is None or cell.difference is None:
        return f"- (0 of {cell.folds}) / {paper} / -"
    finished = f"{len(cell.ours)} of {cell.folds}"
    ours = f"{_figure(cell.mean, cell.deviation)} ({finished})"
    return f"{ours} / {paper} / {cell.difference:+.1f}"


def _figure(mean: float, deviation: float | None) -> str:
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.2f}"
