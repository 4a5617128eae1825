import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from crest_jax.algorithms.mixmatch import mixmatch, sharpen

LABELED, UNLABELED, CLASSES = 4, 12, 5
RATIO = np.array([0.01, 5.0, 1.0, 0.1, 30.0])
WEIGHTS = np.array([0.2, 0.4, 1.0, 1.4, 2.0], np.float32)


def loss(inputs, **changes):
    options = {
        "unlabeled_weight": 75.0,
        "ramp_up_steps": 0,
        "sharpening_temperature": 0.5,
        "mixup_alpha": 0.75,
    }
    return mixmatch(inputs, **{**options, **changes})


def guesses_by_hand(step, temperature=0.5, ratio=1):
    """Return the mean prediction on two views, aligned and sharpened, and the mean itself."""
    first, second = (softmax(step.student_logits(views), axis=1) for views in step.weak[1:])
    mean = (first + second) / 2
    powered = (mean * ratio / (mean * ratio).sum(axis=1, keepdims=True)) ** (1 / temperature)
    return powered / powered.sum(axis=1, keepdims=True), mean


def mixtures_by_hand(step, targets):
    """Return mixed images and targets, given the targets of the unlabeled images.

    Everyone's partner is the example before, by the test's own shuffle; how much of whom is in a
    mixture is read off its pixels.
    """
    images = np.concatenate([np.asarray(views, np.float64) for views in step.weak])
    labels = np.concatenate([np.eye(CLASSES)[step.labels], targets, targets])
    mixed = np.asarray(step.forward[1], np.float64)
    assert mixed.shape == images.shape
    partners, partners_labels = np.roll(images, 1, axis=0), np.roll(labels, 1, axis=0)
    towards, moved = (images - partners).reshape(len(mixed), -1), (mixed - partners)
    shares = (towards * moved.reshape(len(mixed), -1)).sum(axis=1) / (towards**2).sum(axis=1)
    by_share = shares[:, None, None, None]
    np.testing.assert_allclose(mixed, by_share * images + (1 - by_share) * partners, atol=1e-6)
    return mixed, shares[:, None] * labels + (1 - shares[:, None]) * partners_labels, shares


def losses_by_hand(step, targets, class_weights=None):
    mixed, mixed_targets, _ = mixtures_by_hand(step, targets)
    logits = step.student_logits(mixed)
    weighted = mixed_targets * (1 if class_weights is None else class_weights)
    supervised = -(weighted * log_softmax(logits, axis=1))[:LABELED].sum(axis=1).mean()
    error = (softmax(logits, axis=1) - mixed_targets)[LABELED:]
    return supervised, (error**2).sum() / (2 * UNLABELED * CLASSES)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(("number", "risen"), [(10, 0.25), (50, 1.0)])
def test_loss_is_the_papers(step, temperature, number, risen):
    result = loss(
        step.inputs(step=jnp.int32(number)),
        ramp_up_steps=40,
        sharpening_temperature=temperature,
    )
    targets, mean = guesses_by_hand(step, temperature)
    supervised, unsupervised = losses_by_hand(step, targets)
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-4)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-4)
    expected = supervised + 75 * risen * unsupervised
    assert result.total == result.metrics["loss"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(result.prediction, mean.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.guesses, targets, rtol=1e-4, atol=1e-7)


def test_images_are_mixed_with_shares_of_their_own_above_a_half(step):
    loss(step.inputs())
    targets, _ = guesses_by_hand(step)
    _, _, shares = mixtures_by_hand(step, targets)
    assert len(shares) == LABELED + 2 * UNLABELED
    assert shares.min() >= 0.5 - 1e-6
    assert shares.max() <= 1 + 1e-6
    assert len(np.unique(shares.round(4))) > LABELED + UNLABELED


def test_guesses_are_made_from_two_weak_views_in_a_pass_of_their_own(step):
    result = loss(step.inputs())
    labeled, first, second = step.weak
    np.testing.assert_array_equal(step.forward[0], np.concatenate([first, second]))
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 0.01).all()
    assert len(labeled) == LABELED
    # Statistics of the mixed images are kept.
    assert result.batch_stats["first_pixel"] == step.forward[1][0, 0, 0, 0]


def test_no_gradient_reaches_the_guesses(step):
    gradient = step.gradient(loss, forward_pass=0)
    assert not gradient.any()
    # Yet the loss does depend on them.
    before = loss(step.inputs()).total
    step.start()
    step.offsets[0] = 10 * jnp.eye(CLASSES)[0]
    assert loss(step.inputs()).total != pytest.approx(float(before), rel=0.05)


def test_the_gradient_of_the_mixed_images_is_that_with_constant_targets(step):
    gradient = step.gradient(loss, forward_pass=1)
    loss(step.inputs())
    mixed, targets, _ = mixtures_by_hand(step, guesses_by_hand(step)[0])
    p = softmax(step.student_logits(mixed), axis=1)
    labeled = (p - targets)[:LABELED] / LABELED
    error = 2 * (p - targets)[LABELED:] / (2 * UNLABELED * CLASSES)
    unlabeled = p[LABELED:] * (error - (p[LABELED:] * error).sum(axis=1, keepdims=True))
    expected = np.concatenate([labeled, 75 * unlabeled])
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_guesses_are_aligned_before_they_are_sharpened(step):
    result = loss(step.inputs(align=step.scaled(RATIO)))
    targets, mean = guesses_by_hand(step, ratio=RATIO)
    supervised, unsupervised = losses_by_hand(step, targets)
    assert result.total == pytest.approx(supervised + 75 * unsupervised, rel=1e-4)
    np.testing.assert_allclose(result.prediction, mean.mean(axis=0), rtol=1e-5)


def test_what_refinement_returns_is_what_is_trained_on(step):
    refined = np.random.default_rng(1).dirichlet(np.ones(CLASSES), UNLABELED).astype(np.float32)
    result = loss(step.inputs(refine=lambda guesses: jnp.asarray(refined)))
    supervised, unsupervised = losses_by_hand(step, refined)
    assert result.total == pytest.approx(supervised + 75 * unsupervised, rel=1e-4)


def test_every_share_of_a_label_counts_by_its_class(step):
    result = loss(step.inputs(class_weights=jnp.asarray(WEIGHTS)))
    supervised, unsupervised = losses_by_hand(step, guesses_by_hand(step)[0], WEIGHTS)
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-4)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-4)


def test_sharpening_by_hand():
    """At T = 1/2, shares of 3 to 1 become 9 to 1; even ones stay."""
    probs = jnp.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]])
    expected = [[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]]
    np.testing.assert_allclose(sharpen(probs, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(sharpen(probs, 1.0), probs, rtol=1e-6)
