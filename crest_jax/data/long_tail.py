"""Cutting a balanced train set to the long tail, and splitting it (paper section 4.1).

Pure NumPy on labels; images are somebody else's business.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crest_jax.errors import DataError

# Whether the unlabeled set's classes shrink as the labeled set's do, or the other way round.
ORDERS = ("same", "reversed")


class Split(NamedTuple):
    """Rows of the train set, each split in ascending order."""

    labeled: Int[np.ndarray, " labeled"]
    unlabeled: Int[np.ndarray, " unlabeled"]
    validation: Int[np.ndarray, " validation"]


def class_sizes(n_max: int, gamma: float, classes: int) -> Int[np.ndarray, " classes"]:
    """`N_l = N_1 gamma^(-(l-1)/(L-1))`, rounded down (paper section 4.1).

    Args:
      n_max: N_1, the size of the largest class.
      gamma: imbalance ratio N_1 / N_L, at least 1.
      classes: L.
    """
    exponents = -np.arange(classes) / max(classes - 1, 1)
    # The last class of gamma = 100 is 50, not the 49 that 50 - 1e-14 would be cut to.
    return np.floor(n_max * gamma**exponents + 1e-6).astype(np.int64)


def ideal_distribution(gamma: float, classes: int) -> Float[np.ndarray, " classes"]:
    """Return `gamma^(-(l-1)/(L-1))`, normalised: the long tail before its sizes are whole numbers.

    The published CReST code takes it for p(y), in sampling rates and as alignment's target, where
    the paper's words are that p(y) is estimated from the labeled set. With few labels the two
    differ: `ceil(N_l beta)` makes the rare classes more frequent than they are.

    Args:
      gamma: imbalance ratio N_1 / N_L, at least 1.
      classes: L.
    """
    powers = gamma ** (-np.arange(classes) / max(classes - 1, 1))
    return powers / powers.sum()


def by_fraction(
    sizes: Int[np.ndarray, " classes"], beta: float
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """How many of each class are labeled, `ceil(N_l beta)`, and how many are left unlabeled.

    Args:
      sizes: N_l, of labeled and unlabeled together.
      beta: the fraction that is labeled, in (0, 1].
    """
    # 1e-9: a rounding error must not make six labeled examples of 0.1 * 50.
    labeled = np.ceil(sizes * beta - 1e-9).astype(np.int64)
    labeled = np.minimum(np.maximum(labeled, 1), sizes)
    return labeled, sizes - labeled


def unlabeled_sizes(
    m_max: int, gamma: float, classes: int, order: str
) -> Int[np.ndarray, " classes"]:
    """Sizes of an unlabeled set with a long tail of its own (DARP's protocol, paper Table 3).

    Args:
      m_max: M_1, the size of its largest class.
      gamma: its imbalance ratio; 1 is uniform.
      classes: L.
      order: one of `ORDERS`. In reversed order the class that is rarest among the labeled examples
        is the most frequent one here.

    Raises:
      ValueError: `order` is another.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {', '.join(ORDERS)}")
    sizes = class_sizes(m_max, gamma, classes)
    return sizes if order == "same" else sizes[::-1]


def hold_out(
    labels: Int[np.ndarray, " examples"], fraction: float
) -> Bool[np.ndarray, " examples"]:
    """Draws a part of each class, to test on; it is the same for every fold.

    Of a class with several examples at least one is held out and at least one is not; the only one
    of a class is not.

    Args:
      labels: class of every example.
      fraction: of a class, in (0, 1).
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        # A draw of its own, so that the long tail is cut from the rest independently.
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
) -> Split:
    """Draw the long-tailed train set, and from it the labeled, unlabeled and validation splits.

    Which images belong to the long-tailed set does not depend on the fold, so that sets of several
    folds differ in what is labeled and in nothing else; for one fold, a smaller labeled set is part
    of a larger one of as many images in all. Per class, the first of a permutation seeded by the
    fold are labeled, the next unlabeled, and the last `floor(validation_fraction * labeled)` of the
    labeled ones are validation instead. Without a fold the rows are not permuted: the first of the
    data set are labeled, which is the split of DARP (Kim et al., 2020) and its successors.

    Args:
      labels: class of every train example.
      labeled_sizes: how many examples of each class to label.
      unlabeled_sizes: how many to keep beside these.
      fold: which permutation, 0, 1, 2, ...; None for no permutation.
      order: all rows in the order that counts without a fold; their own by default.
      validation_fraction: part of the labeled examples to validate on instead, in [0, 1).
      class_names: names for the error message.

    Raises:
      DataError: a class has fewer examples than it must keep, or none that is labeled.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Split._fields}
    for label, (labeled, unlabeled) in enumerate(zip(labeled_sizes, unlabeled_sizes, strict=True)):
        name = class_names[label] if class_names else str(label)
        rows = np.flatnonzero(labels == label)
        if len(rows) < labeled + unlabeled:
            raise DataError(
                f"class {name!r} has {len(rows)} training examples, but the long tail wants "
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
            # From 1: a seed that ends in zeros is the same without them.
            shuffled = np.random.default_rng([label, fold + 1]).permutation(kept)
        # 1e-9: a rounding error must not make 28 validation examples of 0.29 * 100.
        training = labeled - math.floor(labeled * validation_fraction + 1e-9)
        parts["labeled"].append(shuffled[:training])
        parts["validation"].append(shuffled[training:labeled])
        parts["unlabeled"].append(shuffled[labeled:])
    return Split(**{name: np.sort(np.concatenate(rows)) for name, rows in parts.items()})
