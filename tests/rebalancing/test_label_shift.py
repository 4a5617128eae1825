import numpy as np
import pytest
from scipy.optimize import minimize

from crest_jax.rebalancing.label_shift import estimate

CONFUSION = np.array([[8000, 2000, 0], [1000, 8000, 1000], [5000, 0, 5000]])
UNIFORM = np.full(3, 1 / 3)
PRIOR = np.array([0.7, 0.2, 0.1])


@pytest.mark.parametrize("prior", [UNIFORM, PRIOR])
def test_a_shift_is_undone(prior):
    """Of 1000, 2000 and 7000 examples, 800 + 200 + 3500 are taken for the first class, ..."""
    predicted = np.array([800 + 200 + 3500, 200 + 1600, 200 + 3500])
    np.testing.assert_allclose(estimate(CONFUSION, predicted, prior), [0.1, 0.2, 0.7], atol=0.003)


def test_a_perfect_model_is_believed():
    confusion = np.diag([500, 300, 200])
    ours = estimate(confusion, np.array([100, 100, 200]), UNIFORM)
    np.testing.assert_allclose(ours, [0.25, 0.25, 0.5], atol=0.005)


@pytest.mark.parametrize("predicted", [[700, 300, 0], [4500, 1800, 3700], [0, 0, 40]])
@pytest.mark.parametrize("examples", [1, 20])
def test_it_is_the_most_probable_distribution(predicted, examples):
    """Against a general solver, also where no exact solution has shares of 0 and above."""
    confusion = np.array([[8, 2, 0], [1, 8, 1], [5, 0, 5]]) * examples
    predicted = np.array(predicted)
    rates = 0.999 * confusion / (10 * examples) + 0.001 / 3
    counts = predicted * min(1, 30 * examples / predicted.sum())

    def unlikeliness(logits):
        shares = np.exp(logits) / np.exp(logits).sum()
        return -(counts * np.log(shares @ rates)).sum() - 3 * (PRIOR * np.log(shares)).sum()

    found = minimize(unlikeliness, np.zeros(3), method="Nelder-Mead", tol=1e-10)
    expected = np.exp(found.x) / np.exp(found.x).sum()
    np.testing.assert_allclose(estimate(confusion, predicted, PRIOR), expected, atol=1e-3)


def test_it_is_nearer_than_the_predictions_themselves():
    rng = np.random.default_rng(0)
    truth = np.array([0.05, 0.15, 0.8])
    rates = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    predicted = rng.multinomial(5000, truth @ rates)
    assert np.abs(estimate(CONFUSION, predicted, PRIOR) - truth).sum() < 0.1
    assert np.abs(predicted / 5000 - truth).sum() > 0.5


def test_a_model_that_knows_a_single_class_says_nothing():
    confusion = np.array([[0, 500, 0], [0, 90, 0], [0, 3, 0]])
    ours = estimate(confusion, np.array([0, 10_000, 0]), PRIOR)
    np.testing.assert_allclose(ours, PRIOR, atol=1e-6)


def test_classes_that_are_taken_for_one_another_share_as_in_the_prior():
    """The last class is always taken for the second."""
    confusion = np.array([[100, 0, 0], [0, 50, 0], [0, 5, 0]])
    ours = estimate(confusion, np.array([600, 400, 0]), PRIOR)
    assert ours[0] == pytest.approx(0.6, abs=0.01)
    assert ours[1] / ours[2] == pytest.approx(2.0, rel=0.01)


def test_what_was_never_seen_to_be_predicted_does_no_harm():
    confusion = np.array([[10, 0, 0], [10, 0, 0], [10, 0, 0]])
    ours = estimate(confusion, np.array([0, 50, 50]), PRIOR)
    assert np.isfinite(ours).all()
    assert ours.sum() == pytest.approx(1)


def test_a_class_that_was_never_seen_is_taken_to_be_recognised():
    confusion = np.array([[1000, 0, 0], [0, 1000, 0], [0, 0, 0]])
    ours = estimate(confusion, np.array([400, 400, 800]), UNIFORM)
    np.testing.assert_allclose(ours, [0.25, 0.25, 0.5], atol=0.002)


def test_without_predictions_there_is_no_estimate():
    with pytest.raises(ValueError, match="no predictions"):
        estimate(CONFUSION, np.zeros(3, int), UNIFORM)
