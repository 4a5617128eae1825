"""A trained model: the averaged weights of a finished generation, and all that using them needs."""

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from etils.epath import Path
from jaxtyping import Float, Int, PyTree, UInt8
from ml_collections import ConfigDict
from numpy.typing import ArrayLike
from scipy.special import softmax

from crest_jax import checkpoints, evaluate, files, plugins, program, results, stages, workdir
from crest_jax.data import manifest, resize, splits
from crest_jax.data.views import View, view_of
from crest_jax.errors import ConfigError, WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.mesh import local_mesh, replicate
from crest_jax.rebalancing.logit_adjustment import adjustment
from crest_jax.validation import validate
from crest_jax.wording import shown


class Predictions(NamedTuple):
    """A model's predictions for some images."""

    labels: Int[np.ndarray, " images"]  # indices into the class names
    confidence: Float[np.ndarray, " images"]  # softmax probability of the label, in [0, 1]
    logits: Float[np.ndarray, "images classes"]  # after logit adjustment, if a tau is given


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The model that one generation has trained, ready for use."""

    model: nn.Module
    params: PyTree  # the moving average of the weights, whose figures are reported
    batch_stats: PyTree
    class_names: tuple[str, ...]
    # p(y) of the labels that the generation was trained on, for logit adjustment.
    class_distribution: Float[np.ndarray, " classes"]
    image_shape: tuple[int, int, int]
    view: View  # size, crop and channels of the images that the model sees
    max_pixels: int  # an image of more pixels is not decoded
    generation: int  # counted from 1
    eval_batch_size: int
    # What is compiled, by model and batch size; a user's model need not be hashable.
    _compiled: dict[tuple[int, int], evaluate.Logits] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @property
    def variables(self) -> dict[str, PyTree]:
        """The weights and statistics, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def with_weights_of(self, other: "Trained") -> "Trained":
        """Return this model with what another has learned, so that it is not compiled again.

        Args:
          other: a model of the same run, of any generation.
        """
        return dataclasses.replace(
            self,
            params=other.params,
            batch_stats=other.batch_stats,
            class_distribution=other.class_distribution,
            generation=other.generation,
        )

    def predict(self, images: ArrayLike | Sequence[ArrayLike], *, tau: float = 0.0) -> Predictions:
        """Classify images as evaluations do.

        Args:
          images: uint8 of shape [images, height, width, channels], from 0 to 255, with as many
            channels as the run's images; an array of NumPy, JAX or another library that NumPy can
            read, or a list of such images. If the run resizes its images, height and width may be
            any, and may differ within a list; otherwise they must be the run's.
          tau: strength of logit adjustment (Menon et al., 2021) by the class distribution that the
            generation was trained on, at least 0; 0 adjusts nothing.

        Raises:
          ConfigError: The images have another type or shape, or tau is out of range.
        """
        check_tau(tau)
        seen = self._seen(images)
        # A power of two, so that few sizes are compiled.
        size = min(self.eval_batch_size, 1 << max(len(seen) - 1, 0).bit_length())
        return self.predictions(self.logits(seen, batch_size=size), tau)

    def logits(
        self, images: UInt8[np.ndarray, "images height width channels"], *, batch_size: int
    ) -> Float[np.ndarray, "images classes"]:
        """Return the logits of images that are as evaluations see them, on this host's devices.

        Args:
          images: any number of images.
          batch_size: number of images that are computed together; each one is compiled.
        """
        if not len(images):
            return np.zeros((0, len(self.class_names)), np.float32)
        key = id(self.model), batch_size
        if key not in self._compiled:
            self._compiled[key] = evaluate.make_logits(
                self.model, local_mesh(), batch_size=batch_size
            )
        return self._compiled[key](*self._on_devices, images)

    def predictions(
        self, logits: Float[np.ndarray, "images classes"], tau: float = 0.0
    ) -> Predictions:
        """Return what logits predict, after logit adjustment.

        Args:
          logits: from `logits`.
          tau: as for `predict`.
        """
        if tau:
            logits = logits - adjustment(self.class_distribution, tau).astype(np.float32)
        labels = logits.argmax(axis=1)
        confidence = softmax(logits, axis=1)[np.arange(len(labels)), labels]
        return Predictions(labels, confidence, logits)

    @functools.cached_property
    def _on_devices(self) -> tuple[PyTree, PyTree]:
        """The weights and statistics, on all devices of this host."""
        return replicate((self.params, self.batch_stats), local_mesh())

    def _seen(
        self, images: ArrayLike | Sequence[ArrayLike]
    ) -> UInt8[np.ndarray, "images {self.image_shape[0]} {self.image_shape[1]} channels"]:
        """Check images, and resize them as the run's own."""
        several: Any = images
        if not isinstance(images, list | tuple):
            several = _array(images, "images")
            if not several.ndim:
                raise ConfigError(f"images={shown(images)} must be an array, or a list of arrays")
        seen = [
            self._one(_array(image, f"image {number}"), number)
            for number, image in enumerate(several)
        ]
        return np.stack(seen) if seen else np.zeros((0, *self.image_shape), np.uint8)

    def _one(self, image: np.ndarray, number: int) -> np.ndarray:
        height, width, channels = self.image_shape
        if image.ndim == 2 and channels == 1:
            image = image[..., None]
        fits = image.ndim == 3 and image.shape[-1] == channels and min(image.shape) > 0
        as_stored = image.shape[:2] == (height, width)
        if image.dtype != np.uint8 or not fits or not (self.view.size or as_stored):
            size = "height, width" if self.view.size else f"{height}, {width}"
            raise ConfigError(
                f"image {number} of type {image.dtype} and shape {list(image.shape)} must be "
                f"uint8, from 0 to 255, of shape [{size}, {channels}]"
            )
        if not self.view.size or (self.view.crop == "none" and as_stored):
            return image
        return resize.fitted(image, self.view)


