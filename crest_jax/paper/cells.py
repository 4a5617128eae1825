"""The cells of a table, and the runs that our value in each of them comes from."""

from collections.abc import Sequence
from typing import NamedTuple

from crest_jax.paper.published import Column, PaperTable, Row, Value
from crest_jax.paper.runs import PaperRun, Setting


class PaperCell(NamedTuple):
    """A published value of a table, and the runs that ours comes from, one for each fold."""

    row: Row
    column: Column
    published: Value
    runs: tuple[PaperRun, ...]


def of_table(table: PaperTable, setting: Setting) -> list[PaperCell]:
    """Return every cell that has a published value and is run in this setting, row by row."""
    return [
        PaperCell(
            row,
            column,
            published,
            setting.runs(column.experiment, {**row.arguments, **column.arguments}),
        )
        for row in table.rows
        for column, published in zip(table.columns, row.published, strict=True)
        if published is not None and setting.includes(column.experiment)
    ]


def named_runs(found: Sequence[PaperCell]) -> dict[PaperRun, list[str]]:
    """Return every run once, with the names of the cells that come from it."""
    columns: dict[PaperRun, dict[str, list[str]]] = {}
    for cell in found:
        for run in cell.runs:
            columns.setdefault(run, {}).setdefault(cell.row.name, []).append(cell.column.name)
    return {
        run: [f"{row} ({'; '.join(names)})" for row, names in of_row.items()]
        for run, of_row in columns.items()
    }
