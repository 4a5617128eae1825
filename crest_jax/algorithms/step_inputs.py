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
    # (images, keys) -> augmented images in [-1, 1].
    weak: Callable[[Array, Array], Array]
    strong: Callable[[Array, Array], Array]
    # images -> (logits, new batch statistics), in training mode.
    forward: Callable[[Array], tuple[Array, PyTree]]
    # Probabilities of unlabeled images -> label guesses (distribution alignment, or identity).
    align: Callable[[Array], Array]


class Loss(NamedTuple):
    """The scalar to minimise, and what the step keeps."""

    total: Float[Array, ""]
    batch_stats: PyTree
    # Mean raw prediction on the unlabeled images, before alignment.
    prediction: Float[Array, " classes"]
    # Scalars to log, each a mean over examples.
    metrics: dict[str, Float[Array, ""]]