def _array(image: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(image)
    except (TypeError, ValueError) as error:  # of lists of lists, or of other libraries
        raise ConfigError(
            f"{what} is {shown(image)}, and must be an array, or lists of which NumPy can make one "
            f"({files.reason(error)})"
        ) from error


def check_tau(tau: Any, name: str = "tau") -> None:
    """Check the strength of logit adjustment that a user gives.

    Args:
      tau: any value.
      name: the name of the argument or flag, for the error message.

    Raises:
      ConfigError: It is not a finite number of at least 0.
    """
    if not isinstance(tau, numbers.Real) or not 0 <= float(tau) < np.inf:
        raise ConfigError(f"{name}={shown(tau)} must be a number of at least 0, and finite")


def load(folder: Path, *, generation: int | None = None, step: int | None = None) -> Trained:
    """Read a model from a run.

    Args:
      folder: the run's folder.
      generation: number of the generation, from 1; by default, the last finished one.
      step: step of one of the evaluations that the reported figures are the mean of; by default,
        the last one.

    Raises:
      ConfigError: There is no such finished generation, or the run's config is not usable.
      WorkdirError: `folder` is not a run of this version, is an archive, no generation of it is
        finished, or a checkpoint is missing or damaged.
      DataError: A manifest of the run's splits is missing or damaged.
      UnavailableError: A file cannot be read at the moment.
    """
    config = config_of(folder)
    RunFolder(folder).check_whole()
    modules = workdir.changed_plugins(folder, config)
    changed = ", ".join(plugins.describe(module, config) for module in modules)
    if plugins.module_of(config.model.name) in modules:  # a loss is not used any more
        _warn_once(
            f"{changed} has changed since {folder} began, and is used as it is now: the model may "
            "not be the one that was trained. Restore the file to be sure"
        )
    finished = finished_generations(folder)
    if not finished:
        raise WorkdirError(f"{folder} has no finished generation: run it to the end of one first")
    if generation is None:
        generation = finished[-1]
    if not isinstance(generation, int | np.integer) or generation not in finished:
        raise ConfigError(
            f"generation {shown(generation)} is not one of those that are finished: "
            f"{', '.join(map(str, finished))}"
        )
    sizes = splits.written_sizes(config.data, RunFolder(folder).splits.path)
    class_names, image_shape = sizes.class_names, sizes.image_shape
    here = RunFolder(folder).generation(generation - 1)
    model = program.model_of(config, len(class_names), axis_name=None)
    examples = program.unlabeled_examples(config, sizes.without_images())
    create = program.creator(config, model, image_shape, len(class_names), examples)
    steps = program.schedule_of(config).reported
    step = steps[-1] if step is None else step
    path = here.checkpoints
    if not path.is_dir():
        raise WorkdirError(f"{path} is missing: run the generation again in another workdir")
    with checkpoints.open_to_read(path) as manager:
        if step not in manager.all_steps():
            raise WorkdirError(
                f"{path} lacks the checkpoint of step {step}, which is part of the reported "
                "figure: run the generation again in another workdir"
            )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            jax.eval_shape(create, jax.random.key(0)),
        )
        way_out = "run the generation again in another workdir"
        if changed:
            way_out = f"restore {changed}, which has changed since the run began"
        state = checkpoints.restore(manager, step, template, way_out=way_out)
    params, batch_stats = state.ema_weights
    return Trained(
        model,
        params,
        batch_stats,
        class_names,
        class_distribution(folder, generation),
        image_shape,
        view_of(config.data, image_shape[-1]),
        config.data.max_pixels,
        generation,
        config.eval_batch_size,
    )


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, but not again in this process: several models of a run may be read."""
    logging.warning("%s", message)


def class_distribution(folder: Path, generation: int) -> Float[np.ndarray, " classes"]:
    """Return p(y) of the labels that a finished generation was trained on, with pseudo-labels.

    Args:
      folder: the run's folder.
      generation: number of the generation, from 1.

    Raises:
      WorkdirError: The generation's result is missing or damaged.
      DataError: The manifest of the run's labeled split is missing or damaged.
      UnavailableError: A file cannot be read at the moment.
    """
    class_names = manifest.read(RunFolder(folder).splits.labeled)["class_names"]
    path = RunFolder(folder).generation(generation - 1).result
    return program.shares(results.read_generation(path, len(class_names))["labeled_per_class"])


def config_of(folder: Path) -> ConfigDict:
    """Read a run's config.

    Raises:
      WorkdirError: `folder` is not a run, or its config was not written by this program.
      ConfigError: A field is not usable.
      UnavailableError: The config cannot be read at the moment.
    """
    config = workdir.read_config(folder)
    validate(config)
    return config


def finished_generations(folder: Path) -> list[int]:
    """Return the numbers of the finished generations of a run, counted from 1.

    Raises:
      WorkdirError: `folder` is not a run, or its config was not written by this program.
      UnavailableError: A file cannot be read at the moment.
    """
    numbers = range(workdir.read_config(folder).generations)
    run = RunFolder(folder)
    return [number + 1 for number in numbers if stages.is_finished(run.generation(number))]
