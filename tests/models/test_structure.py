"""Models built by a reader of `model.json` who has NumPy and SciPy, and no package of ours."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.signal import correlate
from tiny_net import TinyNet

from crest_jax.models import ResNet, WideResNet
from crest_jax.models.structure import structure


class Reader:
    """Reads the `layout` of a model."""

    def __init__(self, described, weights):
        self.described, self.weights = described, weights

    def conv(self, x, name, stride=1, padding=0):
        kernel = self.weights[f"params/{name}/kernel"]
        x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        # Over height and width, for each image and filter: all channels are added up.
        maps = [
            [correlate(image, kernel[..., k], mode="valid")[..., 0] for k in range(kernel.shape[3])]
            for image in x
        ]
        return np.moveaxis(np.array(maps), 1, -1)[:, ::stride, ::stride]

    def norm(self, x, name):
        scale, bias = (self.weights[f"params/{name}/{each}"] for each in ("scale", "bias"))
        mean, var = (self.weights[f"batch_stats/{name}/{each}"] for each in ("mean", "var"))
        return (x - mean) / np.sqrt(var + self.described["batch_norm_epsilon"]) * scale + bias

    def activated(self, x):
        slope = {"relu": 0, "leaky_relu": self.described.get("negative_slope")}
        return np.where(x > 0, x, slope[self.described["activation"]] * x)

    def dense(self, x):
        return x @ self.weights["params/Dense_0/kernel"] + self.weights["params/Dense_0/bias"]


def wide_resnet(reader, x):
    x = reader.conv(x, "Conv_0", padding=1)
    blocks = (reader.described["depth"] - 4) // 6
    for number in range(3 * blocks):
        group, block = divmod(number, blocks)
        filters, name = 16 * reader.described["width"] * 2**group, f"WideResNetBlock_{number}"
        stride = 2 if group and not block else 1
        y = reader.activated(reader.norm(x, f"{name}/BatchNorm_0"))
        s = x if block else y
        y = reader.conv(y, f"{name}/Conv_0", stride, padding=1)
        y = reader.activated(reader.norm(y, f"{name}/BatchNorm_1"))
        y = reader.conv(y, f"{name}/Conv_1", padding=1)
        if s.shape[-1] != filters:
            s = reader.conv(s, f"{name}/projection", stride)
        x = s + y
    return reader.dense(reader.activated(reader.norm(x, "BatchNorm_0")).mean((1, 2)))


def resnet(reader, x):
    x = reader.activated(reader.norm(reader.conv(x, "Conv_0", 2, padding=3), "BatchNorm_0"))
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    x = windows[:, ::2, ::2].max((-2, -1))
    number = 0
    for stage, blocks in enumerate(reader.described["blocks"]):
        for block in range(blocks):
            name, stride = f"Bottleneck_{number}", 2 if stage and not block else 1
            number += 1

            def layer(x, k, *where, name=name):
                x = reader.conv(x, f"{name}/Conv_{k}", *where)
                return reader.norm(x, f"{name}/BatchNorm_{k}")

            y = reader.activated(layer(x, 0))
            y = layer(reader.activated(layer(y, 1, stride, 1)), 2)
            if not block:
                x = reader.norm(reader.conv(x, f"{name}/projection", stride), f"{name}/BatchNorm_3")
            x = reader.activated(x + y)
    return reader.dense(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("model", "read"),
    [
        (WideResNet(classes=3, depth=16, width=1), wide_resnet),
        (ResNet(classes=3, depth=14, width=1), resnet),
    ],
)
def test_a_model_can_be_built_from_its_weights_and_what_is_said_of_it(model, read):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 9, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    # Statistics and scales as after training: none is 0 or 1.
    weights = {
        name: rng.uniform(0.5, 1.5, leaf.shape) if leaf.ndim == 1
        else rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        for name, leaf in flatten_dict(shapes, sep="/").items()
    }  # fmt: skip
    reader = Reader(json.loads(json.dumps(structure(model))), weights)
    variables = unflatten_dict({n: np.float32(value) for n, value in weights.items()}, sep="/")
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(ours, read(reader, np.array(images, float)), rtol=1e-3, atol=1e-3)


def test_of_another_model_there_are_the_numbers_alone():
    assert structure(TinyNet(classes=7)) == {"depth": 10, "width": 1, "classes": 7}
