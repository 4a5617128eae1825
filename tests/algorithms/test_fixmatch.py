import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from crest_jax.algorithms import StepInputs
from crest_jax.algorithms.fixmatch import fixmatch

LABELED, UNLABELED, CLASSES = 4, 12, 5


def inputs(logits, labels, align=lambda probs: probs):
    """A step whose model gives `logits`; its views carry which they are in their pixels."""

    def view(mark):
        return lambda images, keys: jnp.full(images.shape, mark, jnp.float32)

    def forward(images):
        # Labeled and weak views first, then strong ones: all in one forward pass.
        marks = np.concatenate([np.ones(LABELED + UNLABELED), np.full(UNLABELED, 2.0)])
        np.testing.assert_array_equal(images[:, 0, 0, 0], marks)
        return logits, {"statistics": jnp.ones(())}

    images = np.zeros((LABELED + UNLABELED, 2, 2, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), LABELED + UNLABELED)
    return StepInputs(
        images[:LABELED], labels, images[LABELED:], keys[:LABELED], keys[LABELED:],
        view(1.0), view(2.0), forward, align,
    )  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(LABELED + 2 * UNLABELED, CLASSES)).astype(np.float32)
    return logits, rng.integers(CLASSES, size=LABELED)


def by_hand(logits, labels, threshold, weight, ratio=None):
    labeled, weak, strong = np.split(logits.astype(np.float64), [LABELED, LABELED + UNLABELED])
    supervised = -log_softmax(labeled, axis=1)[range(LABELED), labels].mean()
    total = 0.0
    above = 0
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        if ratio is not None:
            q = q * ratio / (q * ratio).sum()
        if q.max() >= threshold:
            above += 1
            total += -log_softmax(s)[q.argmax()]
    # Averaged over all unlabeled images, not over those above the threshold.
    unsupervised = total / UNLABELED
    return supervised + weight * unsupervised, supervised, unsupervised, above / UNLABELED


@pytest.mark.parametrize(("threshold", "weight"), [(0.95, 1.0), (0.6, 0.5), (0.0, 2.0)])
def test_loss_is_the_papers(batch, threshold, weight):
    logits, labels = batch
    result = fixmatch(inputs(logits, labels), threshold=threshold, unlabeled_weight=weight)
    total, supervised, unsupervised, above = by_hand(logits, labels, threshold, weight)
    assert above > 0
    assert result.total == pytest.approx(total, rel=1e-5)
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-5)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-5)
    assert result.metrics["above_threshold"] == pytest.approx(above)


def test_threshold_and_argmax_see_the_aligned_guess(batch):
    logits, labels = batch
    ratio = np.array([0.01, 5.0, 1.0, 0.1, 30.0])

    def align(probs):
        scaled = probs * ratio
        return scaled / scaled.sum(axis=-1, keepdims=True)

    aligned = fixmatch(inputs(logits, labels, align), threshold=0.9, unlabeled_weight=1.0)
    expected, _, _, above = by_hand(logits, labels, 0.9, 1.0, ratio)
    assert aligned.total == pytest.approx(expected, rel=1e-5)
    assert above != by_hand(logits, labels, 0.9, 1.0)[3]
    # The running estimate is fed with the raw prediction.
    weak = logits[LABELED : LABELED + UNLABELED]
    np.testing.assert_allclose(aligned.prediction, softmax(weak, axis=1).mean(axis=0), rtol=1e-5)


def test_no_gradient_reaches_the_weak_view(batch):
    logits, labels = batch

    def loss(logits):
        return fixmatch(inputs(logits, labels), threshold=0.6, unlabeled_weight=1.0).total

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
    labeled, weak, strong = np.split(gradient, [LABELED, LABELED + UNLABELED])
    assert np.abs(labeled).min(axis=1).all()
    assert not weak.any()
    confident = softmax(logits[LABELED : LABELED + UNLABELED], axis=1).max(axis=1) >= 0.6
    np.testing.assert_array_equal(strong.any(axis=1), confident)
