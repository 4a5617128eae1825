import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from crest_jax import accuracy, evaluate
from crest_jax.evaluate import Classification
from crest_jax.mesh import mesh_of

CLASSES = 6
RNG = np.random.default_rng


def random_labels(seed, examples=500):
    """Return imbalanced classes without an example of class 5, and predictions that are never 3."""
    rng = RNG(seed)
    labels = rng.choice(CLASSES, examples, p=[0.5, 0.25, 0.15, 0.07, 0.03, 0.0])
    guesses = rng.choice([0, 1, 2, 4, 5], examples)
    predicted = np.where((rng.random(examples) < 0.6) & (labels != 3), labels, guesses)
    return labels.astype(np.int32), predicted.astype(np.int32)


# Metrics


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_is_sklearns(seed):
    labels, predicted = random_labels(seed)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(accuracy.confusion_matrix(labels, predicted, CLASSES), expected)


@pytest.mark.parametrize("seed", range(3))
def test_recall_and_precision_are_sklearns_and_none_where_there_is_nothing(seed):
    labels, predicted = random_labels(seed)
    confusion = accuracy.confusion_matrix(labels, predicted, CLASSES)
    precision, recall, _, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    ours = accuracy.per_class_recall(confusion), accuracy.per_class_precision(confusion)
    assert ours[0][5] is None, "no example of class 5"
    assert ours[0][3] == 0.0, "class 3 has examples, all of them missed"
    assert ours[1][3] is None, "class 3 is never predicted"
    assert ours[1][5] == 0.0, "class 5 is predicted, always wrongly"
    for mine, sklearns in zip(ours, (recall, precision), strict=True):
        mine = np.array([np.nan if value is None else value for value in mine])
        np.testing.assert_allclose(mine, 100 * sklearns)


@pytest.mark.parametrize("seed", range(3))
def test_class_balanced_accuracy_is_sklearns(seed):
    labels, predicted = random_labels(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a predicted class has no example is the point
        expected = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    confusion = accuracy.confusion_matrix(labels, predicted, CLASSES)
    assert accuracy.class_balanced_accuracy(confusion) == pytest.approx(100 * expected)
    plain = sklearn.metrics.accuracy_score(labels, predicted)
    assert abs(plain - expected) > 0.01, "the two differ here, so the test tells them apart"


def test_on_a_balanced_set_class_balanced_accuracy_is_accuracy():
    labels = np.repeat(np.arange(CLASSES), 50)
    predicted = np.where(RNG(0).random(300) < 0.7, labels, 0)
    confusion = accuracy.confusion_matrix(labels, predicted, CLASSES)
    expected = sklearn.metrics.accuracy_score(labels, predicted)
    assert accuracy.class_balanced_accuracy(confusion) == pytest.approx(100 * expected)


def test_always_predicting_the_majority_earns_one_class():
    labels = np.array([0] * 95 + [1] * 5)
    confusion = accuracy.confusion_matrix(labels, np.zeros(100, np.int64), 2)
    assert accuracy.class_balanced_accuracy(confusion) == 50.0


def test_summary_keeps_plain_and_adjusted_predictions_apart():
    labels, predicted = random_labels(0)
    predictions = Classification(predicted, np.ones(len(labels), np.float32), labels)
    summary = evaluate.summarize(labels, predictions, CLASSES)
    confusion = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))
    assert summary["confusion_matrix"] == confusion.tolist()
    assert summary["accuracy"] < 90
    assert summary["accuracy_logit_adjusted"] == 100.0
    assert summary["per_class_recall_logit_adjusted"] == [100.0] * 5 + [None]
    diagonal = np.diag(np.bincount(labels, minlength=CLASSES))
    assert summary["confusion_matrix_logit_adjusted"] == diagonal.tolist()


# Predictions


class Linear(nn.Module):
    """Logits that are an affine function of the pixels."""

    @nn.compact
    def __call__(self, images, train):
        assert not train
        return nn.Dense(3, name="dense")(images.reshape(len(images), -1))


class Pixels(nn.Module):
    """Logits that are the pixels, as the network sees them; parameters are not used."""

    def __call__(self, images, train):
        return images.reshape(len(images), -1)


def linear_example(examples):
    rng = RNG(7)
    images = rng.integers(0, 256, (examples, 4, 4, 1), dtype=np.uint8)
    params = {
        "dense": {
            "kernel": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
            "bias": jnp.asarray([0.5, -0.5, 0.0], jnp.float32),
        }
    }
    pixels = images.reshape(examples, -1) / 127.5 - 1
    logits = pixels @ np.asarray(params["dense"]["kernel"], np.float64) + [0.5, -0.5, 0.0]
    exponentials = np.exp(logits)
    return images, params, logits, exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (1, 11), (1, 16), (4, 8)])
