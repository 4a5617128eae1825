import zlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_compiler
from jax.sharding import PartitionSpec

from crest_jax import cpu
from crest_jax.cpu import library
from crest_jax.mesh import AXES, WITHIN_GROUP, mesh_of, over_devices
from crest_jax.models import ResNet, WideResNet, norm, resnet, wide_resnet
from crest_jax.models.norm import BatchNorm

COMPILED = "crest_jax."  # in what calls the compiled kernels
SLOPES = [0.0, 0.1, 1.0]


@pytest.fixture(params=[pytest.param("compiled", marks=needs_compiler), "xla", "xla_of_gpu"])
def form(request, monkeypatch):
    """All forms of the norm, one after the other."""
    if request.param == "compiled":
        assert library.kernels()
    else:
        monkeypatch.setattr(cpu.norm, "takes", lambda x: False)
    if request.param == "xla_of_gpu":

        def compute(by_cpu, by_gpu, by_xla, *arrays, **settings):
            return by_gpu(*arrays, **settings)

        monkeypatch.setattr(norm, "_compute", compute)
    return request.param


def normal(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


class FlaxNorm:
    """Flax's batch norm and activation in the place of ours, under the same name."""

    class BatchNorm(nn.BatchNorm):
        negative_slope: float = 1.0

        def __call__(self, x, before=None, *, behind=None, with_sum=False):
            x = x if before is None else x + before
            y = super().__call__(x)
            y = y if behind is None else y + behind
            y = nn.leaky_relu(y, self.negative_slope) if self.negative_slope else nn.relu(y)
            return (y, x) if with_sum else y


def variables_of(channels, *, mean=0.3):
    """Return variables of a norm, all of which differ from their initial values."""
    numbers = normal(4, channels, seed=9)
    return {
        "params": {"scale": 1 + 0.5 * numbers[0], "bias": numbers[1]},
        "batch_stats": {"mean": mean + numbers[2], "var": 1 + numbers[3] ** 2},
    }


def with_gradients(layer, variables, images, gradients):
    """Return outputs, new statistics, and gradients of parameters and of all given images.

    Args:
      images: x, what is added before the norm, and what is added behind it; or None.
      gradients: of the output, and of the sum that the norm takes; or None without this.
    """
    dy, dsum = gradients

    def outputs(params, images):
        x, before, behind = images
        y, updates = layer.apply(
            {**variables, "params": params},
            x,
            before,
            behind=behind,
            with_sum=dsum is not None,
            mutable=["batch_stats"],
        )
        return y, updates.get("batch_stats")

    given = dy if dsum is None else (dy, dsum)
    y, pullback, statistics = jax.vjp(outputs, variables["params"], images, has_aux=True)
    return y, statistics, pullback(given)


def arrays(shape, *, before, behind, with_sum, dtype=jnp.float32):
    """Images, and gradients of what comes out."""
    x, y, z, dy, dsum = (normal(*shape, dtype=dtype, seed=seed) for seed in range(5))
    images = 2 * x + 1, (y if before else None), (z if behind else None)
    return images, (dy, dsum if with_sum else None)


def close(ours, theirs, *, tolerance):
    """Asserts that leaves differ by less than a part of the largest number in each."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, mine), other in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        mine, other = np.asarray(mine, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(
            mine, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=str(path)
        )


ADDITIONS = [
    {"before": False, "behind": False, "with_sum": False},
    {"before": True, "behind": False, "with_sum": True},
    {"before": True, "behind": False, "with_sum": False},
    {"before": False, "behind": True, "with_sum": False},
    {"before": True, "behind": True, "with_sum": True},
]


def by_hand(variables, images, gradients, *, slope, epsilon, momentum):
    """Return the results of `with_gradients` in float64, from the formulas."""
    x, before, behind = (0 if a is None else np.asarray(a, np.float64) for a in images)
    dy, dsum = (0 if a is None else np.asarray(a, np.float64) for a in gradients)
    variables = jax.tree.map(partial(np.asarray, dtype=np.float64), variables)
    params, old = variables["params"], variables["batch_stats"]
    total = x + before
    axes = tuple(range(x.ndim - 1))
    mean, var = total.mean(axes), total.var(axes)
    deviation = np.sqrt(var + epsilon)
    unit = (total - mean) / deviation
    z = unit * params["scale"] + params["bias"] + behind
    g = np.where(z > 0, dy, slope * dy)
    dscale, dbias = (g * unit).sum(axes), g.sum(axes)
    pixels = x.size // x.shape[-1]
    dx = params["scale"] / deviation * (g - dbias / pixels - unit * dscale / pixels) + dsum
    y = np.where(z > 0, z, slope * z)
    statistics = {
        "mean": momentum * old["mean"] + (1 - momentum) * mean,
        "var": momentum * old["var"] + (1 - momentum) * var,
    }
    of_images = dx, (None if images[1] is None else dx), (None if images[2] is None else g)
    outputs = y if gradients[1] is None else (y, total)
    return outputs, statistics, ({"scale": dscale, "bias": dbias}, of_images)


@pytest.mark.parametrize("additions", ADDITIONS)
@pytest.mark.parametrize("slope", SLOPES)
def test_norm_and_gradients_are_their_formulas_in_float64(form, slope, additions):
    settings = {"epsilon": 1e-3, "momentum": 0.7}
    layer = BatchNorm(use_running_average=False, negative_slope=slope, **settings)
    for shape in [(6, 5, 4, 16), (35, 17), (8, 8, 5, 48)]:
        variables = variables_of(shape[-1])
        given = arrays(shape, **additions)
        compute = jax.jit(partial(with_gradients, layer))
        assert (COMPILED in compute.lower(variables, *given).as_text()) == (form == "compiled")
        theirs = by_hand(variables, *given, slope=slope, **settings)
        close(compute(variables, *given), theirs, tolerance=3e-6)


@pytest.mark.parametrize("additions", ADDITIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 6e-6), (jnp.bfloat16, 2e-2)])
def test_norm_is_flax_s_with_its_activation(form, dtype, tolerance, additions):
    """They agree within the rounding of sums: the narrower a CPU's vectors, the more it shows."""
    settings = {"use_running_average": False, "negative_slope": 0.1, "momentum": 0.9}
    variables = variables_of(32)
    images, gradients = jax.tree.map(
        lambda a: jnp.round(8 * a) / 8, arrays((4, 9, 8, 32), **additions)
    )
    of_dtype = jax.tree.map(lambda a: a.astype(dtype), gradients)
    ours = jax.jit(partial(with_gradients, BatchNorm(dtype=dtype, **settings)))
    theirs = jax.jit(partial(with_gradients, FlaxNorm.BatchNorm(**settings)))
    mine = ours(variables, images, of_dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(mine[0])} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(mine[1:])} == {jnp.dtype("float32")}
    close(mine, theirs(variables, images, gradients), tolerance=tolerance)


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_activation_has_the_gradient_that_jax_s_has_at_0(form, slope):
    """A new ResNet's blocks end in relu(0 + x), where much of x is 0."""
    variables = variables_of(16)
    variables["params"] = jax.tree.map(jnp.zeros_like, variables["params"])
    (x, _, behind), gradients = arrays((8, 4, 16), before=False, behind=True, with_sum=False)
    given = variables, (x, None, nn.relu(behind)), gradients
    settings = {"use_running_average": False, "negative_slope": slope}
    ours, theirs = (
        jax.jit(partial(with_gradients, layer(**settings)))(*given)
        for layer in (BatchNorm, FlaxNorm.BatchNorm)
    )
    _, _, (_, (_, _, dbehind)) = ours
    np.testing.assert_array_equal(dbehind, theirs[2][1][2])
    close(ours, theirs, tolerance=3e-6)


