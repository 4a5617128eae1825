"""The interface of a rebalancing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

LABELED = "the labeled examples"
PSEUDO_LABELS = "the pseudo-labels"
GENERATIONS = "what the next generation trains on"


# (predictions, target distribution, moving average of the predictions) -> pseudo-labels.
Align = Callable[
    [Float[Array, "batch classes"], Float[Array, " classes"], Float[Array, " classes"]],
    Float[Array, "batch classes"],
]


class Rebalancing(NamedTuple):
    """A way of rebalancing: what it acts on, and its hooks.

    A hook that is None changes nothing. Two ways that act on the same thing exclude each other.
    """

    # One or more of LABELED, PSEUDO_LABELS and GENERATIONS. One that acts on GENERATIONS trains in
    # several.
    acts_on: tuple[str, ...]
    # (labels of each class [classes], config) -> weights of the classes in the labeled loss, with
    # a mean of 1 [classes].
    class_weights: (
        Callable[[Int[np.ndarray, " classes"], ConfigDict], Float[np.ndarray, " classes"]] | None
    ) = None
    # (class of each labeled example [labeled], class names) -> the probability of drawing each,
    # with a sum of 1 [labeled].
    sampling_probabilities: (
        Callable[[Int[np.ndarray, " labeled"], Sequence[str]], Float[np.ndarray, " labeled"]] | None
    ) = None
    # The values that `alignment.target` may have, its default first; empty for no alignment.
    alignment_targets: tuple[str, ...] = ()
    # Aligns pseudo-labels in place of `distribution_alignment.align`. JAX traces it.
    align: Align | None = None
    # config -> `darp.Refinement`: when pseudo-labels are refined together.
    refinement: Callable[[ConfigDict], Any] | None = None
    # (p(y) of the labeled set [classes], config) -> the part of the examples predicted as each
    # class that a generation selects, in [0, 1] [classes], in place of Eq. 1.
    sampling_rates: (
        Callable[[Float[np.ndarray, " classes"], ConfigDict], Float[np.ndarray, " classes"]] | None
    ) = None
    # Whether it needs all examples in memory, so that they cannot be streamed.
    needs_all_examples: bool = False
