"""The progress of the paper's runs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from crest_jax import results, workdir
from crest_jax.errors import WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.paper.runs import PaperRun

Results = Mapping[str, Any]  # content of a run's results.json


class Progress(NamedTuple):
    """The results of a run so far, of at least one generation."""

    results: Results
    planned: int  # number of generations that the run will have

    @property
    def generations(self) -> Sequence[Mapping[str, Any]]:
        """The results of the finished generations."""
        return self.results["generations"]

    @property
    def is_finished(self) -> bool:
        """Return whether all planned generations are finished."""
        return len(self.generations) == self.planned


def read(run: PaperRun) -> Progress | None:
    """Read the results of a run so far; None before its first generation is finished.

    Raises:
      WorkdirError: The run's files are damaged, or its config is another.
      ConfigError: As for `PaperRun.config`.
    """
    if not RunFolder(run.workdir).results.exists():
        return None
    config = run.config()
    changed = workdir.differences(workdir.read_config(run.workdir), config)
    if changed:
        raise WorkdirError(f"{run.workdir} has another config: {'; '.join(changed)}")
    return Progress(results.read(run.workdir), config.generations)


def read_all(runs: Iterable[PaperRun]) -> dict[PaperRun, Progress]:
    """Read the results of those runs that have any; print why unusable ones are left out."""
    begun = {}
    for run in runs:
        try:
            progress = read(run)
        except WorkdirError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if progress is not None:
            begun[run] = progress
    return begun


def is_finished(run: PaperRun) -> bool:
    """Return whether nothing is left to run.

    A damaged run counts as unfinished: running it will report or repair the damage.

    Raises:
      ConfigError: As for `PaperRun.config`.
    """
    try:
        progress = read(run)
    except WorkdirError:
        return False
    return progress is not None and progress.is_finished