@pytest.mark.parametrize("slope", SLOPES)
def test_running_statistics_normalise_as_flax_s(slope):
    settings = {"use_running_average": True, "negative_slope": slope}
    given = variables_of(17), *arrays((3, 4, 5, 17), **ADDITIONS[4])
    ours, theirs = (
        jax.jit(partial(with_gradients, layer(**settings)))(*given)
        for layer in (BatchNorm, FlaxNorm.BatchNorm)
    )
    close(ours, theirs, tolerance=1e-6)


@pytest.mark.parametrize("scale_init", [nn.initializers.ones, nn.initializers.zeros])
def test_initial_variables_are_flax_s(scale_init):
    settings = {"use_running_average": False, "scale_init": scale_init}
    x = normal(4, 4, 4, 24, dtype=jnp.bfloat16)
    ours = BatchNorm(dtype=jnp.bfloat16, axis_name=AXES, **settings).init(jax.random.key(0), x)
    theirs = nn.BatchNorm(dtype=jnp.bfloat16, axis_name=AXES, **settings).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.result_type, ours) == jax.tree.map(jnp.result_type, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_variance_is_exact_where_the_mean_is_large_and_known(form):
    """E[x^2] - E[x]^2 would have no digit left."""
    x = 3000 + normal(8, 16, 16, 16)
    variables = variables_of(16, mean=3000)
    layer = BatchNorm(use_running_average=False, momentum=0.0)
    _, updates = jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    expected = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_reaches_what_it_reaches_in_xla(monkeypatch, value):
    images, gradients = arrays((4, 3, 5, 17), before=True, behind=True, with_sum=True)
    variables = variables_of(17)
    layer = BatchNorm(use_running_average=False, negative_slope=0.1)
    leaves, structure = jax.tree.flatten((images, gradients))
    for harmed in range(len(leaves)):
        given = structure.unflatten(
            [a.at[1, 2, 3, 7].set(value) if i == harmed else a for i, a in enumerate(leaves)]
        )
        ours = jax.jit(partial(with_gradients, layer))(variables, *given)
        with monkeypatch.context() as patch:
            patch.setattr(cpu.norm, "takes", lambda x: False)
            theirs = jax.jit(partial(with_gradients, layer))(variables, *given)
        for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            mine, other = np.asarray(mine), np.asarray(other)
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))
            np.testing.assert_array_equal(np.isinf(mine), np.isinf(other))
            assert np.isfinite(np.delete(mine, 7, axis=-1)).all()


