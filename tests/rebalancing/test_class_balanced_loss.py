import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from crest_jax.rebalancing.class_balanced_loss import class_weights, weighted_cross_entropy


def test_weights_of_two_classes_by_hand():
    """One example against a thousand: effective numbers 1 and (1 - 0.999^1000) / 0.001 = 632.3."""
    weights = class_weights(np.array([1, 1000]), 0.999)
    ratio = 632.30457
    np.testing.assert_allclose(weights[0] / weights[1], ratio, rtol=1e-6)
    np.testing.assert_allclose(weights, [2 * ratio / (ratio + 1), 2 / (ratio + 1)], rtol=1e-6)


def test_weights_of_the_labeled_tenth_of_cifar10_lt():
    counts = np.array([500, 300, 180, 108, 65, 39, 24, 14, 9, 5])
    weights = class_weights(counts, 0.999)
    # 1 / (1 + b + b^2 + ... + b^(N-1)), added up one by one.
    raw = np.array([1 / sum(0.999**power for power in range(count)) for count in counts])
    np.testing.assert_allclose(weights, raw / raw.mean(), rtol=1e-9)
    assert weights.mean() == pytest.approx(1)
    assert (np.diff(weights) > 0).all()
    assert weights[9] / weights[0] == pytest.approx(78.9, abs=0.1)


def test_b_leads_from_no_weights_to_inverse_frequencies():
    counts = np.array([50, 20, 1])
    np.testing.assert_allclose(class_weights(counts, 0.0), 1)
    inverse = 1 / counts
    np.testing.assert_allclose(class_weights(counts, 1 - 1e-7), inverse / inverse.mean(), rtol=1e-4)


def test_weighted_cross_entropy_of_one_hot_and_mixed_targets():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    weights = np.array([0.2, 0.8, 1.0, 2.0], np.float32)
    mixed = rng.dirichlet(np.ones(4), size=3).astype(np.float32)
    labels = np.array([3, 0, 2])
    targets = np.concatenate([np.eye(4, dtype=np.float32)[labels], mixed])
    ours = weighted_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights))
    logs = log_softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(ours[:3], -weights[labels] * logs[range(3), labels], rtol=1e-5)
    np.testing.assert_allclose(ours[3:], -(mixed * weights * logs[3:]).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("counts", "b", "message"),
    [([3, 0, 1], 0.9, "class 1 has no"), ([3, 1], 1.0, "b=1.0"), ([3, 1], -0.1, "b=-0.1")],
)
def test_what_has_no_weights_is_refused(counts, b, message):
    with pytest.raises(ValueError, match=message):
        class_weights(np.array(counts), b)
