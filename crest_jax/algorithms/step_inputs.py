"""The inputs and outputs of an algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, Int, Key, PyTree, UInt8


class StepInputs(NamedTuple):
    """The inputs of one training step on one device.

    The functions hold the parameters, the augmentation settings and the running estimates, so that
    an algorithm consists of its paper's equations only.
    """

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]
    # One key per example, which does not depend on the device that the example is on.
    labeled_keys: Key[Array, " labeled"]
    unlabeled_keys: Key[Array, " unlabeled"]
    step: Int[Array, ""]  # step of the generation, from 0
    # The fraction of the generation's training that is done, in [0, 1).
    progress: Float[Array, ""]
    # The weight of a labeled example of each class; ones unless the loss is class-balanced.
    class_weights: Float[Array, " classes"]
    # (images, keys) -> weakly augmented images in [-1, 1].
    weak: Callable[[Array, Array], Array]
    # (images, keys, keys of their weak views) -> strongly augmented images in [-1, 1].
    strong: Callable[[Array, Array, Array], Array]
    # images -> (logits, new batch statistics), in training mode.
    forward: Callable[[Array], tuple[Array, PyTree]]
    # images -> logits of the EMA model, in training mode and without a gradient.
    teacher: Callable[[Array], Array]
    # Probabilities of unlabeled images -> label guesses (distribution alignment, or identity).
    align: Callable[[Array], Array]
    # Pseudo-targets of the unlabeled images -> the targets to train on (DARP, or identity).
    refine: Callable[[Array], Array]
    # A sequence of trees of arrays with examples along the leading axis -> the same with the
    # examples randomly permuted, across all trees and devices.
    shuffle: Callable[[PyTree], PyTree]


class Loss(NamedTuple):
    """The scalar to minimise, and the results of the step that are kept."""

    total: Float[Array, ""]
    batch_stats: PyTree
    # Scalars to log, each a mean over examples.
    metrics: dict[str, Float[Array, ""]]
    # Mean raw prediction on the unlabeled images, before alignment; None without such images.
    prediction: Float[Array, " classes"] | None = None
    # Pseudo-targets of the unlabeled images before `refine`; None without such images.
    guesses: Float[Array, "unlabeled classes"] | None = None


class LossFunction(Protocol):
    """A loss: it is traced by JAX, and takes its hyper-parameters as keyword arguments."""

    # With *args beside **, a type checker takes any further arguments for these.
    def __call__(self, inputs: StepInputs, /, *args: Any, **hyper_parameters: Any) -> Loss:
        """Return the loss of a step, and the results of the step that are kept."""
