"""Estimating the class distribution of unlabeled data from a model's predictions on it.

What is known of how the model errs is turned round, as in black-box shift estimation (Lipton, Wang
and Smola, 2018, https://arxiv.org/abs/1802.03916), which DARP too falls back on where the
distribution is not known. Theirs is the solution of a linear system; ours is the most probable
distribution given a weak prior, which exists whatever the model predicts.
"""

import numpy as np
from jaxtyping import Float, Int

# How often any class may be taken for any other beyond what was seen.
_UNSEEN = 1e-3
_TOLERANCE = 1e-7
_MOST_ROUNDS = 1000


def estimate(
    confusion: Int[np.ndarray, "classes classes"],
    predicted: Int[np.ndarray, " classes"],
    prior: Float[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    """Maximises `sum_j n_j log (pi C)_j + L sum_i prior_i log pi_i` over distributions pi.

    C_ij is how often an example of class i is predicted as j, and n_j how many unlabeled examples
    are predicted as j, counted as no more in all than there are examples that C is known from. By
    expectation-maximisation from the prior: where predictions do not tell classes apart, as those
    of a model that knows a single class, their shares stay as in the prior.

    The estimate is as good as C: from examples that the model was fitted to, C is too close to the
    identity, and pi to the model's own predictions.

    Args:
      confusion: examples with known labels, by class (row) and prediction (column). A class without
        any is taken to be always recognised.
      predicted: unlabeled examples by prediction.
      prior: a class distribution, which counts as much as one example of each class.

    Raises:
      ValueError: there is no prediction.
    """
    if not predicted.sum():
        raise ValueError("there are no predictions to estimate a distribution from")
    classes = len(prior)
    known = confusion.sum(axis=1, keepdims=True)
    rates = np.where(known > 0, confusion / np.maximum(known, 1), np.eye(classes))
    rates = (1 - _UNSEEN) * rates + _UNSEEN / classes
    counts = predicted * min(1.0, known.sum() / predicted.sum())
    distribution = prior
    for _ in range(_MOST_ROUNDS):
        # How many of each prediction are of each class, if this were the distribution.
        joint = distribution[:, None] * rates
        expected = (joint / joint.sum(axis=0)) @ counts + classes * prior
        previous, distribution = distribution, expected / expected.sum()
        if np.abs(distribution - previous).max() < _TOLERANCE:
            break
    return distribution
