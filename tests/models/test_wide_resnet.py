from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from crest_jax.models import WideResNet


def conv_same(x, kernel, stride):
    """NumPy/SciPy convolution of NHWC with HWIO, with SAME padding as TensorFlow defines it."""
    n, height, width, _ = x.shape
    k = kernel.shape[0]
    out_h, out_w = -(-height // stride), -(-width // stride)
    pad_h = max((out_h - 1) * stride + k - height, 0)
    pad_w = max((out_w - 1) * stride + k - width, 0)
    x = np.pad(
        x,
        [(0, 0), (pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0)],
    )
    out = np.zeros((n, out_h, out_w, kernel.shape[3]))
    for image in range(n):
        for i in range(kernel.shape[2]):
            for o in range(kernel.shape[3]):
                full = correlate2d(x[image, :, :, i], kernel[:, :, i, o], mode="valid")
                out[image, :, :, o] += full[::stride, ::stride]
    return out


def init(model, images):
    return jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def train_forward(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def reference_logits(params, stats, images, *, blocks):
    """WRN from its description, with running statistics."""

    def norm(x, p, s):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-3) * p["scale"] + p["bias"]

    def block(x, p, s, stride):
        y = leaky(norm(x, p["BatchNorm_0"], s["BatchNorm_0"]))
        y = conv_same(y, p["Conv_0"]["kernel"], stride)
        y = leaky(norm(y, p["BatchNorm_1"], s["BatchNorm_1"]))
        y = conv_same(y, p["Conv_1"]["kernel"], 1)
        if "projection" in p:
            x = conv_same(x, p["projection"]["kernel"], stride)
        return x + y

    x = conv_same(images, params["Conv_0"]["kernel"], 1)
    for index in range(3 * blocks):
        name = f"WideResNetBlock_{index}"
        stride = 2 if index % blocks == 0 and index > 0 else 1
        x = block(x, params[name], stats[name], stride)
    x = leaky(norm(x, params["BatchNorm_0"], stats["BatchNorm_0"])).mean(axis=(1, 2))
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.fixture(scope="module")
def variables():
    model = WideResNet(classes=5, depth=10, width=2)
    variables = init(model, jnp.zeros((1, 9, 8, 3)))
    # Statistics and affine parameters away from their initial 0 and 1.
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    leaves = [
        leaf + 0.2 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32) for leaf in leaves
    ]
    return jax.tree.unflatten(structure, leaves)


def test_logits_are_those_of_a_scipy_version(variables):
    model = WideResNet(classes=5, depth=10, width=2)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 9, 8, 3)).astype(np.float32)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    params, stats = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (variables["params"], variables["batch_stats"])
    )
    theirs = reference_logits(params, stats, images.astype(np.float64), blocks=1)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * np.abs(theirs).max())


def test_wrn_28_2_has_the_published_number_of_parameters():
    model = WideResNet(classes=10)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 1_467_610
    kernels = [p for p in jax.tree_util.tree_leaves_with_path(shapes["params"]) if p[1].ndim == 4]
    assert len(kernels) == 25 + 3  # 25 convolutions of 3 x 3, and 3 projections


def test_convolutions_start_with_variance_2_over_fan_out():
    model = WideResNet(classes=10, depth=10, width=4)
    variables = init(model, jnp.zeros((1, 8, 8, 3)))
    kernel = variables["params"]["WideResNetBlock_2"]["Conv_1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.02)
    assert np.abs(kernel).max() < 2.3 * np.sqrt(2 / (9 * 256))  # truncated at 2 sigma, rescaled


def test_running_statistics_move_by_one_minus_momentum():
    model = WideResNet(classes=2, depth=10, width=1, batch_norm_momentum=0.9)
    images = jax.random.uniform(jax.random.key(2), (16, 8, 8, 1), minval=-1, maxval=1)
    variables = init(model, images)
    _, updates = train_forward(model, variables, images)
    first = conv_same(np.asarray(images), np.asarray(variables["params"]["Conv_0"]["kernel"]), 1)
    moved = updates["batch_stats"]["WideResNetBlock_0"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.1 * first.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * first.var(axis=(0, 1, 2)), rtol=1e-4)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = WideResNet(classes=2, depth=10, width=1, dtype=jnp.bfloat16)
    images = jax.random.uniform(jax.random.key(3), (8, 8, 8, 1), minval=-1, maxval=1)
    variables = init(model, images)
    logits, updates = train_forward(model, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates, logits))} == {
        jnp.dtype("float32")
    }
    full = WideResNet(classes=2, depth=10, width=1)
    expected, _ = train_forward(full, variables, images)
    np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())
    assert not np.array_equal(logits, expected)
