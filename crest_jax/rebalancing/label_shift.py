"""Estimating the class distribution of unlabeled data from a model's predictions on it.

Black-box shift estimation (Lipton, Wang and Smola, 2018, https://arxiv.org/abs/1802.03916), which
DARP too falls back on where the distribution is not known.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls


def estimate(
    confusion: Int[np.ndarray, "classes classes"], predicted: Int[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Solves `C^T pi = p(y^)` for the class distribution pi, with `pi >= 0`.

    C_ij is how often an example of class i is predicted as j, and p(y^) how often each class is
    predicted on the unlabeled data. The estimate is as good as C: from examples that the model was
    fitted to, C is too close to the identity, and pi to the model's own predictions.

    Args:
      confusion: examples with known labels, by class (row) and prediction (column). A class without
        any is taken to be always recognised.
      predicted: unlabeled examples by prediction.

    Raises:
      ValueError: there is no prediction.
    """
    if not predicted.sum():
        raise ValueError("there are no predictions to estimate a distribution from")
    known = confusion.sum(axis=1, keepdims=True)
    rates = np.where(known > 0, confusion / np.maximum(known, 1), np.eye(len(confusion)))
    distribution, _ = nnls(rates.T, predicted / predicted.sum())
    return distribution / distribution.sum()
