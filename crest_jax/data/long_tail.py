"""Cutting a balanced train set to a long tail, and splitting it (paper section 4.1).

These functions work on labels alone, in NumPy.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crest_jax.errors import DataError

# Whether the class sizes of the unlabeled set decrease in the same order as those of the labeled
# set, or in the reversed one.
ORDERS = ("same", "reversed")


class SplitRows(NamedTuple):
    """Rows of the train set, each split in ascending order."""

    labeled: Int[np.ndarray, " labeled"]
    unlabeled: Int[np.ndarray, " unlabeled"]
    validation: Int[np.ndarray, " validation"]


def class_sizes(n_max: int, gamma: float, classes: int) -> Int[np.ndarray, " classes"]:
    """Return the sizes `N_l = N_1 gamma^(-(l-1)/(L-1))`, rounded down (paper section 4.1).

    Args:
      n_max: N_1, the size of the largest class.
      gamma: the imbalance ratio N_1 / N_L, at least 1.
      classes: L, the number of classes.
    """
    exponents = -np.arange(classes) / max(classes - 1, 1)
    # 1e-6: a rounding error must not make 49 examples of the 50 in the last class of gamma = 100.
    return np.floor(n_max * gamma**exponents + 1e-6).astype(np.int64)


def ideal_distribution(gamma: float, classes: int) -> Float[np.ndarray, " classes"]:
    """Return `gamma^(-(l-1)/(L-1))`, normalised: the long tail before its sizes are rounded.

    The published CReST code uses it as p(y), in the sampling rates and as the target of
    distribution alignment, while the paper says that p(y) is estimated from the labeled set. With
    few labels the two differ: `ceil(N_l beta)` makes the rare classes more frequent than they are.

    Args:
      gamma: the imbalance ratio N_1 / N_L, at least 1.
      classes: L, the number of classes.
    """
    powers = gamma ** (-np.arange(classes) / max(classes - 1, 1))
    return powers / powers.sum()


def by_fraction(
    sizes: Int[np.ndarray, " classes"], beta: float
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """Return how many examples of each class are labeled, `ceil(N_l beta)`, and unlabeled.

    Args:
      sizes: N_l, the sizes of the classes, labeled and unlabeled examples together.
      beta: the fraction that is labeled, in (0, 1].
    """
    # 1e-9: a rounding error must not make six labeled examples of 0.1 * 50.
    labeled = np.ceil(sizes * beta - 1e-9).astype(np.int64)
    labeled = np.minimum(np.maximum(labeled, 1), sizes)
    return labeled, sizes - labeled


def unlabeled_sizes(
    m_max: int, gamma: float, classes: int, order: str
) -> Int[np.ndarray, " classes"]:
    """Return class sizes of an unlabeled set with a separate long tail.

    This is the protocol of DARP (paper Table 3).

    Args:
      m_max: M_1, the size of the largest class of the unlabeled set.
      gamma: the imbalance ratio of the unlabeled set; 1 is uniform.
      classes: L, the number of classes.
      order: one of `ORDERS`. In reversed order, the class that is rarest among the labeled examples
        is the most frequent one in the unlabeled set.

    Raises:
      ValueError: `order` is not one of `ORDERS`.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {', '.join(ORDERS)}")
    sizes = class_sizes(m_max, gamma, classes)
    return sizes if order == "same" else sizes[::-1]


def hold_out(
    labels: Int[np.ndarray, " examples"], fraction: float
) -> Bool[np.ndarray, " examples"]:
    """Draw a part of each class to test on, independently of the fold.

    If a class has several examples, at least one is held out and at least one is not; the only
    example of a class is not held out.

    Args:
      labels: the class of every example.
      fraction: the fraction of each class to hold out, in (0, 1).

    Returns:
      Whether each example is held out.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        # Seeded differently from `split`, so that the long tail is cut from the rest independently.
        order = np.random.default_rng([1, label, 1]).permutation(rows)
        held_out[order[:count]] = True
    return held_out


def split(
    labels: Int[np.ndarray, " examples"],
    labeled_sizes: Int[np.ndarray, " classes"],
    unlabeled_sizes: Int[np.ndarray, " classes"],
    *,
    fold: int | None,
    order: Int[np.ndarray, " examples"] | None = None,
    validation_fraction: float = 0.0,
    class_names: tuple[str, ...] | None = None,
) -> SplitRows:
    """Draw the long-tailed train set, and from it the labeled, unlabeled and validation splits.

    The images of the long-tailed set do not depend on the fold, so that different folds differ only
    in which of these images are labeled. For a given fold and total size, a smaller labeled set is
    part of a larger one. In each class, the first examples of a permutation seeded by the fold are
    labeled and the next are unlabeled; the last `floor(validation_fraction * labeled)` of the
    labeled ones are used for validation instead. Without a fold the rows are not permuted: the
    first ones of the data set are labeled, as in the split of DARP (Kim et al., 2020) and its
    successors.

    Args:
      labels: the class of every train example.
      labeled_sizes: how many examples of each class to label.
      unlabeled_sizes: how many examples of each class to keep in addition, unlabeled.
      fold: the number of the permutation, 0, 1, 2, ...; None for no permutation.
      order: all rows, in the order to take them in without a fold; ascending by default.
      validation_fraction: the fraction of the labeled examples to use for validation instead, in
        [0, 1).
      class_names: the names of the classes, for the error message.

    Raises:
      DataError: A class has fewer examples than it must keep, or would have no labeled example.
    """
    rows_of: dict[str, list[np.ndarray]] = {name: [] for name in SplitRows._fields}
    for label, (labeled, unlabeled) in enumerate(zip(labeled_sizes, unlabeled_sizes, strict=True)):
        name = class_names[label] if class_names else str(label)
        rows = np.flatnonzero(labels == label)
        if len(rows) < labeled + unlabeled:
            raise DataError(
                f"class {name!r} has {len(rows)} training examples, but the long tail needs "
                f"{labeled + unlabeled}, {labeled} of them labeled: lower "
                "--config.long_tail.n_max, or unlabeled_n_max where there is one"
            )
        if labeled == 0:
            raise DataError(
                f"class {name!r} is left without a labeled example: lower "
                "--config.long_tail.gamma or raise --config.long_tail.n_max"
            )
        if fold is None:
            in_order = rows if order is None else order[labels[order] == label]
            shuffled = in_order[: labeled + unlabeled]
        else:
            kept = np.random.default_rng([label]).permutation(rows)[: labeled + unlabeled]
            # `fold + 1`, since NumPy ignores zeros at the end of a seed.
            shuffled = np.random.default_rng([label, fold + 1]).permutation(kept)
        # 1e-9: a rounding error must not make 28 validation examples of 0.29 * 100.
        training = labeled - math.floor(labeled * validation_fraction + 1e-9)
        rows_of["labeled"].append(shuffled[:training])
        rows_of["validation"].append(shuffled[training:labeled])
        rows_of["unlabeled"].append(shuffled[labeled:])
    return SplitRows(**{name: np.sort(np.concatenate(rows)) for name, rows in rows_of.items()})
