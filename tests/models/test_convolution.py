from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_compiler
from jax import lax
from jax.sharding import PartitionSpec

from crest_jax.cpu import library
from crest_jax.mesh import AXES, mesh_of, over_devices
from crest_jax.models.convolution import Conv, convolve
from crest_jax.models.wide_resnet import WideResNet

COMPILED = "crest_jax."  # in what calls the compiled kernels


@pytest.fixture
def compiled():
    assert library.kernels()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def windows(x, size, stride, pads):
    """Return the values under the kernel in padded images: [batch, y, x, ky, kx, channel]."""
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.moveaxis(seen[:, ::stride, ::stride], 3, -1)


def by_hand(x, kernel, dy, stride, pads):
    """Return the convolution and both gradients in float64, from their definitions."""
    x, kernel, dy = (array.astype(np.float64) for array in (x, kernel, dy))
    size = kernel.shape[0]
    seen = windows(x, size, stride, pads)
    dx = np.zeros(np.pad(x, [(0, 0), *pads, (0, 0)]).shape)
    for row, column in np.ndindex(dy.shape[1:3]):
        top, left = row * stride, column * stride
        share = np.einsum("no,yxio->nyxi", dy[:, row, column], kernel)
        dx[:, top : top + size, left : left + size] += share
    (top, _), (left, _) = pads
    return (
        np.einsum("nhwyxi,yxio->nhwo", seen, kernel),
        dx[:, top : top + x.shape[1], left : left + x.shape[2]],
        np.einsum("nhwyxi,nhwo->yxio", seen, dy),
    )


def same(size, stride, length):
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def with_gradients(x, kernel, dy, stride, padding, precision=lax.Precision.DEFAULT):
    convolution = partial(convolve, stride=stride, padding=padding, precision=precision)
    y, pullback = jax.vjp(convolution, x, kernel)
    return y, *pullback(dy)


# The most by which a result may be wrong, in proportion to the largest one.
ROUNDING = {
    (jnp.float32, lax.Precision.DEFAULT): 2e-6,
    (jnp.float32, lax.Precision.HIGH): 2e-5,
    (jnp.bfloat16, lax.Precision.DEFAULT): 2**-8,
}


@needs_compiler
@pytest.mark.parametrize(("dtype", "precision"), ROUNDING)
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (3, 1, "SAME"),
        (3, 2, "SAME"),
        (1, 2, "VALID"),
        (7, 2, "VALID"),
        (3, 1, ((1, 1), (0, 5))),
        (7, 1, ((3, 0), (6, 0))),
    ],
)
@pytest.mark.parametrize("shape", [(2, 9, 11, 3, 16), (1, 12, 8, 33, 1)])
def test_convolution_and_gradients_are_those_of_their_definitions(
    compiled, shape, size, stride, padding, dtype, precision
):
    batch, height, width, channels, features = shape
    match padding:
        case "SAME":
            pads = [same(size, stride, length) for length in (height, width)]
        case "VALID":
            pads = [(0, 0), (0, 0)]
        case _:
            pads = padding
    x, kernel = normal(batch, height, width, channels), normal(size, size, channels, features)
    dy = normal(*windows(x, size, stride, pads).shape[:3], features, seed=1)
    x, kernel, dy = (jnp.asarray(array, dtype) for array in (x, kernel, dy))
    ours = jax.jit(
        partial(with_gradients, stride=stride, padding=padding, precision=precision)
    ).lower(x, kernel, dy)  # fmt: skip
    assert ours.as_text().count(COMPILED) == 3
    exact = by_hand(*(np.asarray(array) for array in (x, kernel, dy)), stride, pads)
    for mine, theirs in zip(ours.compile()(x, kernel, dy), exact, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(mine).astype(np.float64),
            theirs,
            rtol=0,
            atol=ROUNDING[dtype, precision] * np.abs(theirs).max(),
        )


@needs_compiler
def test_a_model_has_the_gradients_that_xla_gives_it(compiled, monkeypatch):
    model = WideResNet(5, depth=10, width=1, batch_norm_momentum=0.9)
    images = jnp.asarray(normal(16, 16, 16, 3))
    variables = jax.jit(partial(model.init, train=True))(jax.random.key(0), images)

    def loss(params):
        applied = {**variables, "params": params}
        logits, _ = model.apply(applied, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    ours = jax.jit(jax.grad(loss))(variables["params"])
    monkeypatch.setattr(library, "kernels", lambda: None)
    theirs = jax.jit(jax.grad(lambda params: loss(params)))(variables["params"])
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4 * size, rtol=1e-3), ours, theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_is_flax_linen_conv_without_a_bias(dtype):
    settings = {"padding": ((1, 0), (2, 1)), "strides": 2, "dtype": dtype}
    images = jnp.asarray(normal(2, 9, 8, 3))
    ours = Conv(16, (3, 3), **settings)
    theirs = nn.Conv(16, (3, 3), use_bias=False, kernel_init=ours.kernel_init, **settings)
    variables = ours.init(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), images))
    mine, flax = (layer.apply(variables, images) for layer in (ours, theirs))
    assert mine.dtype == flax.dtype == dtype
    np.testing.assert_allclose(
        mine.astype(np.float32), flax.astype(np.float32), atol=1e-5 * np.abs(flax).max()
    )


