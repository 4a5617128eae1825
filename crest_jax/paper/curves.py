"""The curves of a figure, the runs that they come from, and the progress of these."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crest_jax.paper import progress
from crest_jax.paper.figures import PaperFigure
from crest_jax.paper.progress import Progress, Results
from crest_jax.paper.runs import PaperRun, Setting


class Finished(NamedTuple):
    """The finished runs that a figure can be drawn from so far."""

    folds: Mapping[str, Sequence[Results]]  # the finished folds of each curve that has any
    missing: Sequence[str]  # the names of curves that lack folds, and how far these have come

    @property
    def remarks(self) -> list[str]:
        """Remarks on the figure: how many folds it is the mean of, and what is not finished."""
        most = max(map(len, self.folds.values()), default=0)
        return [
            *([f"Mean and standard deviation of {most} folds"] if most > 1 else []),
            *([f"Not finished: {', '.join(self.missing)}"] if self.missing else []),
        ]


def of_figure(figure: PaperFigure, setting: Setting) -> dict[str, tuple[PaperRun, ...]]:
    """Return the runs of every curve of a figure in this setting, one for each fold."""
    return {
        curve.name: setting.runs(curve.experiment, curve.arguments, curve.fields)
        for curve in figure.curves
        if setting.includes(curve.experiment)
    }


def named_runs(curves: Mapping[str, Sequence[PaperRun]]) -> dict[PaperRun, list[str]]:
    """Return every run, with the name of its curve."""
    return {run: [name] for name, of_curve in curves.items() for run in of_curve}


def collect(curves: Mapping[str, Sequence[PaperRun]]) -> Finished:
    """Read the results of the finished runs of curves; print why unusable runs are left out."""
    begun = progress.read_all(named_runs(curves))
    folds, missing = {}, []
    for name, of_curve in curves.items():
        there = [begun[run] for run in of_curve if run in begun]
        complete = [one.results for one in there if one.is_finished]
        if complete:
            folds[name] = complete
        if len(complete) < len(of_curve):
            missing.append(f"{name}{_so_far(there, len(complete), len(of_curve))}")
    return Finished(folds, missing)


def _so_far(begun: Sequence[Progress], finished: int, folds: int) -> str:
    """Return how far the runs of an unfinished curve have come; empty where there is nothing."""
    if finished:
        return f" ({finished} of {folds} folds are)"
    if folds == 1 and begun:
        return f" ({len(begun[0].generations)} of {begun[0].planned} generations)"
    return ""
