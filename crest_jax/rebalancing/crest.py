"""CReST: selection of the pseudo-labels for the next generation's labeled set (paper section 3.3).

Pure NumPy on one label and one score per unlabeled example.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt32

from crest_jax.field import Field, of_each_class
from crest_jax.rebalancing.protocol import GENERATIONS, PSEUDO_LABELS, Rebalancing


def sampling_rates(
    class_sizes: Shaped[np.ndarray, " classes"], alpha: float
) -> Float[np.ndarray, " classes"]:
    """Return the rate at which examples predicted as each class are selected, in (0, 1].

    The rate is `mu_l = (N_{L+1-l} / N_1)^alpha`, where l is a class' rank by size, largest first
    (Eq. 1), so the smallest class keeps all its pseudo-labels. Classes may come in any order; among
    classes of equal size, the one with the lower index ranks first.

    Args:
      class_sizes: size of each class in the original labeled set, above 0, in any unit: counts, or
        the shares given by a long tail's formula.
      alpha: at least 0; 0 selects everything; the larger it is, the less of the largest classes is
        selected.

    Raises:
      ValueError: A class is empty, or alpha is negative.
    """
    if class_sizes.min() <= 0:
        raise ValueError(f"class {class_sizes.argmin()} has no labeled example")
    if alpha < 0:
        raise ValueError(f"alpha={alpha} must be at least 0")
    by_rank = np.argsort(-class_sizes, kind="stable")
    sizes = class_sizes[by_rank]
    rates = np.empty(len(sizes))
    rates[by_rank] = (sizes[::-1] / sizes[0]) ** alpha
    return rates


class Scores(NamedTuple):
    """The model's predictions on some of the unlabeled examples."""

    labels: Int[np.ndarray, " examples"]  # predicted classes
    # Largest softmax probabilities, in [0, 1]; compared in float32, which decides on ties.
    confidence: Float[np.ndarray, " examples"]


# Gathers an array from every host, in the order of the hosts; all hosts get the same result.
AllGather = Callable[[Int[np.ndarray, "..."]], Int[np.ndarray, "hosts ..."]]


def select(
    scored: Iterable[Scores],
    rates: Float[np.ndarray, " classes"],
    *,
    all_gather: AllGather = lambda array: array[None],
    host: int = 0,
) -> Iterator[Bool[np.ndarray, " examples"]]:
    """Select, among the examples predicted as class l, the `int(count * mu_l)` most confident.

    Of equally confident examples the earlier ones are selected, in the order of the hosts.

    No host sees the scores of another, nor more than one part of its own at a time. The hosts
    determine the confidence of the last selected example of each class ten bits at a time, from
    counts of examples by class and by these bits, summed over hosts.

    Args:
      scored: this host's examples, in parts; iterated over four times.
      rates: mu, from `sampling_rates` or given by hand, in [0, 1].
      all_gather: gathers an array from all hosts; the default is for a single host.
      host: index of this host.

    Yields:
      For each part, which of its examples are selected.

    Raises:
      ValueError: A confidence is not in [0, 1].
    """
    last, left = _last_selected(scored, rates, all_gather, host)
    for labels, confidence in scored:
        bits = _ordered_bits(confidence)
        selected = bits > last[labels]
        for label in np.unique(labels[bits == last[labels]]):
            equal = np.flatnonzero((labels == label) & (bits == last[label]))[: left[label]]
            selected[equal] = True
            left[label] -= len(equal)
        yield selected


# The bits of a float32 confidence below 2 are a number below 2^30; three passes take 10 bits each.
_BITS = 10
_SHIFTS = (20, 10, 0)


def _last_selected(
    scored: Iterable[Scores],
    rates: Float[np.ndarray, " classes"],
    all_gather: AllGather,
    host: int,
) -> tuple[UInt32[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """Find the bits of the confidence of each class' least confident selected example.

    Returns:
      The bits, and the number of this host's examples with exactly these bits that are selected.
    """
    classes = np.arange(len(rates))
    # The upper bits found so far.
    found: UInt32[np.ndarray, " classes"] = np.zeros(len(rates), np.uint32)
    wanted = np.zeros(0)
    for shift in _SHIFTS:
        counts = np.zeros((len(rates), 2**_BITS), np.int64)
        for labels, confidence in scored:
            bits = _ordered_bits(confidence)
            alike = bits >> (shift + _BITS) == found[labels]
            cells = (labels[alike].astype(np.int64) << _BITS) + (bits[alike] >> shift) % 2**_BITS
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        of_hosts = all_gather(counts)
        # The number of examples with each value or a greater one.
        reaching = of_hosts.sum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
        if shift == _SHIFTS[0]:
            wanted = (reaching[:, 0] * rates).astype(np.int64)
        # The greatest value that enough examples reach; the greatest of all if none is wanted.
        value = (reaching >= wanted[:, None]).sum(axis=1) - 1
        wanted = wanted - np.pad(reaching, [(0, 0), (0, 1)])[classes, value + 1]
        found = (found << _BITS) + value.astype(np.uint32)
    equal = of_hosts[:, classes, value]
    return found, np.clip(wanted - equal[:host].sum(axis=0), 0, equal[host])


def _ordered_bits(confidence: Float[np.ndarray, " examples"]) -> UInt32[np.ndarray, " examples"]:
    """Return the float32 bits of non-negative numbers, which are integers in the same order."""
    if not ((confidence >= 0) & (confidence < 1.001)).all():
        raise ValueError("a confidence is not in [0, 1]")
    return confidence.astype(np.float32).view(np.uint32)


def given_or_computed(
    class_distribution: Float[np.ndarray, " classes"],
    class_names: Sequence[str],
    *,
    alpha: float,
    rates: Sequence[int | float],
) -> Float[np.ndarray, " classes"]:
    """Return the rates that are given, or those of Eq. 1 if there are none.

    Args:
      class_distribution: p(y) of the original labeled set.
      class_names: names of all classes.
      alpha: the exponent of Eq. 1.
      rates: mu of each class, in [0, 1]; empty for those of Eq. 1.

    Raises:
      ConfigError: The rates that are given are not of these classes.
    """
    if len(rates):
        return of_each_class("crest.rates", rates, class_names)
    return sampling_rates(class_distribution, alpha)


CREST = Rebalancing(
    (GENERATIONS,),
    {
        "crest.alpha": Field(
            1 / 3, "Exponent alpha of the sampling rates.", "[0, inf)", source="Eq. 1, section 4.1"
        ),
        "crest.rates": Field(
            (),
            "Sampling rate mu of each class in place of Eq. 1; () for Eq. 1.",
            source="section 3.3",
        ),
    },
    sampling_rates=given_or_computed,
)
# Aligns its pseudo-labels too, more in each generation.
CREST_PLUS = Rebalancing(
    (PSEUDO_LABELS, GENERATIONS),
    {
        **CREST.hyper_parameters,
        "crest.t_min": Field(
            0.5,
            "Temperature t_min of the last generation of CReST+.",
            "[0, 1]",
            source="Eq. 2, section 4.1",
        ),
    },
    alignment_targets=("progressive",),
    sampling_rates=given_or_computed,
)
