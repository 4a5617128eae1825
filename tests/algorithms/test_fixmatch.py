from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from crest_jax.algorithms.fixmatch import fixmatch as fixmatch_of

LABELED, UNLABELED = 4, 12
RATIO = np.array([0.01, 5.0, 1.0, 0.1, 30.0])
ONES = np.ones(5)
WEIGHTS = np.array([0.2, 0.4, 1.0, 1.4, 2.0], np.float32)


fixmatch = partial(fixmatch_of, weak_forward="joint")


def views_of(step):
    """Labeled, weak and strong views share one forward pass, in this order."""
    (images,) = step.forward
    labeled, weak = step.weak
    (strong,) = step.strong
    np.testing.assert_array_equal(images, np.concatenate([labeled, weak, strong]))
    return labeled, weak, strong


def by_hand(step, threshold, weight, ratio=1, class_weights=ONES, refined=None):
    labeled, weak, strong = map(step.student_logits, views_of(step))
    cross_entropy = -log_softmax(labeled, axis=1)[range(LABELED), step.labels]
    supervised = (class_weights[step.labels] * cross_entropy).mean()
    total, above = 0.0, 0
    for row, (w, s) in enumerate(zip(weak, strong, strict=True)):
        q = softmax(w) * ratio / (softmax(w) * ratio).sum()
        q = q if refined is None else refined[row]
        if q.max() >= threshold:
            above += 1
            total += -log_softmax(s)[q.argmax()]
    # Averaged over all unlabeled images, not over those above the threshold.
    unsupervised = total / UNLABELED
    return supervised + weight * unsupervised, supervised, unsupervised, above / UNLABELED


@pytest.mark.parametrize(("threshold", "weight"), [(0.8, 1.0), (0.6, 0.5), (0.0, 2.0)])
def test_loss_is_the_papers(step, threshold, weight):
    result = fixmatch(step.inputs(), threshold=threshold, unlabeled_weight=weight)
    total, supervised, unsupervised, above = by_hand(step, threshold, weight)
    assert 0 < above < 1 or threshold == 0
    assert result.total == pytest.approx(total, rel=1e-5)
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-5)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-5)
    assert result.metrics["above_threshold"] == pytest.approx(above)


def test_weak_and_strong_views_of_an_image_are_drawn_apart(step):
    fixmatch(step.inputs(), threshold=0.6, unlabeled_weight=1.0)
    _, weak, strong = views_of(step)
    plain = step.images[LABELED:] / 255
    # The view's noise is added in one and subtracted in the other.
    assert not np.isclose(weak - plain, plain - strong, atol=1e-3).any(axis=(1, 2, 3)).all()


def test_threshold_and_argmax_see_the_aligned_guess(step):
    aligned = fixmatch(step.inputs(align=step.scaled(RATIO)), threshold=0.8, unlabeled_weight=1.0)
    expected, *_ = by_hand(step, 0.8, 1.0, RATIO)
    assert aligned.total == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(by_hand(step, 0.8, 1.0)[0], rel=1e-3)
    # The running estimate is fed with the raw prediction, refinement with the aligned guess.
    raw = softmax(step.student_logits(views_of(step)[1]), axis=1)
    np.testing.assert_allclose(aligned.prediction, raw.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        aligned.guesses, raw * RATIO / (raw * RATIO).sum(axis=1, keepdims=True), rtol=1e-4
    )


def test_what_refinement_returns_is_what_is_trained_on(step):
    refined = np.random.default_rng(1).dirichlet(np.full(5, 0.3), UNLABELED).astype(np.float32)
    result = fixmatch(
        step.inputs(refine=lambda guesses: jnp.asarray(refined)),
        threshold=0.7,
        unlabeled_weight=1.0,
    )
    expected, _, _, above = by_hand(step, 0.7, 1.0, refined=refined)
    assert 0 < above < 1
    assert result.total == pytest.approx(expected, rel=1e-5)


def test_every_label_counts_by_its_class_and_pseudo_labels_alike(step):
    inputs = step.inputs(class_weights=jnp.asarray(WEIGHTS))
    result = fixmatch(inputs, threshold=0.6, unlabeled_weight=1.0)
    assert result.total == pytest.approx(
        by_hand(step, 0.6, 1.0, class_weights=WEIGHTS)[0], rel=1e-5
    )


def test_no_gradient_reaches_the_weak_view(step):
    def loss(inputs):
        return fixmatch(inputs, threshold=0.6, unlabeled_weight=1.0)

    gradient = step.gradient(loss)
    result = loss(step.inputs())
    labeled, weak, strong = np.split(gradient, [LABELED, LABELED + UNLABELED])
    assert labeled.any(axis=1).all()
    assert not weak.any()
    # That of the cross-entropy with the pseudo-label as a constant.
    q = np.asarray(result.guesses)
    one_hot = np.eye(5)[q.argmax(axis=1)]
    p = softmax(step.student_logits(step.forward[0][-UNLABELED:]), axis=1)
    expected = (p - one_hot) * (q.max(axis=1) >= 0.6)[:, None] / UNLABELED
    np.testing.assert_allclose(strong, expected, rtol=1e-4, atol=1e-7)
    # Yet the loss does see the weak view: other weak logits make other pseudo-labels.
    step.start()
    step.offsets[0] = np.zeros((len(gradient), 5), np.float32)
    step.offsets[0][LABELED : LABELED + UNLABELED, 0] = 20
    assert loss(step.inputs()).total != pytest.approx(float(result.total), rel=1e-3)


def test_weak_views_with_a_pass_of_their_own_make_the_same_loss(step):
    """Only batch statistics differ, and a linear model does not use them."""
    joint = fixmatch(step.inputs(), threshold=0.6, unlabeled_weight=2.0)
    labeled, weak, strong = views_of(step)
    step.start()
    separate = fixmatch_of(
        step.inputs(), threshold=0.6, unlabeled_weight=2.0, weak_forward="separate"
    )
    np.testing.assert_array_equal(step.forward[0], weak)
    np.testing.assert_array_equal(step.forward[1], np.concatenate([labeled, strong]))
    for name in ("total", "prediction", "guesses"):
        np.testing.assert_allclose(getattr(separate, name), getattr(joint, name), rtol=1e-5)
    # Running statistics are the mean over views: 12 of 28 are weak ones of unlabeled images.
    expected = (12 * weak[0, 0, 0, 0] + 16 * labeled[0, 0, 0, 0]) / 28
    assert separate.batch_stats["first_pixel"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("weak_forward", "rows"), [("joint", 28), ("separate", 16)])
def test_a_pass_of_its_own_is_not_gone_back_through(step, weak_forward, rows):
    """The weights' gradient is a matrix product over so many views."""

    def total(weights):
        inputs = step.inputs(forward=lambda images: (step.logits(images, weights), {}))
        return fixmatch_of(
            inputs, threshold=0.6, unlabeled_weight=1.0, weak_forward=weak_forward
        ).total

    program = jax.make_jaxpr(jax.grad(total))(jnp.asarray(step.student, jnp.float32))
    summed_over = [
        equation.invars[0].aval.size // equation.outvars[0].aval.shape[0]
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "dot_general"
        and sorted(equation.outvars[0].aval.shape) == [4, 5]
    ]
    assert summed_over == [rows]
