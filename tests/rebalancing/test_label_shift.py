import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom, norm

from crest_jax.rebalancing import label_shift
from crest_jax.rebalancing.label_shift import estimate, interval

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
    """A general solver gives the same, even if no exact solution has shares of 0 and above."""
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


# How sure it is


def simulated(rng, recall, known, unlabeled, truth):
    """Known examples and predictions of a model that mistakes a class for any other alike."""
    classes = len(truth)
    rates = np.full((classes, classes), (1 - recall) / (classes - 1))
    np.fill_diagonal(rates, recall)
    confusion = np.array(
        [rng.multinomial(count, row) for count, row in zip(known, rates, strict=True)]
    )
    return confusion, rng.multinomial(unlabeled, truth @ rates)


@pytest.mark.parametrize("recall", [0.6, 0.9])
@pytest.mark.parametrize("truth", [PRIOR, PRIOR[::-1]], ids=["as labeled", "reversed"])
def test_nine_intervals_of_ten_hold_the_truth(recall, truth):
    rng = np.random.default_rng(0)
    held, p_values = [], []
    for seed in range(60):
        found = interval(*simulated(rng, recall, [140, 40, 20], 1000, truth), PRIOR, seed=seed)
        held.append((found.low <= truth) & (truth <= found.high))
        p_values.append(found.p_value)
    assert 0.82 <= np.mean(held) <= 0.98
    if truth is PRIOR:  # uniform: one of ten is below 0.1, and hardly one below 0.01
        assert np.mean(np.array(p_values) < 0.1) < 0.25
        assert np.mean(np.array(p_values) < 0.01) < 0.06
    else:
        assert np.median(p_values) < 0.01


def test_of_a_model_that_never_errs_it_is_that_of_shares():
    predicted = np.array([500, 300, 200])
    found = interval(np.eye(3, dtype=int) * 10**7, predicted, UNIFORM, seed=0)
    low, high = (binom.ppf(quantile, 1000, predicted / 1000) / 1000 for quantile in (0.05, 0.95))
    # The floor of the errors and the prior move it a little.
    np.testing.assert_allclose(found.low, low, atol=0.006)
    np.testing.assert_allclose(found.high, high, atol=0.006)


def test_its_width_is_that_of_the_linear_approximation():
    """Of two classes, pi = (q - f) / (r - f) with r, f and q the shares predicted as the first."""
    confusion, predicted = np.array([[160, 40], [30, 270]]), np.array([450, 550])
    r, f, q = 0.8, 0.1, 0.45
    variances = r * (1 - r) / 200, f * (1 - f) / 300, q * (1 - q) / 1000
    slopes = (f - q) / (r - f) ** 2, (q - r) / (r - f) ** 2, 1 / (r - f)
    deviation = np.sqrt(sum(v * s**2 for v, s in zip(variances, slopes, strict=True)))
    found = interval(confusion, predicted, np.array([0.5, 0.5]), seed=0)
    width = found.high[0] - found.low[0]
    assert width == pytest.approx(2 * norm.ppf(0.95) * deviation, rel=0.15)
    assert interval(
        confusion, predicted, np.array([0.5, 0.5]), seed=0, level=0.5
    ).high[0] - found.low[0] < width  # fmt: skip


@pytest.mark.parametrize("more", ["known", "unlabeled"])
def test_it_is_narrower_with_more_examples_of_either_kind(more):
    confusion = np.array([[80, 20, 0], [10, 80, 10], [10, 10, 80]])
    predicted = np.array([40, 30, 30])
    few = interval(confusion, predicted, UNIFORM, seed=1)
    if more == "known":
        many = interval(confusion * 100, predicted, UNIFORM, seed=1)
    else:
        many = interval(confusion, predicted * 100, UNIFORM, seed=1)
    assert ((many.high - many.low) < (few.high - few.low)).all()


def test_classes_that_are_taken_for_one_another_may_have_any_part_of_their_share():
    """The last class is always taken for the second; the first is always recognised."""
    confusion = np.array([[1000, 0, 0], [0, 500, 0], [0, 50, 0]])
    found = interval(confusion, np.array([600, 400, 0]), PRIOR, seed=0)
    assert found.high[0] - found.low[0] < 0.08
    assert (found.low[1:] < 0.05).all()
    assert (found.high[1:] > 0.35).all()


def test_a_model_that_knows_a_single_class_excludes_nothing():
    confusion = np.array([[0, 500, 0], [0, 90, 0], [0, 3, 0]])
    found = interval(confusion, np.array([0, 10_000, 0]), PRIOR, seed=0)
    assert ((found.low <= PRIOR) & (found.high >= PRIOR)).all()
    assert found.high[0] - found.low[0] > 0.9
    assert found.p_value > 0.05


def test_draws_in_groups_are_those_of_one_go(monkeypatch):
    """For many classes, they do not fit in memory together."""
    inputs = (np.array([[8, 2, 0], [1, 8, 1], [5, 0, 5]]), np.array([70, 20, 10]), PRIOR)
    whole = interval(*inputs, seed=3)
    assert interval(*inputs, seed=3).low.tolist() == whole.low.tolist()
    assert interval(*inputs, seed=4).low.tolist() != whole.low.tolist()
    monkeypatch.setattr(label_shift, "_AT_ONCE", 9 * 30)
    grouped = interval(*inputs, seed=3)
    np.testing.assert_allclose(grouped.low, whole.low, atol=0.05)
    np.testing.assert_allclose(grouped.high, whole.high, atol=0.05)
