"""Estimation of the class distribution of unlabeled data from a model's predictions on it.

The model's known error rates are inverted, as in black-box shift estimation (Lipton, Wang and
Smola, 2018, https://arxiv.org/abs/1802.03916), which DARP also falls back on where the distribution
is not known. That method solves a linear system; this module finds the most probable distribution
given a weak prior, which exists whatever the model predicts.

The uncertainty of the estimate comes from a posterior bootstrap (Fong, Lyddon and Holmes, 2019,
https://arxiv.org/abs/1902.03175): the estimate is repeated many times, each time with newly drawn
errors, predictions and prior.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

# Share of each class' predictions that is spread over all classes, for errors not seen so far.
_UNSEEN = 1e-3
_TOLERANCE = 1e-7
_MOST_ROUNDS = 1000
# The number of bootstrap draws, and their tolerance: shares need not be exact beyond the amount by
# which draws differ.
_DRAWS = 400
_DRAWN_TOLERANCE = 1e-5
# The most matrix entries of draws that are processed together: 32 MiB.
_AT_ONCE = 1 << 22
# The weight of each class in an uninformative (Jeffreys) prior, in examples.
_NO_OPINION = 0.5


class Interval(NamedTuple):
    """Intervals for an unlabeled set's class distribution, and a test of its difference."""

    low: Float[np.ndarray, " classes"]
    high: Float[np.ndarray, " classes"]
    # The probability that predictions on a set with the labeled set's distribution are at least as
    # far from their expectation as those on this set, in (0, 1].
    p_value: float


def estimate(
    confusion: Int[np.ndarray, "classes classes"],
    predicted: Int[np.ndarray, " classes"],
    prior: Float[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    """Estimate the class distribution of unlabeled examples.

    It is the distribution pi that maximises `sum_j n_j log (pi C)_j + L sum_i prior_i log pi_i`,
    where L is the number of classes, C_ij the rate at which examples of class i are predicted as j,
    and n_j the number of unlabeled examples predicted as j. The n_j are scaled down if there are
    more of them in total than examples that C is known from. The maximum is found by
    expectation-maximisation, starting from the prior. Where predictions do not tell classes apart,
    for example because the model predicts a single class, their shares stay as in the prior.

    The estimate is only as good as C. If C comes from examples that the model was fitted to, C is
    too close to the identity, and pi too close to the model's own predictions.

    Args:
      confusion: number of examples with known labels, by class (row) and prediction (column). A
        class without examples is taken to be always recognised.
      predicted: number of unlabeled examples by prediction.
      prior: a class distribution, which has the weight of one example per class.

    Raises:
      ValueError: There is no prediction.
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
    """Return an interval for each class' share in the distribution that `estimate` estimates.

    Each draw of the bootstrap takes errors from the posterior of C given the known examples (a
    Dirichlet distribution for each row, whose prior has the weight of one example), predictions
    resampled from the given ones, and an uninformative prior, from which the search begins. Where
    predictions do not tell classes apart, draws divide their shares in any way, and intervals are
    wide. The intervals always contain the estimate.

    The p-value needs no estimate. It ranks the chi-squared distance between the predictions and
    those expected of a set with the distribution `prior` among the distances of sets drawn from
    that distribution, with errors drawn as above.

    Args:
      confusion: as for `estimate`, but a class without examples may be taken for any other.
      predicted: as for `estimate`.
      prior: as for `estimate`.
      seed: seed of the draws.
      level: share of the draws inside the interval, in (0, 1).

    Raises:
      ValueError: There is no prediction.
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
    """Run expectation-maximisation from the prior, on several problems at once."""
    classes = prior.shape[1]
    rates = (1 - _UNSEEN) * rates + _UNSEEN / classes
    distribution = prior
    for _ in range(_MOST_ROUNDS):
        # Times pi_i C_ij, this is how many examples predicted as j are expected to be of class i.
        of_each = counts / np.einsum("di,dij->dj", distribution, rates)
        expected = distribution * np.einsum("dij,dj->di", rates, of_each) + classes * prior
        previous, distribution = distribution, expected / expected.sum(axis=1, keepdims=True)
        if np.abs(distribution - previous).max() < tolerance:
            break
    return distribution
