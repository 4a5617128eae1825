"""Semi-supervised algorithms, one file each, as pure functions from a step's inputs to its loss.

An algorithm is `loss(inputs: StepInputs, **hyper_parameters) -> Loss`. To add one, write its file
and add it to `ALGORITHMS`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from crest_jax import plugins
from crest_jax.algorithms.fixmatch import WEAK_FORWARD, fixmatch
from crest_jax.algorithms.mean_teacher import mean_teacher
from crest_jax.algorithms.mixmatch import mixmatch
from crest_jax.algorithms.pseudo_label import pseudo_label
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.algorithms.supervised import supervised
from crest_jax.errors import PluginError

__all__ = ["ALGORITHMS", "Algorithm", "Choice", "HyperParameter", "Loss", "StepInputs", "named"]


class HyperParameter(NamedTuple):
    """The default of a numeric hyper-parameter and its valid range."""

    default: int | float
    low: float
    high: float = math.inf


class Choice(NamedTuple):
    """The default of a hyper-parameter and all its possible values."""

    default: str
    values: Sequence[str]


class Algorithm(NamedTuple):
    """A loss and the settings it is trained with.

    Rebalancing enters a loss in two places: the loss weights labels by the weight of their class
    (`class_weights`), and passes its guesses for unlabeled images through `align` and `refine`.
    """

    loss: Callable[..., Loss]
    # Keyword arguments of the loss, each of which is also a config field.
    hyper_parameters: Mapping[str, HyperParameter | Choice]
    # Config fields whose defaults differ from FixMatch's. An `unlabeled_ratio` of 0 means that the
    # algorithm does not learn from unlabeled images.
    settings: Mapping[str, Any] = {}
    # The number of generations that CReST and CReST+ train it for (paper section 4.1).
    generations: Mapping[str, int] = {"crest": 15, "crest_plus": 6}

    @property
    def unlabeled(self) -> bool:
        """Whether the algorithm learns from unlabeled images."""
        return self.settings.get("unlabeled_ratio", 1) > 0


_THRESHOLD = HyperParameter(0.95, 0.0, 1.0)
_RAMP_UP = HyperParameter(0.4, 0.0, 1.0)

# All algorithms use FixMatch's optimiser, model and augmentation, as in the paper and in the
# published FixMatch code. The ratios and schedules are those of that code's versions of the older
# algorithms.
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


def named(name: str) -> Algorithm:
    """Return an algorithm, the project's or one of `module:name`.

    The latter is an `Algorithm`, or a loss without hyper-parameters.

    Raises:
      ConfigError: There is none of that name.
      PluginError: A user's own is missing, or is neither.
    """
    found = plugins.find(name, ALGORITHMS, field="method")
    if isinstance(found, Algorithm):
        return found
    if callable(found):
        return Algorithm(found, {})
    raise PluginError(
        f"method={name} must be a crest_jax.algorithms.Algorithm, or a function from StepInputs to "
        "a Loss"
    )
