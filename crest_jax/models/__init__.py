"""Flax Linen models that map images in [-1, 1] to float32 logits.

Each takes `train` (whether batch norm uses the batch's statistics) and is built with `classes`,
`depth`, `width`, `batch_norm_momentum`, `dtype` (of the computation; parameters and statistics stay
float32), `precision` (of float32 products) and `axis_name` (the axes of the mesh over which batch
norm is synchronised, or None). `DEPTHS` and `DEPTHS_IN_WORDS` say which depths are available.

Batch norms keep "BatchNorm" in their names, by which the optimiser exempts them from weight decay.
"""

import inspect
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from jaxtyping import Array, Float

from crest_jax import plugins
from crest_jax.errors import PluginError
from crest_jax.models.resnet import ResNet
from crest_jax.models.wide_resnet import WideResNet
from crest_jax.wording import shown

MODELS: dict[str, type[WideResNet] | type[ResNet]] = {"wide_resnet": WideResNet, "resnet": ResNet}


class Model(Protocol):
    """A module's call: it maps images to logits, and is told whether it is in training."""

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Return float32 logits for images in [-1, 1]."""


def make(name: str, **settings: Any) -> nn.Module:
    """Return a model.

    Args:
      name: a key of `MODELS`, or `module:name`, which is given those settings that it takes by
        name.
      **settings: all the settings that the module's docstring lists.

    Raises:
      ConfigError: There is no model of that name.
      PluginError: The object of `module:name` is missing, cannot be called with these settings, or
        does not return a `flax.linen.Module`.
    """
    maker = plugins.find(name, MODELS, field="model.name")
    if not callable(maker):
        raise PluginError(f"model.name={name} must be a flax.linen.Module, or a function of one")
    if name in MODELS:
        return maker(**settings)
    offered = ", ".join(settings)
    try:
        taken = inspect.signature(maker).parameters.values()
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
            names = {each.name for each in taken}
            settings = {key: value for key, value in settings.items() if key in names}
        model = maker(**settings)
    except Exception as error:  # whatever a user's function raises
        given = ", ".join(f"{key}={shown(value)}" for key, value in settings.items())
        how = f"with {given}" if given else f"without arguments, and names none of {offered}"
        raise PluginError(
            f"model.name={name} cannot be called {how} ({plugins.in_a_line(error)})"
        ) from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"model.name={name} returns {shown(model)}, not a flax.linen.Module")
    try:
        inspect.signature(model.__call__).bind("images", train=True)
    except TypeError as error:
        raise PluginError(
            f"model.name={name}: __call__ must take images and train, whether batch norm uses the "
            f"batch's statistics ({error})"
        ) from error
    return model


def takes_classes(name: str) -> bool:
    """Return whether a model is told the number of classes."""
    maker = MODELS.get(name) or plugins.find(name, MODELS, field="model.name")
    return any(
        each.name == "classes" or each.kind is inspect.Parameter.VAR_KEYWORD
        for each in inspect.signature(maker).parameters.values()
    )


def logits_of(
    name: str, model: nn.Module, image_shape: tuple[int, ...], *, classes: int | None = None
) -> jax.ShapeDtypeStruct:
    """Return the shape of a model's logits for two images, which nothing is computed for.

    Args:
      name: the config's, for messages.
      model: from `make`, without an axis name.
      image_shape: height, width and channels.
      classes: the number of logits that an image must have; None for any.

    Raises:
      PluginError: It needs other variables or random numbers than training has for it, or returns
        something else than logits.
    """

    def run(key: Array) -> tuple[Any, Any]:
        images = jnp.zeros((2, *image_shape))
        variables = model.init(key, images, train=True)
        strange = set(variables) - {"params", "batch_stats"}
        if "params" not in variables or strange:
            raise PluginError(
                f"model.name={name} has the variables {', '.join(variables)}: it must have params, "
                "and may have batch_stats"
            )
        training, _ = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return training, model.apply(variables, images, train=False)

    try:
        outputs = jax.eval_shape(run, jax.random.key(0))
    except InvalidRngError as error:
        raise PluginError(
            f"model.name={name} needs other random numbers than those of 'dropout' with "
            f"train=True, and none with train=False ({plugins.in_a_line(error)})"
        ) from error
    for training, found in zip((True, False), outputs, strict=True):
        if (
            not isinstance(found, jax.ShapeDtypeStruct)
            or found.dtype != jnp.float32
            or found.shape != (2, classes or (*found.shape, 0)[1])
        ):
            raise PluginError(
                f"model.name={name} returns {_in_words(found)} for 2 images with "
                f"train={training}: it must return float32 logits of shape "
                f"(2, {classes or 'classes'})"
            )
    return outputs[0]


def _in_words(found: Any) -> str:
    if isinstance(found, jax.ShapeDtypeStruct):
        return f"{found.dtype} of shape {found.shape}"
    return f"a {type(found).__name__}"