# Several devices, and several batches


def over_4_devices(layer, variables, images, gradients, group=0):
    """Return `with_gradients` for images split over devices, with each device's statistics."""

    def on_device(variables, images, gradients):
        y, statistics, (of_params, of_images) = with_gradients(layer, variables, images, gradients)
        statistics = jax.tree.map(lambda a: (a + jnp.zeros_like(y[0], shape=()))[None], statistics)
        return y, statistics, (of_params, of_images)

    mesh = mesh_of(jax.devices()[:4], group=group)
    split, whole = PartitionSpec(AXES), PartitionSpec()
    mapped = over_devices(
        on_device, mesh, in_specs=(whole, split, split), out_specs=(split, split, (whole, split))
    )
    return mapped(variables, images, gradients)


@pytest.mark.parametrize("additions", [ADDITIONS[1], ADDITIONS[3]])
def test_synchronised_devices_compute_what_one_does_of_all_images(form, additions):
    given = variables_of(16), *arrays((8, 3, 5, 16), **additions)
    settings = {"use_running_average": False, "negative_slope": 0.1}
    y, statistics, gradients = over_4_devices(BatchNorm(axis_name=AXES, **settings), *given)
    theirs = jax.jit(partial(with_gradients, BatchNorm(**settings)))(*given)
    for device in range(4):
        ours = y, jax.tree.map(lambda a, i=device: a[i], statistics), gradients
        close(ours, theirs, tolerance=3e-6)


@pytest.mark.parametrize("group", [1, 2])
def test_groups_compute_each_for_itself(form, group):
    """Also devices without synchronisation, as groups of one."""
    variables = variables_of(16)
    images, gradients = arrays((8, 3, 5, 16), **ADDITIONS[1])
    layer = BatchNorm(use_running_average=False, negative_slope=0.1)
    synchronised = layer if group == 1 else layer.clone(axis_name=WITHIN_GROUP)
    y, statistics, (of_params, of_images) = over_4_devices(
        synchronised, variables, images, gradients, group
    )
    parts = []
    for first in range(0, 4, group):
        part = slice(2 * first, 2 * (first + group))
        given = jax.tree.map(lambda a, part=part: a[part], (images, gradients))
        parts.append(with_gradients(layer, variables, *given))
        for device in range(first, first + group):
            mine = (
                jax.tree.map(lambda a, part=part: a[part], y),
                jax.tree.map(lambda a, i=device: a[i], statistics),
            )
            close(mine, parts[-1][:2], tolerance=3e-6)
    totals = jax.tree.map(lambda *each: sum(each), *(gradients[0] for _, _, gradients in parts))
    close(of_params, totals, tolerance=3e-6)
    whole = jax.tree.map(lambda *each: jnp.concatenate(each), *(g[1] for _, _, g in parts))
    close(of_images, whole, tolerance=3e-6)


