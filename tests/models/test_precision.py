"""The exactness of a model's float32 products for each `precision`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision

from crest_jax import export
from crest_jax.config import default_config, parse_arguments
from crest_jax.cpu import library
from crest_jax.data.views import View
from crest_jax.models import ResNet, WideResNet
from crest_jax.program import model_of
from crest_jax.trained import Trained

# Models with the number of their layers.
WIDE_RESNET = (WideResNet(classes=2, depth=10, width=1), 10)
RESNET = (ResNet(classes=2, depth=14), 18)
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def variables_of(model):
    init = jax.jit(lambda key: model.init(key, jnp.zeros(IMAGES.shape), train=True))
    return jax.eval_shape(init, jax.random.key(0))


def lowered(model, platform):
    """Return the program of a model's gradient that XLA is given."""
    variables = variables_of(model)

    def loss(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return (logits**2).sum()

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables["batch_stats"], IMAGES)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def precisions(text):
    """Return the precisions of both operands of every convolution and matrix product."""
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", text)
    return [tuple(re.findall(r"(?:precision |\b)(DEFAULT|HIGH|HIGHEST)\b", line))
            for line in products]  # fmt: skip


@pytest.mark.parametrize("precision", ["HIGH", "HIGHEST"])
@pytest.mark.parametrize(("model", "layers"), [WIDE_RESNET, RESNET])
def test_every_product_of_a_step_has_it(model, layers, precision):
    found = precisions(lowered(model.clone(precision=Precision[precision]), "tpu"))
    # Each layer's, and its two gradients, but of the images that come in.
    assert found == [(precision, precision)] * (3 * layers - 1)


@pytest.mark.parametrize(
    ("precision", "dtype", "tiles", "used"),
    [
        ("HIGH", "float32", True, "true"),
        ("HIGH", "float32", False, "false"),
        ("DEFAULT", "float32", True, "false"),
        ("HIGHEST", "float32", True, "false"),
        ("DEFAULT", "bfloat16", True, "true"),
        ("DEFAULT", "bfloat16", False, "false"),
    ],
)
def test_on_a_cpu_tiles_are_for_bfloat16_and_for_high(monkeypatch, precision, dtype, tiles, used):
    monkeypatch.setattr(library, "kernels", lambda: library.Kernels(lanes=16, tiles=tiles))
    model, layers = WIDE_RESNET
    model = model.clone(precision=Precision[precision], dtype=jnp.dtype(dtype))
    found = re.findall(
        r"@crest_jax\.\w*(?:Forward|Gradient)\b.* tiles = (\w+)", lowered(model, "cpu")
    )
    # All layers but the last, which is no convolution.
    assert found == [used] * (3 * (layers - 1) - 1)


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_a_run_and_what_is_exported_of_it_compute_with_that_of_its_config(precision):
    config = default_config(parse_arguments(None))
    config.update_from_flattened_dict({"precision": precision, "model.depth": 10, "model.width": 1})
    model = model_of(config, 10, axis_name=None)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables_of(model))
    trained = Trained(
        model, variables["params"], variables["batch_stats"], tuple("0123456789"),
        np.full(10, 0.1), IMAGES.shape[1:], View(0, "none", 3), 1 << 20, 1, 2,
    )  # fmt: skip
    module = jax.export.deserialize(bytearray(export.serialise(trained))).mlir_module()
    assert set(precisions(module)) == {(precision.upper(),) * 2}
    assert export.describe(trained, config)["precision"] == precision
