"""A run on disk, for use from Python: `crest_jax.load`."""

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import files, results
from crest_jax.errors import ConfigError
from crest_jax.layout import RunFolder
from crest_jax.wording import shown

if TYPE_CHECKING:  # imported when they are needed, since they import JAX or many modules
    from crest_jax.data.pseudo_labels import PseudoLabels
    from crest_jax.data.records import Images
    from crest_jax.trained import Trained


def load(folder: str | os.PathLike[str]) -> "SavedRun":
    """Return a run that has finished one generation or more.

    Args:
      folder: the run's folder, on a disk or in a bucket (gs://).

    Raises:
      ConfigError: The folder is not a path.
      WorkdirError: The folder is not a run of this version, or no generation of it is finished.
      UnavailableError: Its results cannot be read at the moment.

    Example:
      run = crest_jax.load("runs/mnist_lt")
      run.results["accuracy"]
      run.model().predict(images).labels
    """
    run = SavedRun(files.given(folder, "folder"))
    run.results  # noqa: B018, raises the error if there is one
    return run


class SavedRun:
    """A run that has finished one generation or more.

    Its results are read when they are first asked for, and do not change after that. Generations
    are numbered from 1, as on the command line and in all tables and pages. Only files number them
    from 0: the names of folders, `generation_00` and so on, and the field `generation` of
    result.json and results.json, which `results` gives as they are.

    Attributes:
      path: the run's folder.
    """

    def __init__(self, path: Path):
        """Refer to a folder; use `load`, which also looks whether it is a run."""
        self.path = path
        self._folder = RunFolder(path)

    def __repr__(self) -> str:
        return (
            f"SavedRun({str(self.path)!r}: {self.results['method']}, "
            f"rebalance={self.results['rebalance']}, {self.results['data']}, "
            f"accuracy {self.results['accuracy']:.1f} %)"
        )

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json.

        `results["generations"][0]` is the first generation, and its field `generation` is 0.
        """
        return results.read(self.path)

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The config that the run was made with.

        Raises:
          WorkdirError: The run's config.json is missing or damaged.
          PluginError: It names a plug-in, `module:name`, that cannot be found.
          UnavailableError: It cannot be read at the moment.
        """
        from crest_jax import workdir

        return workdir.read_config(self.path)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return list(self.results["class_names"])

    @property
    def generations(self) -> int:
        """The number of finished generations."""
        return len(self.results["generations"])

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each generation and class, as for a data frame.

        Each has the `generation`, from 1; the `class` and its `label`; `labeled`, how many examples
        of the class the generation trained on; `recall` and `precision` on the test set; how many
        pseudo-labels were `predicted` as the class and `selected`; and the part of the selected
        ones that is `right`. Parts are in per cent. They are None where there is nothing to divide
        by, and `right` also where the true classes of the unlabeled images are not known.
        """
        return [
            {
                "generation": number,
                "class": name,
                "label": label,
                "labeled": result["labeled_per_class"][label],
                "recall": result["per_class_recall"][label],
                "precision": result["per_class_precision"][label],
                "predicted": result["pseudo_labels"]["predicted"][label],
                "selected": result["pseudo_labels"]["selected"][label],
                "right": result["pseudo_labels"]["selected_precision"][label],
            }
            for number, result in enumerate(self.results["generations"], start=1)
            for label, name in enumerate(self.class_names)
        ]

    def images(self, split: str) -> "Images":
        """Return the images of a split, as evaluations see them.

        Args:
          split: `labeled`, `unlabeled`, `validation` or `test`. The unlabeled ones are in the order
            of `pseudo_labels`.

        Returns:
          `ids` (a list of str), `images` (uint8 of shape [examples, height, width, channels]) and
          `labels` (int32 of shape [examples], -1 where they are not known).

        Raises:
          ConfigError: There is no such split.
          DataError: The split is missing or damaged.
          WorkdirError: The folder is an archive, or as for `config`.
          UnavailableError: The split cannot be read at the moment.
        """
        from crest_jax.data import manifest, records, views
        from crest_jax.layout import NAMES

        if split not in NAMES:
            raise ConfigError(f"split={shown(split)} must be one of {', '.join(NAMES)}")
        self._folder.check_whole()
        splits = self._folder.splits
        folder = splits.split(split)
        examples = manifest.read(folder)["examples"]
        view = views.view_of(self.config.data, manifest.channels_of(folder))
        for whole in records.ImageChunks(folder, view=view, size=max(examples, 1)):
            return whole
        shape = manifest.image_shape(splits.labeled, view.size)
        return records.Images([], np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))

    def pseudo_labels(self, generation: int) -> "PseudoLabels":
        """Return the pseudo-labels of a generation as arrays, one entry per unlabeled example.

        Args:
          generation: the number of the generation, from 1.

        Returns:
          `ids` (str), `labels`, `confidence` (in [0, 1]), `selected` and `truth` (-1 where it is
          not known), each of shape [unlabeled examples].

        Raises:
          ConfigError: There is no such generation.
          DataError: Its pseudo-labels are missing or damaged.
          WorkdirError: The folder is an archive, which has none.
          UnavailableError: They cannot be read at the moment.
        """
        from crest_jax.data import pseudo_labels

        is_whole = isinstance(generation, int | np.integer)
        if not is_whole or not 1 <= generation <= self.generations:
            raise ConfigError(
                f"generation={shown(generation)} must be between 1 and {self.generations}"
            )
        self._folder.check_whole()
        found = pseudo_labels.read(self._folder.generation(generation - 1).pseudo_labels)
        return found._replace(ids=np.char.decode(found.ids, "utf-8"))

    def model(self, generation: int | None = None) -> "Trained":
        """Return the model of a generation, with its averaged weights.

        Args:
          generation: the number of the generation, from 1; by default, the last finished one.

        Returns:
          The model, whose `predict` takes images.

        Raises:
          ConfigError: There is no such generation, or the run's config is not usable here.
          WorkdirError: Its checkpoint is missing or damaged, or the folder is an archive.
          DataError: A manifest of the run's splits is missing or damaged.
          UnavailableError: A file cannot be read at the moment.
          DeviceError: JAX cannot use the devices here.
        """
        from crest_jax import backend, trained

        backend.start()
        return trained.load(self.path, generation=generation)
