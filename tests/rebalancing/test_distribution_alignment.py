import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.rebalancing.distribution_alignment import (
    align,
    progressive_temperature,
    temperature_scaled,
)

LONG_TAIL = np.array([0.5, 0.3, 0.15, 0.04, 0.01])


def random_probs(examples, classes=5, seed=0, sharpness=3.0):
    logits = sharpness * np.random.default_rng(seed).normal(size=(examples, classes))
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def f32(array):
    return jnp.asarray(array, jnp.float32)


# Eq. 2


def test_temperature_falls_in_equal_steps_from_1_to_t_min():
    temperatures = [progressive_temperature(generation, 6, 0.5) for generation in range(6)]
    assert temperatures == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize("t_min", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("generations", [2, 3, 15])
def test_the_first_generation_has_1_and_the_last_one_t_min(generations, t_min):
    assert progressive_temperature(0, generations, t_min) == 1.0
    last = progressive_temperature(generations - 1, generations, t_min)
    assert last == pytest.approx(t_min)


def test_a_single_generation_has_temperature_1():
    assert progressive_temperature(0, 1, 0.5) == 1.0


# Targets


@pytest.mark.parametrize("temperature", [0.25, 0.5, 0.9, 2.0])
def test_target_is_the_normalised_power(temperature):
    powered = LONG_TAIL**temperature
    np.testing.assert_allclose(
        temperature_scaled(f32(LONG_TAIL), temperature), powered / powered.sum(), rtol=1e-5
    )


def test_temperature_1_leaves_the_distribution_and_0_makes_it_uniform():
    np.testing.assert_allclose(temperature_scaled(f32(LONG_TAIL), 1.0), LONG_TAIL, rtol=1e-6)
    np.testing.assert_allclose(temperature_scaled(f32(LONG_TAIL), 0.0), np.full(5, 0.2), rtol=1e-6)


def test_temperature_may_be_an_input_of_a_compiled_step():
    expected = temperature_scaled(f32(LONG_TAIL), 0.6)
    np.testing.assert_array_equal(temperature_scaled(f32(LONG_TAIL), jnp.float32(0.6)), expected)


def test_a_lower_temperature_makes_the_target_more_balanced():
    ratios = [
        float(target[0] / target[-1])
        for target in (temperature_scaled(f32(LONG_TAIL), t) for t in (1.0, 0.8, 0.5))
    ]
    assert ratios == pytest.approx([50, 50**0.8, 50**0.5], rel=1e-4)


# Alignment


@pytest.mark.parametrize("seed", range(3))
def test_alignment_is_the_formula(seed):
    probs = random_probs(40, seed=seed)
    model = random_probs(1, seed=seed + 10)[0]
    scaled = probs * (LONG_TAIL + 1e-6) / (model + 1e-6)
    np.testing.assert_allclose(
        align(f32(probs), f32(LONG_TAIL), f32(model)),
        scaled / scaled.sum(axis=1, keepdims=True),
        rtol=1e-4,
        atol=1e-9,
    )


def test_the_small_constant_bounds_what_a_class_that_is_never_predicted_gains():
    probs = np.array([[0.999, 0.001]])
    target, model = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    # 0.999 * 0.500001 / 1.000001 against 0.001 * 0.500001 / 1e-6.
    aligned = np.asarray(align(f32(probs), f32(target), f32(model)))[0]
    assert aligned[0] / aligned[1] == pytest.approx(0.999e-6 / (0.001 * 1.000001), rel=1e-3)
    assert np.isfinite(aligned).all()


def test_a_model_that_predicts_the_target_already_is_left_alone():
    probs = random_probs(30)
    aligned = align(f32(probs), f32(LONG_TAIL), f32(LONG_TAIL))
    np.testing.assert_allclose(aligned, probs, rtol=1e-5)


def test_aligned_predictions_are_distributions():
    aligned = align(f32(random_probs(50)), f32(LONG_TAIL), f32(random_probs(1)[0]))
    np.testing.assert_allclose(np.asarray(aligned).sum(axis=1), 1, rtol=1e-6)
    assert (np.asarray(aligned) >= 0).all()


def test_alignment_moves_the_average_prediction_toward_the_target():
    # A model that leans to the last classes, on data that follows the long tail.
    probs = random_probs(4000) * np.array([1, 2, 3, 4, 5])
    probs /= probs.sum(axis=1, keepdims=True)
    average = probs.mean(axis=0)
    aligned = np.asarray(align(f32(probs), f32(LONG_TAIL), f32(average))).mean(axis=0)
    before, after = (np.abs(mean - LONG_TAIL).sum() for mean in (average, aligned))
    assert after < 0.5 * before


def test_alignment_can_turn_a_narrow_majority_prediction_to_the_minority():
    probs, model = np.array([[0.55, 0.45]]), np.array([0.8, 0.2])
    aligned = np.asarray(align(f32(probs), f32([0.5, 0.5]), f32(model)))[0]
    # 0.55 / 0.8 to 0.45 / 0.2: 11 to 36.
    np.testing.assert_allclose(aligned, [11 / 47, 36 / 47], rtol=1e-4)
