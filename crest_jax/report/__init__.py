"""Tables, figures and HTML pages, made from the files of runs."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from absl import logging
from etils.epath import Path

from crest_jax import files, results, workdir
from crest_jax.config import to_plain
from crest_jax.errors import DataError
from crest_jax.wording import printable


def write(output: Path, folders: Sequence[Path], *, pictures: bool = True) -> None:
    """Write the page of one run, or of several runs compared.

    Args:
      output: the file to write.
      folders: the folders of the runs.
      pictures: whether to show some of the runs' images; images of streamed data are never shown.

    Raises:
      WorkdirError: A folder is not a run of this version, or has no finished generation.
    """
    # Imported here, because loading Matplotlib would delay the first training step.
    from crest_jax.report import contents, html
    from crest_jax.report.pictures import Pictures, of_run

    paths = [files.absolute(folder) for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):  # add the parent folders, to tell them apart
        levels = zip(*(path.parent.parts for path in paths), strict=False)
        shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
        names = ["/".join(path.parts[shared:]) for path in paths]

    def pictures_of(path: Path, found: Mapping[str, Any], config: Mapping[str, Any]) -> Pictures:
        if not pictures or config["data"]["stream"]:
            return Pictures(None, None)
        try:
            generations, classes = len(found["generations"]), len(found["class_names"])
            return of_run(path, generations, classes, runs=len(paths))
        except DataError as error:
            logging.warning("%s shows no pictures: %s", output, error)
            return Pictures(None, None)

    runs = []
    for name, path in zip(names, paths, strict=True):
        found, config = results.read(path), to_plain(workdir.read_config(path))
        runs.append(
            contents.ReportedRun(printable(name), found, config, pictures_of(path, found, config))
        )
    files.write_text(output, html.page(runs))
