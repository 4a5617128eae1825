"""Flax Linen models that map images in [-1, 1] to float32 logits.

Each takes `train` (whether batch norm uses the batch's statistics) and is built with `classes`,
`depth`, `width`, `batch_norm_momentum`, `dtype` (of the computation; parameters and statistics stay
float32), `precision` (of float32 products) and `axis_name` (the mesh axis over which batch norm is
synchronised, or None). `DEPTHS` and `DEPTHS_IN_WORDS` say which depths are available.

Batch norms keep "BatchNorm" in their names, by which the optimiser exempts them from weight decay.
"""

import inspect
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from crest_jax import plugins
from crest_jax.errors import PluginError
from crest_jax.models.resnet import ResNet
from crest_jax.models.wide_resnet import WideResNet
from crest_jax.schema import shown

MODELS: dict[str, type[WideResNet] | type[ResNet]] = {"wide_resnet": WideResNet, "resnet": ResNet}


def check(name: str) -> None:
    """Check that a name is that of a model.

    Raises:
      ConfigError, PluginError: As for `make`.
    """
    if name not in MODELS:
        make(
            name, classes=2, depth=10, width=1, batch_norm_momentum=0.9, dtype=jnp.float32,
            precision=None, axis_name=None,
        )  # fmt: skip


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
    try:
        taken = inspect.signature(maker).parameters.values()
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
            names = {each.name for each in taken}
            settings = {key: value for key, value in settings.items() if key in names}
        model = maker(**settings)
    except Exception as error:  # whatever a user's function raises
        raise PluginError(
            f"model.name={name} cannot be called with {', '.join(settings)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"model.name={name} returns {shown(model)}, not a flax.linen.Module")
    return model
