"""Weights that every generation starts from, instead of random ones: `model.init_from`.

They are read once, when a run begins, and kept in its folder. Weights have names as in
model.safetensors of an export, such as `params/Conv_0/kernel` and `batch_stats/BatchNorm_0/mean`.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from etils.epath import Path
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Shaped
from ml_collections import ConfigDict

from crest_jax import files, program, trained, workdir
from crest_jax.data.splits import Splits
from crest_jax.errors import ConfigError, DataError, UnavailableError, WorkdirError
from crest_jax.layout import RunFolder
from crest_jax.models import keras_names
from crest_jax.models.wide_resnet import WideResNet
from crest_jax.wording import some

Weights = Mapping[str, Float[np.ndarray, "..."]]

_EXPORTED = "model.safetensors"
# The entry of a kept file's metadata that holds the digest of its weights.
_DIGEST = "sha256"
# What to do about a kept file that is missing or damaged.
_WAY_OUT = "restore it, or start over with another --workdir"


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
                parts.append(f"{len(names)} {what} ({some(names)})")
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
      UnavailableError: The file or the checkpoint cannot be read at the moment.
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
        raise DataError(
            f"model.init_from={file} cannot be read as weights ({files.reason(error)}): it is "
            "damaged or of another kind; write it again, or name another"
        ) from error
    return {_name(given): value for given, value in found.items()}


def _name(given: str) -> str:
    """Return the name of a weight with `/` between its parts, which may have dots in that case."""
    given = given.removesuffix(":0")
    return given if "/" in given else given.replace(".", "/")


def named_in(config: ConfigDict, folder: RunFolder) -> dict[str, Float[np.ndarray, "..."]] | None:
    """Read the weights that a config names; None if it names none, or the run has kept them.

    No other host is waited for, so that one may read them for all.

    Raises:
      ConfigError, DataError, UnavailableError: As for `read`.
      WorkdirError: As for `read`; or generations have begun with weights that the run no longer
        has, of which the source may have changed.
    """
    source = config.model.init_from
    if not source:
        return None
    if folder.initial_weights.exists():
        began_with = workdir.read_config(folder.path).model.init_from
        if source != began_with:
            logging.warning(
                "model.init_from=%s is not read: the run keeps the weights that it read from %s",
                source,
                began_with,
            )
        return None
    if any(folder.generation(number).path.exists() for number in range(config.generations)):
        raise WorkdirError(f"{folder.initial_weights} is missing", _WAY_OUT)
    return read(files.given(source, "model.init_from"))


def keep(folder: RunFolder, weights: Weights) -> None:
    """Write the weights that a run's generations start from into its folder, with a digest.

    Raises:
      WorkdirError: The file cannot be written.
    """
    plain = {name: np.asarray(value, order="C") for name, value in weights.items()}
    content = safetensors.numpy.save(plain, metadata={_DIGEST: _digest(plain)})
    files.write_bytes(folder.initial_weights, content)


def kept(config: ConfigDict, folder: RunFolder) -> dict[str, Float[np.ndarray, "..."]] | None:
    """Read what `keep` has written; None if every generation starts from random weights.

    Raises:
      WorkdirError: The file is missing or damaged.
      UnavailableError: The file cannot be read at the moment.
    """
    if not config.model.init_from:
        return None
    path = folder.initial_weights
    try:
        content = files.read_bytes(path)
        weights = safetensors.numpy.load(content)
        # The file begins with the length of its header, which is JSON; the library leaves it out.
        length = int.from_bytes(content[:8], "little")
        digest = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_DIGEST)
    except UnavailableError:
        raise
    except FileNotFoundError as error:
        raise WorkdirError(f"{path} is missing", _WAY_OUT) from error
    except Exception as error:  # whatever a library raises on a damaged file
        raise WorkdirError(f"{path} is damaged ({files.reason(error)})", _WAY_OUT) from error
    # A flipped bit may well leave a file that can be read.
    if digest != _digest(weights):
        raise WorkdirError(f"{path} is not what was written", _WAY_OUT)
    return weights


def _digest(weights: Weights) -> str:
    """Return the SHA-256 of weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name!r} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


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
            f"model.init_from has weights of another model than config.model: {some(wrong)}"
        )
    if not weights:
        raise DataError(
            f"model.init_from has none of the model's weights: it has {some(sorted(given))}, "
            f"and the model {some(sorted(shapes))}"
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
