"""Tables, figures and pages, made from what runs leave on disk."""

from collections.abc import Sequence
from itertools import takewhile

from etils.epath import Path

from crest_jax import files, results, workdir
from crest_jax.config import to_plain
from crest_jax.schema import printable

REPORT = "report.html"


def write(output: Path, folders: Sequence[Path]) -> None:
    """Writes the page of one run, or of several compared.

    Args:
      output: the file.
      folders: of the runs.

    Raises:
      WorkdirError: a folder is not a run of this version, or none of its generations is finished.
    """
    # Imported only now: Matplotlib would delay the first step, which needs no page.
    from crest_jax.report import html

    paths = [files.absolute(folder) for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):  # told apart by the folders that they are in
        levels = zip(*(path.parent.parts for path in paths), strict=False)
        shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
        names = ["/".join(path.parts[shared:]) for path in paths]
    runs = [
        html.Run(printable(name), results.read(path), to_plain(workdir.read_config(path)))
        for name, path in zip(names, paths, strict=True)
    ]
    files.write_text(output, html.page(runs))