def test_gradients_accumulate_in_a_scan(form):
    variables = variables_of(16)
    given = arrays((3, 4, 5, 16), **ADDITIONS[1])
    layer = BatchNorm(use_running_average=False, negative_slope=0.1)
    compute = partial(with_gradients, layer, variables)

    @jax.jit
    def scanned(given):
        def add(total, part):
            _, statistics, (of_params, _) = compute(*part)
            return jax.tree.map(jnp.add, total, (statistics, of_params)), None

        zeros = jax.tree.map(jnp.zeros_like, (variables["batch_stats"], variables["params"]))
        return jax.lax.scan(add, zeros, given)[0]

    each = [compute(*jax.tree.map(lambda a, i=i: a[i], given)) for i in range(3)]
    expected = jax.tree.map(lambda *a: sum(a), *((s, of_params) for _, s, (of_params, _) in each))
    close(scanned(given), expected, tolerance=3e-6)


# Where there are no kernels


@needs_compiler
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_xla_s_norm(platform):
    layer = BatchNorm(use_running_average=False)
    given = variables_of(16), *arrays((2, 4, 4, 16), **ADDITIONS[4])
    traced = jax.jit(partial(with_gradients, layer)).trace(*given)
    assert COMPILED in traced.lower().as_text()
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" not in text
    assert ("optimization_barrier" in text) == (platform != "tpu")  # it is in the form for GPUs


def test_without_a_compiler_norms_are_xla_s(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(library, "kernels", library.kernels.__wrapped__)
    layer = BatchNorm(use_running_average=False)
    given = variables_of(16), *arrays((2, 4, 4, 16), **ADDITIONS[4])
    assert COMPILED not in jax.jit(partial(with_gradients, layer)).lower(*given).as_text()


@pytest.mark.parametrize("shape", [(0, 4, 4, 16), (2, 0, 16)])
def test_no_images_have_no_gradient(form, shape):
    layer = BatchNorm(use_running_average=False)
    given = variables_of(16), *arrays(shape, **ADDITIONS[0])
    y, _, (of_params, (dx, _, _)) = jax.jit(partial(with_gradients, layer))(*given)
    assert y.shape == dx.shape == shape
    assert not of_params["bias"].any()


@needs_compiler
@pytest.mark.parametrize("train", [False, True])
def test_exported_models_need_nothing_of_this_package(train):
    (batch,) = jax.export.symbolic_shape("batch")
    model = WideResNet(3, depth=16, width=1)
    images = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(
        partial(model.init, train=True), jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    )

    @jax.jit
    def logits(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    exported = jax.export.export(logits, platforms=("cpu", "cuda", "tpu"))(variables, images)
    assert COMPILED not in exported.mlir_module()


# In models


@pytest.mark.parametrize(
    ("model", "module"),
    [(WideResNet(5, depth=16, width=1), wide_resnet), (ResNet(5, depth=14), resnet)],
)
def test_models_have_the_variables_and_gradients_that_flax_s_norm_gives_them(
    monkeypatch, model, module
):
    images = normal(8, 16, 16, 3)

    def shapes():
        return jax.eval_shape(partial(model.init, train=True), jax.random.key(0), images)

    def value(path, leaf):
        """Return values that depend on the name alone; none is 0, which would hide a branch."""
        drawn = normal(*leaf.shape, seed=zlib.crc32(jax.tree_util.keystr(path).encode()))
        if leaf.ndim == 1:
            return 1 + 0.3 * drawn
        return drawn / np.sqrt(leaf.size / leaf.shape[-1])

    def results(variables):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return (logits**2).mean(), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    ours = shapes()
    variables = jax.tree_util.tree_map_with_path(value, ours)
    with_ours = jax.jit(results)(variables)
    monkeypatch.setattr(module, "BatchNorm", FlaxNorm.BatchNorm)
    assert shapes() == ours
    with_flax = jax.jit(lambda variables: results(variables))(variables)
    close(with_ours, with_flax, tolerance=1e-3)
