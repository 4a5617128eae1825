"""Tables, figures and pages, made from what runs leave on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from crest_jax import results, workdir
from crest_jax.config import to_plain
from crest_jax.errors import WorkdirError
from crest_jax.report import html

REPORT = "report.html"


def write(output: Path, folders: Sequence[Path]) -> None:
    """Writes the page of one run, or of several compared.

    Args:
      output: the file.
      folders: of the runs.

    Raises:
      WorkdirError: a folder is not a run of this version, or none of its generations is finished.
    """
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):  # told apart by the folders that they are in
        above = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(above).as_posix() for path in paths]
    runs = [
        html.Run(name, results.read(path), to_plain(workdir.read_config(path)))
        for name, path in zip(names, paths, strict=True)
    ]
    try:
        page = html.page(runs)
    except (KeyError, IndexError, TypeError) as error:
        raise WorkdirError(
            f"a {results.RESULTS} was written by another version of this program, or is damaged: "
            f"it lacks {error}"
        ) from error
    workdir.write_text(output, page)
