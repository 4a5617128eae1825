"""Confusion matrices, and the accuracy and the per-class recall and precision that they give."""

import numpy as np
from jaxtyping import Int


def confusion_matrix(
    labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Count examples by true class (row) and predicted class (column)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def per_class_recall(confusion: Int[np.ndarray, "classes classes"]) -> list[float | None]:
    """Return the percentage of each class's examples that are predicted right; None without any."""
    return _per_cent(confusion.diagonal(), confusion.sum(axis=1))


def per_class_precision(confusion: Int[np.ndarray, "classes classes"]) -> list[float | None]:
    """Return the percentage of each class's predictions that are right; None without any."""
    return _per_cent(confusion.diagonal(), confusion.sum(axis=0))


def class_balanced_accuracy(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Return the mean of the per-class recalls in per cent; on a balanced test set, the accuracy.

    Classes without an example are left out. The result is 0 if no class has an example.
    """
    recalls = [recall for recall in per_class_recall(confusion) if recall is not None]
    return float(np.mean(recalls)) if recalls else 0.0


def _per_cent(
    right: Int[np.ndarray, " classes"], total: Int[np.ndarray, " classes"]
) -> list[float | None]:
    return [
        100.0 * float(part) / float(whole) if whole else None
        for part, whole in zip(right, total, strict=True)
    ]