@needs_compiler
def test_devices_sum_their_gradients_of_a_kernel(compiled):
    x, kernel = normal(8, 8, 8, 16), normal(3, 3, 16, 16)

    def gradient(x, kernel, mean):
        return jax.grad(lambda kernel: mean(jnp.sin(convolve(x, kernel)).mean()))(kernel)

    mesh = mesh_of(jax.devices()[:4])
    mapped = over_devices(
        partial(gradient, mean=lambda value: jax.lax.pmean(value, AXES)),
        mesh,
        in_specs=(PartitionSpec(AXES), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    assert COMPILED in mapped.lower(x, kernel).as_text()
    whole = jax.jit(partial(gradient, mean=lambda value: value))(x, kernel)
    np.testing.assert_allclose(mapped(x, kernel), whole, atol=1e-7)


@needs_compiler
def test_devices_sum_their_gradients_of_shared_images(compiled):
    """Each device has its own kernel."""
    x, kernel = normal(2, 8, 8, 16), normal(3, 3, 16, 32)

    def gradient(x, kernel, total):
        return jax.grad(lambda x: total(jnp.sin(convolve(x, kernel)).sum()))(x)

    mesh = mesh_of(jax.devices()[:4])
    mapped = over_devices(
        partial(gradient, total=lambda value: jax.lax.psum(value, AXES)),
        mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, None, None, AXES)),
        out_specs=PartitionSpec(),
    )
    whole = jax.jit(partial(gradient, total=lambda value: value))(x, kernel)
    np.testing.assert_allclose(mapped(x, kernel), whole, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("x", "kernel", "stride", "padding"),
    [
        ((2, 2, 2, 4), (3, 3, 4, 5), 3, "VALID"),
        ((2, 0, 4, 3), (1, 1, 3, 5), 1, "SAME"),
        ((2, 4, 4, 4), (3, 3, 4, 5), 2, ((0, 0), (2, -4))),
        ((0, 4, 4, 4), (3, 3, 4, 5), 1, "SAME"),
    ],
)
def test_nothing_convolved_has_no_gradient(compiled, x, kernel, stride, padding):
    shape = jax.eval_shape(
        partial(convolve, stride=stride, padding=padding), jnp.zeros(x), jnp.zeros(kernel)
    ).shape
    _, dx, dkernel = jax.jit(with_gradients, static_argnums=(3, 4))(
        normal(*x), normal(*kernel), normal(*shape), stride, padding
    )
    assert 0 in shape
    assert not dx.any()
    assert not dkernel.any()


@needs_compiler
def test_vmap_convolves_each(compiled):
    x, kernels = jnp.asarray(normal(2, 4, 8, 8, 16)), jnp.asarray(normal(2, 3, 3, 16, 16))
    each = [convolve(images, kernel) for images, kernel in zip(x, kernels, strict=True)]
    np.testing.assert_array_equal(jax.vmap(convolve)(x, kernels), each)


@needs_compiler
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_xla_s_convolution(compiled, platform):
    traced = jax.jit(with_gradients, static_argnums=(3, 4)).trace(
        normal(2, 8, 8, 3), normal(3, 3, 3, 16), normal(2, 8, 8, 16), 1, "SAME"
    )
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert COMPILED not in lowered
    assert lowered.count("stablehlo.convolution") == 3


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "padding"), [(jnp.float16, "SAME"), (jnp.float32, ((3, 0), (0, 0)))]
)
def test_what_no_kernel_takes_is_xla_s(compiled, dtype, padding):
    x, kernel = normal(2, 8, 8, 3).astype(dtype), normal(3, 3, 3, 16).astype(dtype)
    lowered = jax.jit(partial(convolve, padding=padding)).lower(x, kernel).as_text()
    assert COMPILED not in lowered
    assert "stablehlo.convolution" in lowered


def test_without_kernels_convolutions_are_xla_s(monkeypatch):
    monkeypatch.setattr(library, "kernels", lambda: None)
    lowered = jax.jit(convolve).lower(normal(2, 8, 8, 3), normal(3, 3, 3, 16)).as_text()
    assert COMPILED not in lowered
    assert "stablehlo.convolution" in lowered


@needs_compiler
def test_exported_models_need_nothing_of_this_package(compiled):
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    exported = jax.export.export(jax.jit(convolve), platforms=("cpu", "cuda", "tpu"))(
        x, normal(3, 3, 3, 16)
    )
    assert COMPILED not in exported.mlir_module()
