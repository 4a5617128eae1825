"""Predictions of a model, and the results that are computed from them.

One compiled pass serves both the test set and the scoring of the unlabeled split.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from crest_jax import augment, hosts
from crest_jax.accuracy import (
    class_balanced_accuracy,
    confusion_matrix,
    per_class_precision,
    per_class_recall,
)
from crest_jax.mesh import REPLICATED, SPLIT, over_devices, split
from crest_jax.rebalancing.logit_adjustment import adjusted_labels


class Classification(NamedTuple):
    """A model's predictions for some examples, without augmentation."""

    labels: Int[np.ndarray, " examples"]
    # The largest softmax probability, in [0, 1].
    confidence: Float[np.ndarray, " examples"]
    # The predicted class after logit adjustment.
    adjusted_labels: Int[np.ndarray, " examples"]


Predict = Callable[
    [PyTree, PyTree, UInt8[np.ndarray, "examples height width channels"],
     Float[np.ndarray, " classes"]],
    Classification,
]  # fmt: skip

Logits = Callable[
    [PyTree, PyTree, UInt8[np.ndarray, "examples height width channels"]],
    Float[np.ndarray, "examples classes"],
]


def make_predict(model: nn.Module, mesh: Mesh, *, batch_size: int) -> Predict:
    """Return `predict(params, batch_stats, images, adjustment) -> Classification`, in NumPy.

    `adjustment`, from `logit_adjustment`, is subtracted from the logits for `adjusted_labels`.

    Args:
      model: the network, applied with the running statistics of batch norm.
      mesh: the devices that share each batch.
      batch_size: number of images of a batch, rounded up to a multiple of the number of devices;
        the last batch is padded.
    """
    over_batches = _over_batches(mapped_predict(model, mesh), mesh, batch_size)

    def predict(
        params: PyTree,
        batch_stats: PyTree,
        images: UInt8[np.ndarray, "examples height width channels"],
        adjustment: Float[np.ndarray, " classes"],
    ) -> Classification:
        if not len(images):  # an empty split has no image shape to compile for
            return nothing()
        return Classification(
            *over_batches(images, params, batch_stats, jnp.asarray(adjustment, jnp.float32))
        )

    return predict


def mapped_predict(model: nn.Module, mesh: Mesh) -> Callable[..., Any]:
    """Return the predictions on a batch of images that is split over the devices, compiled.

    It is a function of the images, the parameters, the batch statistics and the offsets of logit
    adjustment, and returns what `Classification` has.
    """

    def on_device(
        images: Array, params: PyTree, batch_stats: PyTree, adjustment: Array
    ) -> tuple[Array, Array, Array]:
        of_classes = logits(model, params, batch_stats, images)
        return (
            of_classes.argmax(axis=-1),
            jax.nn.softmax(of_classes).max(axis=-1),
            adjusted_labels(of_classes, adjustment),
        )

    return _mapped(on_device, mesh, inputs=3)


def make_logits(model: nn.Module, mesh: Mesh, *, batch_size: int) -> Logits:
    """Return `logits(params, batch_stats, images)`, in NumPy; arguments as for `make_predict`."""

    def on_device(images: Array, params: PyTree, batch_stats: PyTree) -> Array:
        return logits(model, params, batch_stats, images)

    over_batches = _over_batches(_mapped(on_device, mesh, inputs=2), mesh, batch_size)
    return lambda params, batch_stats, images: over_batches(images, params, batch_stats)


def logits(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    images: UInt8[Array, "batch height width channels"],
) -> Float[Array, "batch classes"]:
    """Return a model's logits, with the running statistics of batch norm; JAX traces it."""
    variables = {"params": params, "batch_stats": batch_stats}
    # Flax's annotation does not tell calls with `mutable`, which return a pair, from the others.
    return model.apply(variables, augment.rescale(images), train=False)  # type: ignore[return-value]


def _mapped(on_device: Callable[..., PyTree], mesh: Mesh, *, inputs: int) -> Callable[..., PyTree]:
    """Map a function of images and of `inputs` trees that every device holds over the devices."""
    return over_devices(on_device, mesh, in_specs=(SPLIT, *[REPLICATED] * inputs), out_specs=SPLIT)


def _over_batches(
    mapped: Callable[..., PyTree], mesh: Mesh, batch_size: int
) -> Callable[..., PyTree]:
    """Apply a function of a batch of images to as many batches as needed.

    Args:
      mapped: the function of a batch that is split over the devices, and of further arguments.
      mesh: the devices that share each batch.
      batch_size: number of images of a batch, rounded up to a multiple of the number of devices.

    Returns:
      The same function of any number of images, at least one; its result is in NumPy.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size

    def over_batches(images: np.ndarray, *arguments: PyTree) -> PyTree:
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch))] + [(0, 0)] * (images.ndim - 1)
            outputs.append(mapped(split(np.pad(batch, padding), mesh), *arguments))
        # Results are fetched only now, so that no batch waits for the result of the one before.
        fetched = jax.device_get(outputs)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *fetched)

    return over_batches


def nothing() -> Classification:
    """Return the predictions for no examples."""
    none = np.zeros(0, np.int32)
    return Classification(none, np.zeros(0, np.float32), none)


def over_chunks(
    chunks: Iterable[tuple[Sequence[str], np.ndarray, np.ndarray]],
    models: Mapping[str, Callable[[np.ndarray], Classification]],
) -> tuple[
    Shaped[np.ndarray, " examples"], Int[np.ndarray, " examples"], dict[str, Classification]
]:
    """Predict images that come in chunks with several models, reading each chunk once.

    Args:
      chunks: ids, images and labels of each chunk.
      models: by name, functions from a chunk's images to their predictions.

    Returns:
      Ids (UTF-8) and labels of all images, and each model's predictions for them.
    """
    ids = [np.zeros(0, "S1")]
    labels = [np.zeros(0, np.int32)]
    found = {name: [nothing()] for name in models}
    for names, images, truth in chunks:
        ids.append(np.array([name.encode() for name in names]))
        labels.append(truth)
        for name, predict in models.items():
            found[name].append(predict(images))
    predictions = {
        name: Classification(*map(np.concatenate, zip(*several, strict=True)))
        for name, several in found.items()
    }
    return np.concatenate(ids), np.concatenate(labels), predictions


def summarize(
    labels: Int[np.ndarray, " examples"], predictions: Classification, classes: int
) -> dict[str, Any]:
    """Return the results of one evaluation, in per cent, ready for JSON.

    Args:
      labels: true classes of this host's examples.
      predictions: predictions for these examples.
      classes: number of classes.
    """
    plain, adjusted = (
        hosts.total(confusion_matrix(labels, predicted, classes))
        for predicted in (predictions.labels, predictions.adjusted_labels)
    )
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
