from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_reference
from torchvision_reference import STAGES, sample, torch_name

from crest_jax.models import ResNet
from crest_jax.models.norm import BatchNorm
from crest_jax.models.resnet import Bottleneck

IMAGE = jnp.zeros((1, 32, 32, 3))


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, train=True))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def names_of(path):
    return tuple(entry.key for entry in path)


# Against torchvision


@pytest.fixture(scope="module")
def ours():
    """Logits, features of the blocks, and updated statistics by torchvision's names; by mode."""
    model = ResNet(classes=torchvision_reference.CLASSES)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: torchvision_reference.flax_leaf(names_of(path)[1:], leaf.shape),
        shapes_of(model),
    )

    @partial(jax.jit, static_argnames="train")
    def forward(variables, images, train):
        return model.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats", "intermediates"] if train else ["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Bottleneck),
        )

    result = {}
    for mode in ("eval", "train"):
        logits, updated = forward(variables, torchvision_reference.images(), mode == "train")
        features = updated["intermediates"]
        statistics = jax.tree_util.tree_leaves_with_path(updated.get("batch_stats", {}))
        result[mode] = {
            "logits": logits,
            "blocks": [features[f"Bottleneck_{i}"]["__call__"][0] for i in range(sum(STAGES))],
            "statistics": {torch_name(names_of(path)): leaf for path, leaf in statistics},
        }
    return result


@pytest.fixture(scope="module", params=["stored", "live"])
def theirs(request):
    """torchvision's results: the stored ones, and those computed now if it is installed."""
    if request.param == "stored":
        return torchvision_reference.stored()
    pytest.importorskip("torchvision", exc_type=ImportError)
    return torchvision_reference.compute()


def assert_close(ours, theirs):
    """Assert that arrays are equal within the rounding of 50 layers in float32."""
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_resnet_50_is_torchvisions(ours, theirs, mode):
    ends = np.cumsum(STAGES) - 1
    for end, values, mean in zip(ends, theirs[mode]["stages"], theirs[mode]["means"], strict=True):
        features = np.asarray(ours[mode]["blocks"][end])
        assert_close(sample(features), values)
        assert features.mean() == pytest.approx(mean, rel=1e-5)
    assert_close(ours[mode]["logits"], theirs[mode]["logits"])


def test_running_statistics_move_as_torchvisions(ours, theirs):
    """Only the variance differs: Flax keeps that of the batch, and PyTorch the unbiased one."""
    moved = ours["train"]["statistics"]
    assert moved.keys() == theirs["train"]["statistics"].keys()
    assert len(moved) == 2 * (1 + 3 * 16 + 4)
    for name, values in theirs["train"]["statistics"].items():
        assert_close(sample(np.asarray(moved[name])), values)


# By itself


@pytest.mark.parametrize(
    ("depth", "classes", "parameters"),
    [
        # Published, as is torchvision's.
        (50, 1000, 25_557_032),
        (101, 1000, 44_549_160),
        (152, 1000, 60_192_808),
        (50, 127, 25_557_032 - 873 * (2048 + 1)),
    ],
)
def test_number_of_parameters(depth, classes, parameters):
    assert size_of(shapes_of(ResNet(classes=classes, depth=depth))["params"]) == parameters


@pytest.mark.parametrize("depth", ResNet.DEPTHS)
def test_depth_counts_the_layers_on_the_way(depth):
    params = shapes_of(ResNet(classes=2, depth=depth))["params"]
    paths = [names_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = [path for path in paths if path[-1] == "kernel" and "projection" not in path]
    assert len(layers) == depth
    assert sum("projection" in path for path in paths) == 4


def test_width_multiplies_the_filters_of_every_convolution():
    one, two = (shapes_of(ResNet(classes=2, depth=14, width=w))["params"] for w in (1, 2))
    stem = 7 * 7 * 3 * 64
    first = 64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256
    assert one["Conv_0"]["kernel"].size == stem
    assert two["Conv_0"]["kernel"].size == 2 * stem
    kernels = [
        sum(leaf.size for leaf in jax.tree.leaves(params["Bottleneck_0"]) if leaf.ndim == 4)
        for params in (one, two)
    ]
    assert kernels == [first, 4 * first]


def test_only_batch_norms_and_the_last_bias_are_vectors():
    """The optimiser spares from weight decay what has BatchNorm in its name."""
    params = shapes_of(ResNet(classes=2, depth=26))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = names_of(path)
        if names != ("Dense_0", "bias"):
            assert any("BatchNorm" in name for name in names) == (leaf.ndim == 1)


@pytest.fixture(scope="module")
def small():
    """A small model's initial variables, with images to run it on."""
    model = ResNet(classes=3, depth=14)
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3), minval=-1, maxval=1)
    return jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(0)), images


def test_convolutions_start_with_variance_2_over_fan_out_and_the_last_layer_small(small):
    params = small[0]["params"]
    for block, filters in enumerate((64, 128, 256, 512)):
        kernel = params[f"Bottleneck_{block}"]["Conv_1"]["kernel"]
        assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * filters)), rel=0.02)
    assert params["Dense_0"]["kernel"].std() == pytest.approx(0.01, rel=0.05)
    assert not params["Dense_0"]["bias"].any()


def test_residual_branches_start_at_zero_and_learn(small):
    """Only the scale of the last batch norm is 0, and only at first: its gradient is not."""
    for block in range(4):
        params = small[0]["params"][f"Bottleneck_{block}"]
        scales = [params[f"BatchNorm_{i}"]["scale"] for i in range(4)]
        assert [float(scale.mean()) for scale in scales] == [1, 1, 0, 1]
        assert not scales[2].any()

    block = Bottleneck(
        8,
        1,
        partial(BatchNorm, use_running_average=False, negative_slope=0.0),
        jnp.float32,
        jax.lax.Precision.DEFAULT,
    )
    x = jax.random.uniform(jax.random.key(2), (2, 6, 6, 32))
    variables = jax.jit(block.init)(jax.random.key(3), x)

    def total(params):
        y, _ = block.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y**2).mean(), y

    gradients, y = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    np.testing.assert_array_equal(y, x)
    assert np.abs(gradients["BatchNorm_2"]["scale"]).min() > 0


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(small):
    variables, images = small

    @partial(jax.jit, static_argnums=0)
    def forward(dtype, variables, images):
        model = ResNet(classes=3, depth=14, dtype=dtype)
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = forward(jnp.bfloat16, variables, images)
    made = shapes_of(ResNet(classes=3, depth=14, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((made, updates, logits))} == {
        jnp.dtype("float32")
    }
    expected, _ = forward(jnp.float32, variables, images)
    np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())
    assert not np.array_equal(logits, expected)
