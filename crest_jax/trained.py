"""A trained model: a finished generation's averaged weights, and what is needed to use them."""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils.epath import Path
from jaxtyping import Float, PyTree
from ml_collections import ConfigDict

from crest_jax import checkpoints, program, results, stages, workdir
from crest_jax.config import validate
from crest_jax.data import records, splits
from crest_jax.data.decode import View, view_of
from crest_jax.errors import ConfigError, WorkdirError
from crest_jax.layout import RunFolder


class Trained(NamedTuple):
    """What one generation has come to."""

    model: nn.Module
    params: PyTree  # their moving average, which the reported figures are of
    batch_stats: PyTree
    class_names: tuple[str, ...]
    # p(y) of what the generation was trained on, for logit adjustment.
    class_distribution: Float[np.ndarray, " classes"]
    image_shape: tuple[int, int, int]
    view: View  # of an image
    max_pixels: int  # an image of more is not decoded
    generation: int  # from 1
    eval_batch_size: int


def load(folder: Path, *, generation: int | None = None, step: int | None = None) -> Trained:
    """Reads a model from a run.

    Args:
      folder: the run's.
      generation: which, from 1; the last that is finished by default.
      step: of one of the evaluations that the reported figures are of; the last by default.

    Raises:
      ConfigError: there is no such generation, or the run's config is not usable.
      WorkdirError: `folder` is not a run of this version, no generation of it is finished, or a
        checkpoint is missing or damaged.
      DataError: a manifest of its splits is missing or damaged.
    """
    config = config_of(folder)
    finished = finished_generations(folder)
    if not finished:
        raise WorkdirError(f"{folder} has no finished generation: run it to the end of one first")
    if generation is None:
        generation = finished[-1]
    if generation not in finished:
        raise ConfigError(
            f"generation {generation} is not one of those that are finished: "
            f"{', '.join(map(str, finished))}"
        )
    sizes = splits.written_sizes(config.data, RunFolder(folder).splits)
    class_names, image_shape = sizes.class_names, sizes.image_shape
    here = RunFolder(folder).generation(generation - 1)
    model = program.model_of(config, len(class_names), axis_name=None)
    examples, _ = program.unlabeled_stream(config, sizes.without_images())
    create = program.creator(config, model, image_shape, len(class_names), examples)
    steps = program.schedule_of(config).reported
    step = steps[-1] if step is None else step
    path = here.checkpoints
    if not path.is_dir():
        raise WorkdirError(f"{path} is missing: run the generation again in another workdir")
    with checkpoints.open_checkpoints(path, lasting=steps) as manager:
        if step not in manager.all_steps():
            raise WorkdirError(
                f"{path} lacks the checkpoint of step {step}, which is part of the reported "
                "figure: run the generation again in another workdir"
            )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            jax.eval_shape(create, jax.random.key(0)),
        )
        way_out = "run the generation again in another workdir"
        state = checkpoints.restore(manager, step, template, way_out=way_out)
    return Trained(
        model,
        *state.ema_weights,
        class_names,
        class_distribution(folder, generation),
        image_shape,
        view_of(config.data, image_shape[-1]),
        config.data.max_pixels,
        generation,
        config.eval_batch_size,
    )


def class_distribution(folder: Path, generation: int) -> Float[np.ndarray, " classes"]:
    """Return p(y) of what a finished generation was trained on, pseudo-labels included.

    Args:
      folder: the run's.
      generation: which, from 1.

    Raises:
      WorkdirError: its result is missing or damaged.
    """
    class_names = records.read_manifest(RunFolder(folder).splits / "labeled")["class_names"]
    path = RunFolder(folder).generation(generation - 1).result
    return program.shares(results.read_generation(path, len(class_names))["labeled_per_class"])


def config_of(folder: Path) -> ConfigDict:
    """Read a run's config.

    Raises:
      WorkdirError: `folder` is not a run, or its config is none of this program's.
      ConfigError: a field is not usable.
    """
    config = workdir.read_config(folder)
    validate(config)
    return config


def finished_generations(folder: Path) -> list[int]:
    """Which generations of a run are finished, from 1."""
    numbers = range(workdir.read_config(folder).generations)
    run = RunFolder(folder)
    return [number + 1 for number in numbers if stages.is_finished(run.generation(number))]
