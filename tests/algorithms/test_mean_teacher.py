import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from crest_jax.algorithms.mean_teacher import mean_teacher

LABELED, UNLABELED, CLASSES = 4, 12, 5
RATIO = np.array([0.01, 5.0, 1.0, 0.1, 30.0])
WEIGHTS = np.array([0.2, 0.4, 1.0, 1.4, 2.0], np.float32)


def loss(inputs, **changes):
    return mean_teacher(inputs, **{"unlabeled_weight": 50.0, "ramp_up": 0.0, **changes})


def predictions(step):
    """Return the predictions of student and teacher on their views."""
    student = softmax(step.student_logits(step.forward[1]), axis=1)
    (views,) = step.taught
    return student, softmax(step.teacher_logits(views), axis=1)


@pytest.mark.parametrize(("progress", "risen"), [(0.1, 0.25), (0.7, 1.0)])
def test_loss_is_the_papers(step, progress, risen):
    result = loss(step.inputs(progress=jnp.float32(progress)), ramp_up=0.4)
    logs = log_softmax(step.student_logits(step.forward[0]), axis=1)
    supervised = -logs[range(LABELED), step.labels].mean()
    student, teacher = predictions(step)
    # Over images and classes.
    unsupervised = ((student - teacher) ** 2).sum() / (UNLABELED * CLASSES)
    assert unsupervised > 0.01
    assert result.metrics["labeled_loss"] == pytest.approx(supervised, rel=1e-5)
    assert result.metrics["unlabeled_loss"] == pytest.approx(unsupervised, rel=1e-5)
    expected = supervised + 50 * risen * unsupervised
    assert result.total == result.metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_student_and_teacher_see_two_weak_views(step):
    result = loss(step.inputs())
    labeled, first, second = step.weak
    np.testing.assert_array_equal(step.forward[0], labeled)
    np.testing.assert_array_equal(step.forward[1], first)
    np.testing.assert_array_equal(step.taught[0], second)
    assert (np.abs(first - second).max(axis=(1, 2, 3)) > 0.01).all()
    assert result.batch_stats["first_pixel"] == labeled[0, 0, 0, 0]


def test_no_gradient_reaches_the_teacher(step):
    """Moving the teacher's logits changes the loss, but the gradient is as if they were given."""
    gradient = step.gradient(loss, forward_pass=1)
    before = loss(step.inputs())
    student, teacher = predictions(step)
    # d/dz of sum_k (p_k - t_k)^2 through the softmax.
    error = 2 * (student - teacher) / (UNLABELED * CLASSES)
    through = student * (error - (student * error).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(gradient, 50 * through, rtol=1e-3, atol=1e-6)

    step.start()
    step.teacher_offset = 20 * jnp.eye(CLASSES)[0]
    assert loss(step.inputs()).total > before.total * 1.05


def test_the_teachers_prediction_is_aligned_and_refined(step):
    result = loss(step.inputs(align=step.scaled(RATIO)))
    student, teacher = predictions(step)
    aligned = teacher * RATIO / (teacher * RATIO).sum(axis=1, keepdims=True)
    expected = ((student - aligned) ** 2).mean()
    assert result.metrics["unlabeled_loss"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(result.prediction, teacher.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.guesses, aligned, rtol=1e-4, atol=1e-7)

    step.start()
    refined = np.random.default_rng(1).dirichlet(np.ones(CLASSES), UNLABELED).astype(np.float32)
    result = loss(step.inputs(refine=lambda guesses: jnp.asarray(refined)))
    expected = ((student - refined) ** 2).mean()
    assert result.metrics["unlabeled_loss"] == pytest.approx(expected, rel=1e-5)


def test_every_label_counts_by_its_class(step):
    result = loss(step.inputs(class_weights=jnp.asarray(WEIGHTS)))
    logs = log_softmax(step.student_logits(step.forward[0]), axis=1)[range(LABELED), step.labels]
    expected = -(WEIGHTS[step.labels] * logs).mean()
    assert result.metrics["labeled_loss"] == pytest.approx(expected, rel=1e-5)
