"""Checks whether the results of a stage are on disk, so that the stage need not run again."""

from collections.abc import Callable
from typing import Any

from etils.epath import Path

from crest_jax import files, hosts, printing
from crest_jax.data import pseudo_labels
from crest_jax.errors import DataError, WorkdirError
from crest_jax.layout import GenerationFolder

# Takes a problem that was found, and the path of the damaged file or folder.
Say = Callable[[str, Path], None]


def made_again(problem: str, path: Path) -> str:
    """Return the words that a file or folder is damaged and will be made again."""
    return f"{problem}: {path} will be made again"


def say_redone(problem: str, path: Path) -> None:
    """Print that a file or folder is damaged and will be made again."""
    printing.say(made_again(problem, path))


def is_finished(here: GenerationFolder, *, say: Say = lambda problem, path: None) -> bool:
    """Return whether a generation's results and pseudo-labels are there and undamaged.

    Args:
      here: the generation's folder.
      say: called with each problem that is found.

    Raises:
      UnavailableError: Something cannot be read at the moment.
    """
    return (
        here.result.exists()
        and _is_undamaged(here.result, files.read_json, say)
        and is_whole(here.pseudo_labels, pseudo_labels.check, say)
    )


def is_done(folder: Path, check: Callable[[Path], Any]) -> bool:
    """Return whether a stage's folder is whole, as the first host finds for all of them.

    Args:
      folder: the folder that the stage writes.
      check: as for `is_whole`.
    """
    return hosts.from_first(is_whole, folder, check)


def is_whole(folder: Path, check: Callable[[Path], Any], say: Say = say_redone) -> bool:
    """Return whether a stage's folder is there, to the last byte.

    Args:
      folder: the folder that the stage writes.
      check: reads it, and raises DataError or WorkdirError if it is damaged.
      say: called with each problem that is found.
    """
    return files.is_whole(folder) and _is_undamaged(folder, check, say)


def _is_undamaged(path: Path, check: Callable[[Path], Any], say: Say) -> bool:
    try:
        check(path)
    except (DataError, WorkdirError) as error:
        say(error.what, path)
        return False
    return True
