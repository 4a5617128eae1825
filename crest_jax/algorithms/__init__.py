"""One file per semi-supervised algorithm, each a pure function from a step's inputs to its loss.

An algorithm is `loss(inputs: StepInputs, **hyper_parameters) -> Loss`; to add one, write its file
and name it here, with the config fields that it takes.
"""

from collections.abc import Callable
from typing import NamedTuple

from crest_jax.algorithms.fixmatch import fixmatch
from crest_jax.algorithms.step_inputs import Loss, StepInputs

__all__ = ["ALGORITHMS", "Algorithm", "Loss", "StepInputs"]


class Algorithm(NamedTuple):
    """A loss function and the config fields that are its keyword arguments."""

    loss: Callable[..., Loss]
    hyper_parameters: tuple[str, ...]


ALGORITHMS = {
    "fixmatch": Algorithm(fixmatch, ("threshold", "unlabeled_weight")),
}
