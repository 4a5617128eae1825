"""Tables, figures and pages, made from what runs leave on disk."""

from collections.abc import Sequence
from pathlib import Path

from crest_jax import results, workdir
from crest_jax.config import to_plain
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
    runs = [
        html.Run(folder.resolve().name, results.read(folder), to_plain(workdir.read_config(folder)))
        for folder in folders
    ]
    workdir.write_text(output, html.page(runs))
