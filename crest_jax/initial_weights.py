"""Weights that every generation starts from, instead of random ones: `model.init_from`.

They are read once, when a run begins, and kept in its folder. Weights have names as in
model.safetensors of an export, such as `params/Conv_0/kernel` and `batch_stats/BatchNorm_0/mean`.
"""

import io
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils.epath import Path
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict

from crest_jax import files, program, trained
from crest_jax.data.splits import Splits
from crest_jax.errors import ConfigError, DataError
from crest_jax.layout import RunFolder
from crest_jax.models import keras_names
from crest_jax.models.wide_resnet import WideResNet

Weights = Mapping[str, Float[np.ndarray, "..."]]

_EXPORTED = "model.safetensors"
_MOST_NAMED = 8  # in a message


class Fitted(NamedTuple):
    """Weights for a model, and how they differ from it."""

    weights: dict[str, Shaped[np.ndarray, "..."]]
    # The names of the model's weights that are not given, and stay random.
    missing: list[str]
    # The names of given weights that the model does not have.
    extra: list[str]
    # The names of the head's weights, which are given for other classes, and stay random.
    new_head: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.weights)} weight{'' if len(self.weights) == 1 else 's'} taken"]
        for names, what in (
            (self.new_head, "left random, since the head is for other classes"),
            (self.missing, "left random, since not given"),
            (self.extra, "given, but not the model's"),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({_listed(names)})")
        return "; ".join(parts)


def read(path: Path) -> dict[str, Float[np.ndarray, "..."]]:
    """Read weights by their names.

    Args:
      path: a `.safetensors` or `.npz` file, with `/` or `.` within names; the folder of an export;
        or the folder of a run, whose averaged weights of the last finished generation are read.

    Raises:
      ConfigError: The path is none of these.
      DataError: The file cannot be read as weights.
      WorkdirError: The run has no finished generation, or its checkpoint is damaged.
    """
    if RunFolder(path).config.exists():
        return flatten_dict(jax.device_get(trained.load(path).variables), sep="/")
    file = path / _EXPORTED if path.is_dir() else path
    if not file.exists() or file.suffix not in (".safetensors", ".npz"):
        raise ConfigError(
            f"model.init_from={path} must be a .safetensors or .npz file, the folder of an export, "
            "or that of a run"
        )
    content = files.read_bytes(file)
    try:
        if file.suffix == ".safetensors":
            found = safetensors.numpy.load(content)
        else:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                found = dict(archive)
    except Exception as error:  # whatever a library raises on a damaged file
        raise DataError(f"model.init_from={file} cannot be read as weights ({error})") from error
    return {name.removesuffix(":0").replace(".", "/"): value for name, value in found.items()}


def named_in(config: ConfigDict, folder: RunFolder) -> dict[str, Float[np.ndarray, "..."]] | None:
    """Read the weights that a config names; None if it names none, or the run has kept them.

    Raises:
      ConfigError, DataError, WorkdirError: As for `read`.
    """
    if not config.model.init_from or folder.initial_weights.exists():
        return None
    return read(files.given(config.model.init_from, "model.init_from"))


def keep(folder: RunFolder, weights: Weights) -> None:
    """Write the weights that a run's generations start from into its folder."""
    files.write_bytes(folder.initial_weights, safetensors.numpy.save(dict(weights)))


def kept(config: ConfigDict, folder: RunFolder) -> dict[str, Float[np.ndarray, "..."]] | None:
    """Read what `keep` has written; None if every generation starts from random weights.

    Raises:
      DataError: The file is damaged.
    """
    return read(folder.initial_weights) if config.model.init_from else None


def fit(given: Weights, config: ConfigDict, splits: Splits) -> Fitted:
    """Match weights with those of a config's model by name and shape.

    The names of the published CReST code's network are understood too, for a Wide ResNet. The
    weights of the head are those whose shape depends on the number of classes.

    Args:
      given: the weights by name.
      config: the config, which names the model.
      splits: the data, which determines the number of classes and the shape of the images.

    Raises:
      DataError: No name is one of the model's, or a weight that is not of the head has another
        shape than the model's.
    """
    classes = len(splits.class_names)
    model, shapes = _model_and_shapes(config, classes, splits.image_shape)
    _, with_another_head = _model_and_shapes(config, classes + 1, splits.image_shape)
    if isinstance(model, WideResNet) and "conv1_conv/kernel" in given:
        ours = {
            keras_names.keras_name(tuple(name.split("/")), model.depth): name for name in shapes
        }
        given = {ours.get(name, name): value for name, value in given.items()}
    weights, new_head, wrong = {}, [], []
    for name in sorted(shapes.keys() & given.keys()):
        if given[name].shape == shapes[name]:
            weights[name] = np.asarray(given[name])
        elif shapes[name] != with_another_head[name]:
            new_head.append(name)
        else:
            wrong.append(f"{name} has shape {given[name].shape} instead of {shapes[name]}")
    if wrong:
        raise DataError(
            f"model.init_from has weights of another model than config.model: {_listed(wrong)}"
        )
    if not weights:
        raise DataError(
            f"model.init_from has none of the model's weights: it has {_listed(sorted(given))}, "
            f"and the model {_listed(sorted(shapes))}"
        )
    missing = sorted(shapes.keys() - given.keys())
    return Fitted(weights, missing, sorted(given.keys() - shapes.keys()), new_head)


def _model_and_shapes(
    config: ConfigDict, classes: int, image_shape: tuple[int, int, int]
) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """Return a config's model for a number of classes, and the shapes of its weights by name."""
    model = program.model_of(config, classes, axis_name=None)
    images = jnp.zeros((1, *image_shape))
    variables = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), images)
    return model, {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
