"""Predictions of a model, and accuracy, per-class recall and precision, confusion matrix of them.

One compiled pass serves the test set and the scoring of the unlabeled split.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8

from crest_jax import augment, distributed
from crest_jax.distributed import REPLICATED, SPLIT


class Predictions(NamedTuple):
    """What a model says of each example, without augmentation."""

    labels: Int[Array | np.ndarray, " examples"]
    # Largest softmax probability, in [0, 1].
    confidence: Float[Array | np.ndarray, " examples"]
    # Predicted class after logit adjustment.
    adjusted_labels: Int[Array | np.ndarray, " examples"]


Predict = Callable[
    [PyTree, PyTree, UInt8[np.ndarray, "examples height width channels"],
     Float[np.ndarray, " classes"]],
    Predictions,
]  # fmt: skip


def make_predict(model: nn.Module, mesh: Mesh, *, batch_size: int) -> Predict:
    """Returns `predict(params, batch_stats, images, adjustment) -> Predictions`, in NumPy.

    `adjustment` is subtracted from the logits for `adjusted_labels`: `tau log p(y)` for post-hoc
    logit adjustment (Menon et al., 2021, Eq. 9).

    Args:
      model: its batch norm uses running statistics here.
      mesh: whose devices share each batch.
      batch_size: images a call; the last batch is padded.
    """

    def on_device(params, batch_stats, images, adjustment):
        variables = {"params": params, "batch_stats": batch_stats}
        logits = model.apply(variables, augment.rescale(images), train=False)
        return Predictions(
            logits.argmax(axis=-1),
            jax.nn.softmax(logits).max(axis=-1),
            (logits - adjustment).argmax(axis=-1),
        )

    mapped = distributed.over_devices(
        on_device,
        mesh,
        in_specs=(REPLICATED, REPLICATED, SPLIT, REPLICATED),
        out_specs=SPLIT,
    )

    def predict(params, batch_stats, images, adjustment) -> Predictions:
        adjustment = jnp.asarray(adjustment, jnp.float32)
        parts = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch))] + [(0, 0)] * (images.ndim - 1)
            batch = distributed.split(np.pad(batch, padding), mesh)
            parts.append(mapped(params, batch_stats, batch, adjustment))
        # Fetched only now: no batch waits for the one before it to come back.
        fetched = jax.device_get(parts)
        if not fetched:
            empty = np.zeros(0, np.int32)
            return Predictions(empty, np.zeros(0, np.float32), empty)
        fields = (np.concatenate(field)[: len(images)] for field in zip(*fetched, strict=True))
        return Predictions(*fields)

    return predict


def confusion_matrix(
    labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts examples by true class (row) and predicted class (column)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def per_class_recall(confusion: Int[np.ndarray, "classes classes"]) -> list[float | None]:
    """Per cent of each class' examples that are predicted as it; None for a class without any."""
    return _per_cent(confusion.diagonal(), confusion.sum(axis=1))


def per_class_precision(confusion: Int[np.ndarray, "classes classes"]) -> list[float | None]:
    """Per cent of the predictions of each class that are right; None where there are none."""
    return _per_cent(confusion.diagonal(), confusion.sum(axis=0))


def class_balanced_accuracy(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Mean of the per-class recalls in per cent; on a balanced test set, the accuracy.

    Classes without an example are left out.
    """
    recalls = [recall for recall in per_class_recall(confusion) if recall is not None]
    return float(np.mean(recalls)) if recalls else 0.0


def summarize(
    labels: Int[np.ndarray, " examples"], predictions: Predictions, classes: int
) -> dict[str, Any]:
    """Returns the figures of one evaluation, in per cent, ready for JSON."""
    plain = confusion_matrix(labels, predictions.labels, classes)
    adjusted = confusion_matrix(labels, predictions.adjusted_labels, classes)
    return {
        "accuracy": class_balanced_accuracy(plain),
        "accuracy_logit_adjusted": class_balanced_accuracy(adjusted),
        "per_class_recall": per_class_recall(plain),
        "per_class_precision": per_class_precision(plain),
        "per_class_recall_logit_adjusted": per_class_recall(adjusted),
        "per_class_precision_logit_adjusted": per_class_precision(adjusted),
        "confusion_matrix": plain.tolist(),
        "confusion_matrix_logit_adjusted": adjusted.tolist(),
    }


def _per_cent(
    right: Int[np.ndarray, " classes"], total: Int[np.ndarray, " classes"]
) -> list[float | None]:
    return [100.0 * float(r) / float(n) if n else None for r, n in zip(right, total, strict=True)]
