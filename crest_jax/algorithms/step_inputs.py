"""The inputs and outputs of an algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int, Key, PyTree, UInt8


class StepInputs(NamedTuple):
    """The inputs of one training step on one device.

    The functions hold the parameters, the augmentation settings and the running estimates, so that
    an algorithm consists of its paper's equations only.

    Attributes:
      labeled: the labeled images, uint8.
      labels: their labels, indices into the class names.
      unlabeled: the unlabeled images, uint8.
      labeled_keys: a key for each labeled image, which does not depend on the device that the image
        is on.
      unlabeled_keys: likewise for each unlabeled image.
      step: the step of the generation, from 0.
      progress: the fraction of the generation's training that is done, in [0, 1).
      class_weights: the weight of a labeled example of each class; ones unless the loss is
        class-balanced.
      weak: it maps (images, keys) to weakly augmented images in [-1, 1].
      strong: it maps (images, keys, keys of their weak views) to strongly augmented images in
        [-1, 1]. They start from the weak views that `weak` makes of the last argument if
        `augment.from_weak_view` is set, and otherwise from new weak views.
      forward: it maps images to (logits, new batch statistics), in training mode.
      teacher: it maps images to logits of the moving average of the weights, in training mode and
        without a gradient.
      align: it maps probabilities of unlabeled images to label guesses, by distribution alignment;
        the identity without it.
      refine: it maps pseudo-targets of the unlabeled images to the targets to train on, by DARP;
        the identity without it.
      shuffle: it maps a sequence of trees of arrays, with examples along the leading axis, to the
        same with the examples randomly permuted, across all trees and devices.
    """

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]
    labeled_keys: Key[Array, " labeled"]
    unlabeled_keys: Key[Array, " unlabeled"]
    step: Int[Array, ""]
    progress: Float[Array, ""]
    class_weights: Float[Array, " classes"]
    weak: Callable[[Array, Array], Array]
    strong: Callable[[Array, Array, Array], Array]
    forward: Callable[[Array], tuple[Array, PyTree]]
    teacher: Callable[[Array], Array]
    align: Callable[[Array], Array]
    refine: Callable[[Array], Array]
    shuffle: Callable[[PyTree], PyTree]


class Loss(NamedTuple):
    """The scalar to minimise, and the results of the step that are kept.

    Attributes:
      total: the scalar to minimise, a mean over the examples of the device.
      batch_stats: the statistics that the model has after the step, as `StepInputs.forward` returns
        them, or others of the same shapes.
      metrics: scalars to log, by their names, each a mean over examples.
      prediction: the mean raw prediction on the unlabeled images, before alignment; None without
        such images.
      guesses: the pseudo-targets of the unlabeled images before `refine`; None without such images.
    """

    total: Float[Array, ""]
    batch_stats: PyTree
    metrics: dict[str, Float[Array, ""]]
    prediction: Float[Array, " classes"] | None = None
    guesses: Float[Array, "unlabeled classes"] | None = None


class LossFunction(Protocol):
    """A loss: it is traced by JAX, and takes its hyper-parameters as keyword arguments."""

    # With *args beside **, a type checker takes any further arguments for these.
    def __call__(self, inputs: StepInputs, /, *args: Any, **hyper_parameters: Any) -> Loss:
        """Return the loss of a step, and the results of the step that are kept."""
