"""The comparison of our values with the published ones, cell by cell."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from crest_jax.errors import WorkdirError
from crest_jax.paper import cells, progress
from crest_jax.paper.cells import PaperCell
from crest_jax.paper.progress import Progress
from crest_jax.paper.published import Column, Row, Value


class ComparedCell(NamedTuple):
    """A cell of a table: the published value, and ours from the folds that have it so far."""

    row: str
    column: str
    published: Value
    by_fold: tuple[float, ...]  # our value in each fold that has it
    folds: int  # how many there will be

    @property
    def ours(self) -> Value | None:
        """Our value over folds; None before the first fold has one."""
        if not self.by_fold:
            return None
        deviation = float(np.std(self.by_fold)) if len(self.by_fold) > 1 else None
        return Value(float(np.mean(self.by_fold)), deviation)

    @property
    def difference(self) -> float | None:
        """Our mean minus the published one; None before the first fold has one."""
        return None if self.ours is None else self.ours.mean - self.published.mean


def compare(found: Sequence[PaperCell]) -> list[ComparedCell]:
    """Compare our value with the published one in every cell; print why runs are left out."""
    begun = progress.read_all(cells.named_runs(found))
    compared = []
    for cell in found:
        ours = []
        for run in cell.runs:
            if run not in begun:
                continue
            try:
                ours.append(value_of(begun[run], cell.row, cell.column))
            except WorkdirError as error:
                print(f"left out: {run.workdir}: {error}", file=sys.stderr)
                del begun[run]
        by_fold = tuple(value for value in ours if value is not None)
        compared.append(
            ComparedCell(cell.row.name, cell.column.name, cell.published, by_fold, len(cell.runs))
        )
    return compared


def value_of(so_far: Progress, row: Row, column: Column) -> int | float | None:
    """Return our value from one run so far; None where the run has not come that far.

    Runs at a smaller scale than the paper's may have fewer generations: a generation beyond the
    run's last one is replaced by the last.

    Raises:
      WorkdirError: The run's results.json lacks the value.
    """
    wanted = min(column.generation or row.generation or so_far.planned, so_far.planned)
    if len(so_far.generations) < wanted:
        return None
    value: Any = so_far.generations[wanted - 1]
    try:
        for key in row.reported.split("."):
            value = value[key]
        if not isinstance(value, list):
            return value
        if column.label is not None:
            return value[column.label]
    except (KeyError, IndexError, TypeError) as error:
        raise WorkdirError(f"its results.json lacks {row.reported}") from error
    known = [of_class for of_class in value if of_class is not None]
    return float(np.mean(known)) if known else None
