"""Cutting a balanced train set to the long tail, and splitting it (paper section 4.1).

Pure NumPy on labels; images are somebody else's business.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from crest_jax.errors import DataError


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


def split(
    labels: Int[np.ndarray, " examples"],
    sizes: Int[np.ndarray, " classes"],
    *,
    beta: float,
    fold: int,
    validation_fraction: float = 0.0,
    class_names: tuple[str, ...] | None = None,
) -> Split:
    """Draws the long-tailed train set, and from it the labeled, unlabeled and validation splits.

    Which images belong to the long-tailed set does not depend on the fold, so folds differ in
    what is labeled and in nothing else; for one fold, a smaller beta's labeled set is part of a
    larger one's. Per class, the first `ceil(N_l beta)` of a permutation seeded by the fold are
    labeled, and the last `floor(validation_fraction * labeled)` of these are validation instead.

    Args:
      labels: class of every train example.
      sizes: how many examples of each class to keep.
      beta: fraction of the kept examples that is labeled, in (0, 1].
      fold: which permutation; 0, 1, 2, ...
      validation_fraction: part of the labeled examples to validate on instead, in [0, 1).
      class_names: names for the error message.

    Raises:
      DataError: a class has fewer examples than it must keep, or none that is labeled.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Split._fields}
    for label, size in enumerate(sizes):
        name = class_names[label] if class_names else str(label)
        rows = np.flatnonzero(labels == label)
        if len(rows) < size:
            raise DataError(
                f"class {name!r} has {len(rows)} training examples, but the long tail wants "
                f"{size}: lower --config.long_tail.n_max"
            )
        if size == 0:
            raise DataError(
                f"class {name!r} is left without a labeled example: lower "
                "--config.long_tail.gamma or raise --config.long_tail.n_max"
            )
        kept = np.random.default_rng([label]).permutation(rows)[:size]
        # From 1: a seed that ends in zeros is the same without them.
        shuffled = np.random.default_rng([label, fold + 1]).permutation(kept)
        # 1e-9: a rounding error must make neither six labeled examples of 0.1 * 50, nor 28
        # validation examples of 0.29 * 100.
        labeled = max(1, math.ceil(size * beta - 1e-9))
        training = labeled - math.floor(labeled * validation_fraction + 1e-9)
        parts["labeled"].append(shuffled[:training])
        parts["validation"].append(shuffled[training:labeled])
        parts["unlabeled"].append(shuffled[labeled:])
    return Split(**{name: np.sort(np.concatenate(rows)) for name, rows in parts.items()})