def test_predictions_are_the_softmax_of_the_logits_whatever_the_padding(devices, batch_size):
    images, params, logits, probs = linear_example(11)
    prior = np.array([0.7, 0.2, 0.1])
    mesh = mesh_of(jax.devices()[:devices])
    predict = evaluate.make_predict(Linear(), mesh, batch_size=batch_size)
    predictions = predict(params, {}, images, np.log(prior))
    np.testing.assert_array_equal(predictions.labels, probs.argmax(axis=1))
    np.testing.assert_allclose(predictions.confidence, probs.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(
        predictions.adjusted_labels, (logits - np.log(prior)).argmax(axis=1)
    )
    assert set(predictions.labels) == {0, 1, 2}, "the example has every class"
    assert all(isinstance(field, np.ndarray) for field in predictions)


class BatchNorm(nn.Module):
    """Normalises the pixels with the running statistics."""

    @nn.compact
    def __call__(self, images, train):
        return nn.BatchNorm(use_running_average=not train, name="norm")(
            images.reshape(len(images), -1)
        )


def test_batch_norm_uses_the_running_statistics_that_are_given():
    images = np.array([[102, 153]], np.uint8).reshape(1, 1, 2, 1)  # -0.2 and 0.2 to the network
    params = {"norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    predict = evaluate.make_predict(BatchNorm(), mesh_of(jax.devices()[:1]), batch_size=2)
    for mean, label in [(0.0, 1), (1.0, 0)]:
        stats = {"norm": {"mean": jnp.array([0.0, mean]), "var": jnp.ones(2)}}
        predictions = predict(params, stats, images, np.zeros(2))
        margin = abs(0.2 - mean + 0.2)
        assert predictions.labels.tolist() == [label]
        assert predictions.confidence[0] == pytest.approx(1 / (1 + np.exp(-margin)), rel=1e-4)


def test_logit_adjustment_flips_a_narrow_decision_for_the_majority():
    # Two images of two pixels each, which are the logits: (1, 0.6) and (1, -1).
    images = np.array([[255, 204], [255, 0]], np.uint8).reshape(2, 1, 2, 1)
    predict = evaluate.make_predict(Pixels(), mesh_of(jax.devices()[:1]), batch_size=4)
    # Class 0 is twice as frequent, worth log 2 = 0.69: more than 0.4, less than 2.
    predictions = predict({}, {}, images, np.log(np.array([2 / 3, 1 / 3])))
    assert predictions.labels.tolist() == [0, 0]
    assert predictions.adjusted_labels.tolist() == [1, 0]
    # Confidence is what CReST selects by: it is not adjusted.
    expected = [1 / (1 + np.exp(-0.4)), 1 / (1 + np.exp(-2))]
    np.testing.assert_allclose(predictions.confidence, expected, rtol=1e-5)


def test_an_adjustment_of_zero_changes_nothing():
    images, params, _, _ = linear_example(9)
    predictions = evaluate.make_predict(Linear(), mesh_of(jax.devices()[:1]), batch_size=9)(
        params, {}, images, np.zeros(3)
    )
    np.testing.assert_array_equal(predictions.labels, predictions.adjusted_labels)


def test_no_images_give_no_predictions():
    predict = evaluate.make_predict(Pixels(), mesh_of(jax.devices()[:1]), batch_size=4)
    predictions = predict({}, {}, np.zeros((0, 1, 2, 1), np.uint8), np.zeros(2))
    assert [len(field) for field in predictions] == [0, 0, 0]
    labels = np.zeros(0, np.int32)
    assert evaluate.summarize(labels, predictions, 2)["per_class_recall"] == [None, None]


def test_a_split_may_have_no_parts_and_parts_are_put_together():
    def model(images):
        labels = images[:, 0, 0, 0].astype(np.int32)
        return evaluate.Classification(labels, labels / 10, labels + 1)

    ids, labels, predictions = evaluate.over_chunks([], {"ema": model})
    assert (len(ids), labels.shape, predictions["ema"].labels.shape) == (0, (0,), (0,))
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    parts = [
        (["a", "b"], images[:2], np.array([7, 8])),
        (["c", "d", "e"], images[2:], np.arange(3)),
    ]
    ids, labels, predictions = evaluate.over_chunks(parts, {"ema": model, "raw": model})
    assert ids.tolist() == [b"a", b"b", b"c", b"d", b"e"]
    assert labels.tolist() == [7, 8, 0, 1, 2]
    assert predictions["raw"].adjusted_labels.tolist() == [1, 2, 3, 4, 5]
