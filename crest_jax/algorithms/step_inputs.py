"""What goes into an algorithm, and what comes out."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree, UInt8


class StepInputs(NamedTuple):
    """What one device sees of one step.

    The functions carry the parameters, the augmentation's settings and the running estimates, so
    that an algorithm is its paper's equations and no more.
    """

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]
    # One key per example, the same on whichever device the example lies.
    labeled_keys: Key[Array, " labeled"]
    unlabeled_keys: Key[Array, " unlabeled"]
    step: Int[Array, ""]  # of the generation, from 0
    # How much of the generation's training is done, in [0, 1).
    progress: Float[Array, ""]
    # What a labeled example of each class counts; ones unless the loss is class-balanced.
    class_weights: Float[Array, " classes"]
    # (images, keys) -> augmented images in [-1, 1].
    weak: Callable[[Array, Array], Array]
    # (images, keys, keys of their weak views) -> likewise.
    strong: Callable[[Array, Array, Array], Array]
    # images -> (logits, new batch statistics), in training mode.
    forward: Callable[[Array], tuple[Array, PyTree]]
    # images -> logits of the EMA model, in training mode and without a gradient.
    teacher: Callable[[Array], Array]
    # Probabilities of unlabeled images -> label guesses (distribution alignment, or identity).
    align: Callable[[Array], Array]
    # Pseudo-targets of the unlabeled images -> what to train on in their place (DARP, or identity).
    refine: Callable[[Array], Array]
    # A sequence of trees of arrays, each with its examples along the leading axis -> the same with
    # every example replaced by one of a random permutation of all of them, over all devices.
    shuffle: Callable[[PyTree], PyTree]


class Loss(NamedTuple):
    """The scalar to minimise, and what the step keeps."""

    total: Float[Array, ""]
    batch_stats: PyTree
    # Scalars to log, each a mean over examples.
    metrics: dict[str, Float[Array, ""]]
    # Mean raw prediction on the unlabeled images, before alignment; None without such images.
    prediction: Float[Array, " classes"] | None = None
    # Pseudo-targets of the unlabeled images before `refine`; likewise.
    guesses: Float[Array, "unlabeled classes"] | None = None
