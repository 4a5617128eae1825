"""Optimisers against their published recursions, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crest_jax import optimizers
from crest_jax.optimizers import OPTIMIZERS

STEPS, WEIGHT_DECAY = 4, 0.02
LAYERS = {"Conv_0": {"kernel": [1.0, -2.0, 0.5]}, "BatchNorm_0": {"scale": [3.0, -1.0]}}
SETTINGS = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"b1": 0.8, "b2": 0.95, "eps": 1e-3},
    "adamw": {"b1": 0.8, "b2": 0.95, "eps": 1e-3},
    "lars": {"momentum": 0.9, "nesterov": False, "trust_coefficient": 0.1},
}


def rate(step):
    return 0.05 / (1 + step)


def gradient(weights):
    return weights**2 + 0.3


def sgd(weights, decay):
    """SGD as in Sutskever et al., 2013, with the L2 term in the loss."""
    velocity = np.zeros_like(weights)
    for step in range(STEPS):
        slope = gradient(weights) + decay * weights
        velocity = 0.9 * velocity + slope
        weights = weights - rate(step) * (0.9 * velocity + slope)
    return weights


def adam(weights, decay, *, apart=False):
    """Kingma and Ba, 2015, algorithm 1; Loshchilov and Hutter, 2019, algorithm 2, where apart."""
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(STEPS):
        slope = gradient(weights) + (0 if apart else decay * weights)
        mean = 0.8 * mean + 0.2 * slope
        square = 0.95 * square + 0.05 * slope**2
        corrected = mean / (1 - 0.8 ** (step + 1)), square / (1 - 0.95 ** (step + 1))
        move = corrected[0] / (np.sqrt(corrected[1]) + 1e-3)
        weights = weights - rate(step) * (move + (decay * weights if apart else 0))
    return weights


def lars(weights, decay):
    """You et al., 2017, algorithm 1, for a layer; without its trust ratio for batch norm."""
    velocity = np.zeros_like(weights)
    for step in range(STEPS):
        slope = gradient(weights) + decay * weights
        ratio = 0.1 * np.linalg.norm(weights) / np.linalg.norm(slope) if decay else 1
        velocity = 0.9 * velocity + rate(step) * ratio * slope
        weights = weights - velocity
    return weights


@pytest.mark.parametrize(
    ("name", "recursion"),
    [
        ("sgd", sgd),
        ("adam", adam),
        ("adamw", lambda weights, decay: adam(weights, decay, apart=True)),
        ("lars", lars),
    ],
)
def test_optimizers_are_the_published_ones_and_batch_norm_has_no_weight_decay(name, recursion):
    optimizer = OPTIMIZERS[name](rate, weight_decay=WEIGHT_DECAY, **SETTINGS[name])
    params = jax.tree.map(jnp.array, LAYERS, is_leaf=lambda leaf: isinstance(leaf, list))
    state = optimizer.init(params)
    for _ in range(STEPS):
        updates, state = optimizer.update(jax.tree.map(gradient, params), state, params)
        params = optax.apply_updates(params, updates)
    kernel, scale = np.array(LAYERS["Conv_0"]["kernel"]), np.array(LAYERS["BatchNorm_0"]["scale"])
    np.testing.assert_allclose(
        params["Conv_0"]["kernel"], recursion(kernel, WEIGHT_DECAY), rtol=2e-6
    )
    np.testing.assert_allclose(params["BatchNorm_0"]["scale"], recursion(scale, 0.0), rtol=2e-6)


def test_every_optimizer_is_tested_with_all_that_it_takes():
    for name in OPTIMIZERS:
        assert {"weight_decay", *SETTINGS[name]} == set(optimizers.parameters(name))


def test_schedule_of_level_1_ends_at_098():
    schedule = optimizers.learning_rate_schedule(0.03, steps=2**16, level=1)
    assert schedule(0) == pytest.approx(0.03)
    assert schedule(2**16) == pytest.approx(0.03 * np.cos(np.pi / 16))
    assert schedule(2**16) / schedule(0) == pytest.approx(0.98, abs=1e-3)


def test_imagenets_schedule_warms_up_and_drops_by_tens():
    schedule = optimizers.learning_rate_schedule(
        0.4, steps=100, level=0, warm_up=10, drops=(50, 80)
    )
    rates = [float(schedule(step)) for step in (0, 4, 9, 10, 49, 50, 79, 80, 99)]
    expected = [0.04, 0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(schedule)(80), 0.004, rtol=1e-5)
