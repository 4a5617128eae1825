"""Conversion of the published CReST code's weights, whose Keras layers have other names than ours.

Its Wide ResNet has the layers `conv1_conv`; `conv2_block1_preact_bn`, `conv2_block1_0_conv` and so
on, for the blocks of groups 2 to 4; `post_bn`; and `predictions`. Kernels and statistics have the
same layout as ours, so that only names change.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, PyTree

from crest_jax.errors import DataError
from crest_jax.models.wide_resnet import WideResNet

_LAYERS = {"Conv_0": "conv1_conv", "BatchNorm_0": "post_bn", "Dense_0": "predictions"}
_LAYERS_OF_BLOCK = {
    "BatchNorm_0": "preact_bn",
    "projection": "0_conv",
    "Conv_0": "1_conv",
    "BatchNorm_1": "1_bn",
    "Conv_1": "2_conv",
}
_STATISTICS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def from_keras(
    weights: Mapping[str, Float[np.ndarray, "..."]], model: WideResNet
) -> dict[str, PyTree]:
    """Return a model's variables, `params` and `batch_stats`, from the published network's.

    The published code keeps two networks whose weights have the same names: the one that is
    trained, and its running average, which the published results are computed with.

    Args:
      weights: the array of each Keras name, such as `conv2_block1_1_conv/kernel`, with or without
        the `:0` that TensorFlow appends. Names that belong to no layer are ignored.
      model: a model with the depth, width and number of classes that the weights were trained with.

    Raises:
      DataError: A weight of the model is missing or has another shape, or the weights have a layer
        that the model does not have.

    Example:
      weights = {variable.name: variable.numpy() for variable in keras_model.variables}
      variables = from_keras(weights, WideResNet(classes=10))
      logits = WideResNet(classes=10).apply(variables, images, train=False)
    """
    given = {name.removesuffix(":0"): value for name, value in weights.items()}
    channels = np.shape(given.get("conv1_conv/kernel", np.zeros((3, 3, 3, 16))))[-2]
    images = jnp.zeros((1, 8, 8, channels))
    expected = flatten_dict(
        jax.eval_shape(lambda key: model.init(key, images, train=True), jax.random.key(0))
    )
    name_of = {path: keras_name(path, model.depth) for path in expected}
    for path, name in name_of.items():
        found = np.shape(given[name]) if name in given else "missing"
        if found != expected[path].shape:
            raise DataError(
                f"weight {name} is {found}, and must have shape {expected[path].shape} in a Wide "
                f"ResNet of depth {model.depth}, width {model.width} and {model.classes} classes"
            )
    layers = {name.partition("/")[0] for name in name_of.values()}
    for name in given:
        layer = name.partition("/")[0]
        if "_block" in layer and layer not in layers:
            raise DataError(f"weight {name} is left over by a Wide ResNet of depth {model.depth}")
    return unflatten_dict(
        {path: np.asarray(given[name], np.float32) for path, name in name_of.items()}
    )


def keras_name(path: tuple[str, ...], depth: int) -> str:
    """Return the published name of the variable of a `WideResNet` at a path.

    Args:
      path: path of the variable, such as `("params", "WideResNetBlock_0", "Conv_0", "kernel")`.
      depth: depth of the network.
    """
    _, *block, layer, leaf = path
    if block:
        blocks = (depth - 4) // 6
        group, within = divmod(int(block[0].removeprefix("WideResNetBlock_")), blocks)
        name = f"conv{group + 2}_block{within + 1}_{_LAYERS_OF_BLOCK[layer]}"
    else:
        name = _LAYERS[layer]
    return f"{name}/{_STATISTICS[leaf] if layer.startswith('BatchNorm') else leaf}"
