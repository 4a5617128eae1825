import numpy as np
import pytest
from scipy.optimize import minimize

from crest_jax.rebalancing.label_shift import estimate

CONFUSION = np.array([[80, 20, 0], [10, 80, 10], [50, 0, 50]])


def test_a_shift_is_undone_exactly():
    """Of 100, 200 and 700 examples, 80 + 20 + 350 are taken for the first class, and so on."""
    predicted = np.array([80 + 20 + 350, 20 + 160, 20 + 350])
    np.testing.assert_allclose(estimate(CONFUSION, predicted), [0.1, 0.2, 0.7], atol=1e-12)


def test_a_perfect_model_is_believed():
    np.testing.assert_allclose(estimate(np.diag([5, 3, 2]), np.array([1, 1, 2])), [0.25, 0.25, 0.5])


def test_no_class_is_less_than_nothing():
    """Only as a mixture with a negative part could no example at all be taken for the last."""
    predicted = np.array([700, 300, 0])
    ours = estimate(CONFUSION, predicted)
    rates = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    unconstrained = np.linalg.solve(rates.T, predicted / 1000)
    assert unconstrained.min() < 0 <= ours.min()
    found = minimize(
        lambda pi: ((rates.T @ pi - predicted / 1000) ** 2).sum(),
        np.full(3, 1 / 3),
        bounds=[(0, None)] * 3,
        tol=1e-14,
    )
    np.testing.assert_allclose(ours, found.x / found.x.sum(), atol=1e-4)


def test_it_is_nearer_than_the_predictions_themselves():
    rng = np.random.default_rng(0)
    truth = np.array([0.05, 0.15, 0.8])
    rates = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    predicted = rng.multinomial(5000, truth @ rates)
    assert np.abs(estimate(CONFUSION, predicted) - truth).sum() < 0.1
    assert np.abs(predicted / 5000 - truth).sum() > 0.5


def test_a_class_that_was_never_seen_is_taken_to_be_recognised():
    confusion = np.array([[10, 0, 0], [0, 10, 0], [0, 0, 0]])
    np.testing.assert_allclose(estimate(confusion, np.array([1, 1, 2])), [0.25, 0.25, 0.5])


def test_without_predictions_there_is_no_estimate():
    with pytest.raises(ValueError, match="no predictions"):
        estimate(CONFUSION, np.zeros(3, int))
