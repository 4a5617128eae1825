"""Estimating the class distribution of unlabeled data from a model's predictions on it.

What is known of how the model errs is turned round, as in black-box shift estimation (Lipton, Wang
and Smola, 2018, https://arxiv.org/abs/1802.03916), which DARP too falls back on where the
distribution is not known. Theirs is the solution of a linear system; ours is the most probable
distribution given a weak prior, which exists whatever the model predicts.

How sure that is says a posterior bootstrap (Fong, Lyddon and Holmes, 2019,
https://arxiv.org/abs/1902.03175): the same, many times, from errors, predictions and a prior that
are drawn anew.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

# How often any class may be taken for any other beyond what was seen.
_UNSEEN = 1e-3
_TOLERANCE = 1e-7
_MOST_ROUNDS = 1000
# Of the bootstrap. Its shares need not be exact beyond what they differ by.
_DRAWS = 400
_DRAWN_TOLERANCE = 1e-5
# Numbers of a group of draws that are worked on together: 32 MiB.
_AT_ONCE = 1 << 22
# What a prior of no opinion counts each class as, in examples (Jeffreys).
_NO_OPINION = 0.5


class Interval(NamedTuple):
    """What an unlabeled set's class distribution may be."""

    low: Float[np.ndarray, " classes"]
    high: Float[np.ndarray, " classes"]
    # How often a set with the distribution of the labeled one is predicted as far from what is
    # expected of such as this one, or farther, in (0, 1].
    p_value: float


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
    known = confusion.sum(axis=1, keepdims=True)
    rates = np.where(known > 0, confusion / np.maximum(known, 1), np.eye(len(prior)))
    counts = predicted * min(1.0, known.sum() / predicted.sum())
    return _most_probable(rates[None], counts[None], prior[None], _TOLERANCE)[0]


def interval(
    confusion: Int[np.ndarray, "classes classes"],
    predicted: Int[np.ndarray, " classes"],
    prior: Float[np.ndarray, " classes"],
    *,
    seed: int | list[int],
    level: float = 0.9,
) -> Interval:
    """Where the class distribution lies that `estimate` estimates, class by class.

    Each draw has errors from the posterior of C given the known examples (a Dirichlet distribution
    for each row, of a prior that counts as one example), predictions drawn from those that there
    are, and a prior without an opinion, from which the search begins. Where predictions do not tell
    classes apart, draws divide their shares in any way, and intervals are wide. They always hold
    the estimate.

    For the p-value nothing is estimated. It is that of the chi-squared distance between the
    predictions and those expected of a set with the distribution `prior`, among the distances of
    sets that are drawn from it, with errors drawn as above.

    Args:
      confusion: as for `estimate`; a class without any example may be taken for any other.
      predicted: as for `estimate`.
      prior: as for `estimate`.
      seed: of the draws.
      level: how much of the draws lies inside, in (0, 1).

    Raises:
      ValueError: there is no prediction.
    """
    estimated = estimate(confusion, predicted, prior)
    rng = np.random.default_rng(seed)
    classes, examples = len(prior), int(predicted.sum())
    drawn, expected = np.zeros((2, _DRAWS, classes))
    group = max(_AT_ONCE // classes**2, 1)
    for first in range(0, _DRAWS, group):
        some = slice(first, min(first + group, _DRAWS))
        number = some.stop - first
        rates = rng.standard_gamma(confusion + 1 / classes, (number, classes, classes))
        rates /= np.maximum(rates.sum(axis=2, keepdims=True), np.finfo(float).tiny)
        counts = rng.multinomial(examples, predicted / examples, number)
        opinion = rng.dirichlet(np.full(classes, _NO_OPINION), number)
        drawn[some] = _most_probable(rates, counts, opinion, _DRAWN_TOLERANCE)
        expected[some] = prior @ rates
    outside = (1 - level) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside], axis=0)
    mean = examples * np.maximum(expected.mean(axis=0), _UNSEEN / classes)
    of_such = rng.multinomial(examples, expected / expected.sum(axis=1, keepdims=True))
    farther = ((of_such - mean) ** 2 / mean).sum(axis=1) >= ((predicted - mean) ** 2 / mean).sum()
    return Interval(
        np.minimum(low, estimated),
        np.maximum(high, estimated),
        float((1 + farther.sum()) / (1 + _DRAWS)),
    )


def _most_probable(
    rates: Float[np.ndarray, "draws classes classes"],
    counts: Shaped[np.ndarray, "draws classes"],
    prior: Float[np.ndarray, "draws classes"],
    tolerance: float,
) -> Float[np.ndarray, "draws classes"]:
    """Expectation-maximisation from the prior, of several problems at once."""
    classes = prior.shape[1]
    rates = (1 - _UNSEEN) * rates + _UNSEEN / classes
    distribution = prior
    for _ in range(_MOST_ROUNDS):
        # How many of each prediction are of each class, if this were the distribution.
        of_each = counts / np.einsum("di,dij->dj", distribution, rates)
        expected = distribution * np.einsum("dij,dj->di", rates, of_each) + classes * prior
        previous, distribution = distribution, expected / expected.sum(axis=1, keepdims=True)
        if np.abs(distribution - previous).max() < tolerance:
            break
    return distribution
