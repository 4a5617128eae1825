"""Description of a model, for building it from its weights without this package."""

import dataclasses
from typing import Any

import flax.linen as nn

from crest_jax.models import resnet, wide_resnet
from crest_jax.models.resnet import ResNet
from crest_jax.models.wide_resnet import WideResNet

_LAYOUT = (
    "Images are [batch, height, width, channels]. A convolution's kernel is [height, width, in, "
    "out], is not flipped, and has no bias. A batch norm computes (x - mean) / sqrt(var + "
    "batch_norm_epsilon) * scale + bias, with mean and var of batch_stats. A dense layer's kernel"
    " is [in, out]. Layers of a kind are numbered from 0 within a block, and blocks within the "
    "model."
)
_WIDE_RESNET = (
    "x = Conv_0(input), 3 x 3, 16 filters. Then three groups, g = 0, 1, 2, of (depth - 4) / 6 "
    "blocks WideResNetBlock with 16 * width * 2**g filters. The first block of groups 1 and 2 has"
    " stride 2, every other block stride 1. A block: y = activation(BatchNorm_0(x)); s is y in "
    "the first block of a group, and x in the others; y = Conv_0(y), 3 x 3, with the stride; y = "
    "Conv_1(activation(BatchNorm_1(y))), 3 x 3, stride 1; where s has not as many channels as y, "
    "s = projection(s), 1 x 1, with the stride; x = s + y. 3 x 3 convolutions are padded with one"
    " zero on each side, 1 x 1 ones with none. Last, x = activation(BatchNorm_0(x)), its mean "
    "over height and width, and logits = Dense_0(x)."
)
_RESNET = (
    "x = activation(BatchNorm_0(Conv_0(input))), 7 x 7, 64 * width filters, stride 2, padded with"
    " three zeros on each side. x = max_pool(x), 3 x 3, stride 2, padded with one minus infinity "
    "on each side. Then four stages, s = 0, 1, 2, 3, of blocks[s] blocks Bottleneck with f = 64 *"
    " width * 2**s. The first block of stages 1 to 3 has stride 2, every other block stride 1. A "
    "block: y = activation(BatchNorm_0(Conv_0(x))), 1 x 1, f filters; y = "
    "activation(BatchNorm_1(Conv_1(y))), 3 x 3, f filters, with the stride, padded with one zero "
    "on each side; y = BatchNorm_2(Conv_2(y)), 1 x 1, 4 f filters; in the first block of a stage,"
    " x = BatchNorm_3(projection(x)), 1 x 1, 4 f filters, with the stride; x = activation(x + y)."
    " Last, the mean of x over height and width, and logits = Dense_0(x)."
)


def structure(model: nn.Module) -> dict[str, Any]:
    """Return a model's structure, ready for JSON: its numbers, and the rest in words.

    For a model that is not one of this package's, only those numbers are returned that it has.
    """
    fields = {field.name for field in dataclasses.fields(model)}
    numbers: dict[str, Any] = {
        name: getattr(model, name) for name in ("depth", "width", "classes") if name in fields
    }
    match model:
        case WideResNet():
            return numbers | {
                "batch_norm_epsilon": wide_resnet.EPSILON,
                "activation": "leaky_relu",
                "negative_slope": wide_resnet.SLOPE,
                "layout": _LAYOUT,
                "layers": _WIDE_RESNET,
            }
        case ResNet():
            return numbers | {
                "blocks": list(resnet.BLOCKS[model.depth]),
                "batch_norm_epsilon": resnet.EPSILON,
                "activation": "relu",
                "layout": _LAYOUT,
                "layers": _RESNET,
            }
    return numbers
