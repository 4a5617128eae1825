"""One file per semi-supervised algorithm, each a pure function from a step's inputs to its loss.

An algorithm is `loss(inputs: StepInputs, **hyper_parameters) -> Loss`; to add one, write its file
and name it here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from crest_jax.algorithms.fixmatch import WEAK_FORWARD, fixmatch
from crest_jax.algorithms.mean_teacher import mean_teacher
from crest_jax.algorithms.mixmatch import mixmatch
from crest_jax.algorithms.pseudo_label import pseudo_label
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.algorithms.supervised import supervised

__all__ = ["ALGORITHMS", "Algorithm", "Choice", "HyperParameter", "Loss", "StepInputs"]


class HyperParameter(NamedTuple):
    """A default, and the range that makes sense."""

    default: int | float
    low: float
    high: float = math.inf


class Choice(NamedTuple):
    """A default, and all that it can be."""

    default: str
    values: Sequence[str]


class Algorithm(NamedTuple):
    """A loss, and what it is trained with.

    The loss gives a label's share its class' weight (`class_weights`), and passes its guesses for
    unlabeled images through `align` and `refine`: that is where rebalancing takes hold of it.
    """

    loss: Callable[..., Loss]
    # Its keyword arguments, which are config fields of their own.
    hyper_parameters: Mapping[str, HyperParameter | Choice]
    # Config fields whose defaults differ from FixMatch's. An `unlabeled_ratio` of 0 says that it
    # does not learn from unlabeled images.
    settings: Mapping[str, Any] = {}
    # How many generations CReST and CReST+ train it (paper section 4.1).
    generations: Mapping[str, int] = {"crest": 15, "crest_plus": 6}

    @property
    def unlabeled(self) -> bool:
        """Whether it learns from unlabeled images."""
        return self.settings.get("unlabeled_ratio", 1) > 0


_THRESHOLD = HyperParameter(0.95, 0.0, 1.0)
_RAMP_UP = HyperParameter(0.4, 0.0, 1.0)

# Optimiser, model and augmentation are FixMatch's throughout, as in the paper and in the published
# FixMatch code, whose versions of the older algorithms have these ratios and schedules.
ALGORITHMS = {
    "supervised": Algorithm(supervised, {}, {"unlabeled_ratio": 0}),
    "pseudo_label": Algorithm(
        pseudo_label,
        {
            "threshold": _THRESHOLD,
            "unlabeled_weight": HyperParameter(1.0, 0.0),
            "ramp_up": _RAMP_UP,
        },
        {"unlabeled_ratio": 1, "optimizer.cosine_level": 7},
    ),
    "mean_teacher": Algorithm(
        mean_teacher,
        {"unlabeled_weight": HyperParameter(50.0, 0.0), "ramp_up": _RAMP_UP},
        {"unlabeled_ratio": 1, "optimizer.cosine_level": 7},
    ),
    "mixmatch": Algorithm(
        mixmatch,
        {
            "unlabeled_weight": HyperParameter(75.0, 0.0),
            "ramp_up_steps": HyperParameter(2**14, 0),
            "sharpening_temperature": HyperParameter(0.5, 0.01, 1.0),
            "mixup_alpha": HyperParameter(0.75, 0.01),
        },
        {
            "unlabeled_ratio": 1,
            "optimizer.cosine_level": 5,
            "crest.alpha": 1 / 2,
            "crest.t_min": 0.8,
        },
        generations={"crest": 3, "crest_plus": 3},
    ),
    "fixmatch": Algorithm(
        fixmatch,
        {
            "threshold": _THRESHOLD,
            "unlabeled_weight": HyperParameter(1.0, 0.0),
            "weak_forward": Choice("joint", WEAK_FORWARD),
        },
    ),
}
