from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from crest_jax.errors import DataError
from crest_jax.models import WideResNet
from crest_jax.models.keras_names import from_keras


def conv(x, kernel, stride=1):
    """SciPy convolution of NHWC with HWIO, of images with k // 2 zeros on every side."""
    around = kernel.shape[0] // 2
    x = np.pad(x, [(0, 0), (around, around), (around, around), (0, 0)])
    return np.stack(
        [
            sum(
                np.stack(
                    [correlate2d(each, kernel[:, :, i, o], mode="valid") for each in x[..., i]]
                )
                for i in range(kernel.shape[2])
            )[:, ::stride, ::stride]
            for o in range(kernel.shape[3])
        ],
        axis=-1,
    )


def init(model, images):
    return jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(0))


@partial(jax.jit, static_argnums=0)
def train_forward(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def published_logits(weights, images, *, blocks):
    """The published network in its own names, with running statistics, from its description.

    The shortcut of a group's first block begins behind its first batch norm and activation, that of
    the others before them; it is a 1 x 1 convolution where there is one.
    """

    def activated(x, name):
        gamma, beta, mean, variance = (
            weights[f"{name}/{statistic}"]
            for statistic in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return leaky((x - mean) / np.sqrt(variance + 1e-3) * gamma + beta)

    x = conv(images, weights["conv1_conv/kernel"])
    for group in (2, 3, 4):
        for block in range(1, blocks + 1):
            name = f"conv{group}_block{block}"
            stride = 2 if group > 2 and block == 1 else 1
            y = activated(x, f"{name}_preact_bn")
            shortcut = y if block == 1 else x
            if f"{name}_0_conv/kernel" in weights:
                shortcut = conv(shortcut, weights[f"{name}_0_conv/kernel"], stride)
            y = conv(y, weights[f"{name}_1_conv/kernel"], stride)
            y = conv(activated(y, f"{name}_1_bn"), weights[f"{name}_2_conv/kernel"])
            x = shortcut + y
    x = activated(x, "post_bn").mean(axis=(1, 2))
    return x @ weights["predictions/kernel"] + weights["predictions/bias"]


def published_weights(*, blocks, width, classes):
    """Random weights under the published network's names."""
    rng = np.random.default_rng(0)
    weights = {}

    def add_conv(name, size, before, after):
        weights[f"{name}/kernel"] = rng.normal(size=(size, size, before, after)) / np.sqrt(
            size * size * after
        )

    def add_norm(name, channels):
        for statistic in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[f"{name}/{statistic}"] = rng.uniform(0.5, 1.5, channels)

    add_conv("conv1_conv", 3, 3, 16)
    before = 16
    for group, after in zip((2, 3, 4), (16 * width, 32 * width, 64 * width), strict=True):
        for block in range(1, blocks + 1):
            name = f"conv{group}_block{block}"
            add_norm(f"{name}_preact_bn", before)
            if before != after:
                add_conv(f"{name}_0_conv", 1, before, after)
            add_conv(f"{name}_1_conv", 3, before, after)
            add_norm(f"{name}_1_bn", after)
            add_conv(f"{name}_2_conv", 3, after, after)
            before = after
    add_norm("post_bn", before)
    weights["predictions/kernel"] = rng.normal(size=(before, classes))
    weights["predictions/bias"] = rng.normal(size=classes)
    return {name: value.astype(np.float32) for name, value in weights.items()}


# Of width 1, the first group's first block keeps its width, and has no projection.
@pytest.mark.parametrize(("depth", "width"), [(10, 2), (16, 1)])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_logits_of_published_weights_are_those_of_a_scipy_version(depth, width, size):
    blocks = (depth - 4) // 6
    weights = published_weights(blocks=blocks, width=width, classes=5)
    model = WideResNet(classes=5, depth=depth, width=width)
    variables = from_keras({f"{name}:0": value for name, value in weights.items()}, model)
    images = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    theirs = published_logits(
        {name: value.astype(np.float64) for name, value in weights.items()},
        images.astype(np.float64),
        blocks=blocks,
    )
    np.testing.assert_allclose(ours, theirs, atol=3e-6 * np.ptp(theirs))


def test_published_weights_of_another_network_are_named():
    model = WideResNet(classes=5, depth=10, width=2)
    weights = published_weights(blocks=1, width=2, classes=5)
    from_keras({**weights, "SGD/iter": np.zeros(()), "save_counter": np.zeros(())}, model)
    with pytest.raises(DataError, match=r"post_bn/gamma is missing, and must have shape \(128,\)"):
        from_keras({k: v for k, v in weights.items() if k != "post_bn/gamma"}, model)
    with pytest.raises(DataError, match=r"predictions/bias is \(5,\), and must .*\(6,\)"):
        from_keras(weights, WideResNet(classes=6, depth=10, width=2))
    with pytest.raises(DataError, match=r"conv2_block2_preact_bn/gamma is left over .* depth 10"):
        from_keras(published_weights(blocks=2, width=2, classes=5), model)


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
    first = conv(np.asarray(images), np.asarray(variables["params"]["Conv_0"]["kernel"]))
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
