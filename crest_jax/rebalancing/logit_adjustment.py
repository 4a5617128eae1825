"""Post-hoc logit adjustment (LA; Menon et al., 2021, https://arxiv.org/abs/2007.07314).

A trained model is corrected for the class distribution that it was trained on, without further
training. In self-training this distribution differs from generation to generation, because the
labeled set then includes pseudo-labels.
"""

import numpy as np
from jaxtyping import Array, Float


def adjustment(
    class_distribution: Float[np.ndarray, " classes"], tau: float
) -> Float[np.ndarray, " classes"]:
    """Return `tau log p(y)`, the offset to subtract from the logits.

    Args:
      class_distribution: p(y) of the labels that the model was trained on, all above 0.
      tau: 0 for no adjustment; 1 is the Bayes-optimal correction for a calibrated model.

    Raises:
      ValueError: A class has no share.
    """
    if class_distribution.min() <= 0:
        raise ValueError(f"class {class_distribution.argmin()} has no labeled example")
    return tau * np.log(class_distribution)


def adjusted_labels(
    logits: Float[Array, "batch classes"], adjustment: Float[Array, " classes"]
) -> Array:
    """Return `argmax_y f_y(x) - tau log p(y)` (Eq. 9 of Menon et al., 2021)."""
    return (logits - adjustment).argmax(axis=-1)
