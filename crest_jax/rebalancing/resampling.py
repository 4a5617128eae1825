"""Resampling (RS): all classes are drawn equally often (paper section 4.1)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from crest_jax.errors import DataError
from crest_jax.rebalancing.protocol import LABELED, Rebalancing


def sampling_probabilities(
    labels: Int[np.ndarray, " labeled"], class_names: Sequence[str]
) -> Float[np.ndarray, " labeled"]:
    """Return the probability of drawing each labeled example, proportional to `1 / N_{its class}`.

    Args:
      labels: class of each example.
      class_names: names of all classes.

    Raises:
      DataError: A class has no example to draw.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"resampling cannot draw {', '.join(map(repr, empty))}, of which no example is "
            "labeled: label one, leave the class out, or take another rebalance than rs"
        )
    return 1 / (len(class_names) * counts[labels])


RS = Rebalancing((LABELED,), sampling_probabilities=sampling_probabilities, needs_all_examples=True)
