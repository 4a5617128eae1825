import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from crest_jax.algorithms.supervised import supervised

WEIGHTS = np.array([0.2, 0.4, 1.0, 1.4, 2.0], np.float32)


def test_loss_is_the_mean_cross_entropy_of_weak_views(step):
    result = supervised(step.inputs())
    (views,) = step.forward
    np.testing.assert_array_equal(views, step.weak[0])
    logs = log_softmax(step.student_logits(views), axis=1)
    assert result.total == pytest.approx(-logs[range(4), step.labels].mean(), rel=1e-5)
    assert result.metrics["labeled_loss"] == result.metrics["loss"] == result.total
    assert result.batch_stats["first_pixel"] == views[0, 0, 0, 0]
    assert result.prediction is None
    assert result.guesses is None


def test_every_label_counts_by_its_class(step):
    result = supervised(step.inputs(class_weights=jnp.asarray(WEIGHTS)))
    logs = log_softmax(step.student_logits(step.forward[0]), axis=1)
    expected = -(WEIGHTS[step.labels] * logs[range(4), step.labels]).mean()
    assert result.total == pytest.approx(expected, rel=1e-5)


def test_unlabeled_images_are_not_looked_at(step):
    result = supervised(step.inputs(unlabeled=step.images[:0], unlabeled_keys=jnp.zeros(0)))
    assert result.total == pytest.approx(float(supervised(step.inputs()).total))
