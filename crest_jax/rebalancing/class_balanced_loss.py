"""The class-balanced loss (CB; Cui et al., 2019, https://arxiv.org/abs/1901.05555).

Every labeled example is weighted by the inverse of the *effective number* of its class, in which
each further example is taken to add less than the one before it, by a factor b.
"""

import numpy as np
import optax
from jaxtyping import Array, Float, Int

from crest_jax.field import Field
from crest_jax.rebalancing.protocol import LABELED, Rebalancing


def class_weights(
    labeled_counts: Int[np.ndarray, " classes"], b: float
) -> Float[np.ndarray, " classes"]:
    """Return the weights `(1 - b) / (1 - b^N_l)`, scaled to a mean of 1 over classes.

    Eq. 10 of Cui et al. (2019).

    Args:
      labeled_counts: N_l, the number of labeled examples of each class, at least 1.
      b: in [0, 1); 0 weights all classes equally, near 1 the weights become proportional to
        1 / N_l.

    Raises:
      ValueError: A class is empty, or b is out of range.
    """
    if labeled_counts.min() < 1:
        raise ValueError(f"class {labeled_counts.argmin()} has no labeled example")
    if not 0 <= b < 1:
        raise ValueError(f"b={b} must be in [0, 1)")
    weights = (1 - b) / (1 - b ** labeled_counts.astype(np.float64))
    return weights / weights.mean()


def weighted_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    class_weights: Float[Array, " classes"],
) -> Float[Array, " batch"]:
    """Return `-sum_l w_l p_l log softmax(logits)_l` of each example.

    For a one-hot target this is the cross-entropy times the weight of its class; in the mixed
    target of MixUp each class counts by its own weight.

    Args:
      logits: the model's outputs.
      targets: p, rows summing to 1.
      class_weights: w, at least 0; ones give the plain cross-entropy.
    """
    return optax.softmax_cross_entropy(logits, targets * class_weights)


CB = Rebalancing(
    (LABELED,),
    {
        "class_balanced_loss.b": Field(
            0.999, "Base b of the effective number of labels.", "[0, 1)", source="Cui et al., 2019"
        )
    },
    class_weights=lambda counts, class_names, *, b: class_weights(counts, b),
)
