import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from crest_jax.algorithms.pseudo_label import pseudo_label

LABELED, UNLABELED = 4, 12
RATIO = np.array([0.01, 5.0, 1.0, 0.1, 30.0])
WEIGHTS = np.array([0.2, 0.4, 1.0, 1.4, 2.0], np.float32)


def loss(inputs, **changes):
    return pseudo_label(
        inputs, **{"threshold": 0.8, "unlabeled_weight": 3.0, "ramp_up": 0.8, **changes}
    )


def by_hand(step, *, threshold=0.8, weight=3.0, ratio=1, refined=None):
    """Return labeled and unlabeled terms, total, and the share of images above the threshold."""
    labeled, unlabeled = map(step.student_logits, step.forward)
    supervised = -log_softmax(labeled, axis=1)[range(LABELED), step.labels].mean()
    q = softmax(unlabeled, axis=1) * ratio
    q = q / q.sum(axis=1, keepdims=True) if refined is None else refined
    above = q.max(axis=1) >= threshold
    losses = -log_softmax(unlabeled, axis=1)[range(UNLABELED), q.argmax(axis=1)]
    unsupervised = (losses * above).sum() / UNLABELED
    return supervised, unsupervised, supervised + weight * unsupervised, above.mean()


@pytest.mark.parametrize("threshold", [0.8, 0.0])
@pytest.mark.parametrize(
    ("progress", "ramp_up", "risen"), [(0.2, 0.8, 0.25), (0.9, 0.8, 1.0), (0.0, 0.0, 1.0)]
)
def test_loss_is_the_papers(step, threshold, progress, ramp_up, risen):
    result = loss(step.inputs(progress=jnp.float32(progress)), threshold=threshold, ramp_up=ramp_up)
    supervised, unsupervised, total, above = by_hand(step, threshold=threshold, weight=3 * risen)
    assert 0 < above < 1 or threshold == 0
    assert result.total == result.metrics["loss"] == pytest.approx(total, rel=1e-5)
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-5)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-5)
    assert result.metrics["above_threshold"] == pytest.approx(above)


def test_one_weak_view_each_and_statistics_of_the_labeled_ones(step):
    result = loss(step.inputs())
    for views, images in zip(step.weak, step.forward, strict=True):
        np.testing.assert_array_equal(views, images)
    assert [len(images) for images in step.forward] == [LABELED, UNLABELED]
    assert not step.strong
    assert result.batch_stats["first_pixel"] == step.forward[0][0, 0, 0, 0]


def test_threshold_and_argmax_see_the_aligned_guess(step):
    result = loss(step.inputs(align=step.scaled(RATIO)), ramp_up=0.0)
    expected = by_hand(step, ratio=RATIO)[2]
    assert result.total == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(by_hand(step)[2], rel=1e-3)
    raw = softmax(step.student_logits(step.forward[1]), axis=1)
    np.testing.assert_allclose(result.prediction, raw.mean(axis=0), rtol=1e-5)


def test_what_refinement_returns_is_what_is_trained_on(step):
    refined = np.random.default_rng(1).dirichlet(np.full(5, 0.3), UNLABELED).astype(np.float32)
    result = loss(step.inputs(refine=lambda guesses: jnp.asarray(refined)), ramp_up=0.0)
    assert result.total == pytest.approx(by_hand(step, refined=refined)[2], rel=1e-5)


def test_every_label_counts_by_its_class(step):
    result = loss(step.inputs(class_weights=jnp.asarray(WEIGHTS)))
    logs = log_softmax(step.student_logits(step.forward[0]), axis=1)[range(LABELED), step.labels]
    expected = -(WEIGHTS[step.labels] * logs).mean()
    assert result.metrics["labeled_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_pseudo_label_is_a_constant(step):
    """The gradient is that of a cross-entropy with a given label, for confident images alone."""
    gradient = step.gradient(lambda inputs: loss(inputs, ramp_up=0.0), forward_pass=1)
    loss(step.inputs())
    p = softmax(step.student_logits(step.forward[1]), axis=1)
    confident = p.max(axis=1) >= 0.8
    expected = 3.0 * (p - np.eye(5)[p.argmax(axis=1)]) * confident[:, None] / UNLABELED
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient.any(axis=1), confident)
    assert 0 < confident.sum() < UNLABELED
