"""A table of the paper as text, with our values beside the published ones."""

import csv
import io
from collections.abc import Sequence

from crest_jax.paper.comparison import ComparedCell
from crest_jax.paper.published import Value


def markdown(title: str, compared: Sequence[ComparedCell], *, note: str) -> str:
    """Return a Markdown table: a row per method, cells with ours, the paper's, the difference.

    Args:
      title: the title of the table.
      compared: the cells of the table.
      note: a remark on the runs' setting; may be empty.
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


def comma_separated(title: str, compared: Sequence[ComparedCell], *, note: str) -> str:
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
        numbers = [*(cell.ours or (None, None)), len(cell.by_fold), cell.folds - len(cell.by_fold),
                   *cell.published, cell.difference]  # fmt: skip
        shown = [f"{number:.2f}" if isinstance(number, float) else number for number in numbers]
        writer.writerow([title, note, cell.row, cell.column, *shown])
    return lines.getvalue()


def _cell(cell: ComparedCell) -> str:
    ours = "-" if cell.ours is None else _value(cell.ours)
    difference = "-" if cell.difference is None else f"{cell.difference:+.1f}"
    finished = f"{len(cell.by_fold)} of {cell.folds}"
    return f"{ours} ({finished}) / {_value(cell.published)} / {difference}"


def _value(value: Value) -> str:
    mean = f"{value.mean:.1f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.2f}"
