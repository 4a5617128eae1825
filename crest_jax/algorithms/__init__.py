"""Semi-supervised algorithms, one file each, as pure functions from a step's inputs to its loss.

An algorithm is `loss(inputs: StepInputs, **hyper_parameters) -> Loss`. To add one, write its file
and add it to `ALGORITHMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from crest_jax import plugins
from crest_jax.algorithms.fixmatch import WEAK_FORWARD, fixmatch
from crest_jax.algorithms.mean_teacher import mean_teacher
from crest_jax.algorithms.mixmatch import mixmatch
from crest_jax.algorithms.pseudo_label import pseudo_label
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.algorithms.supervised import supervised
from crest_jax.errors import PluginError
from crest_jax.field import Field

__all__ = ["ALGORITHMS", "Algorithm", "Field", "Loss", "StepInputs", "named"]


class Algorithm(NamedTuple):
    """A loss and the settings it is trained with.

    Rebalancing enters a loss in two places: the loss weights labels by the weight of their class
    (`class_weights`), and passes its guesses for unlabeled images through `align` and `refine`.
    """

    loss: Callable[..., Loss]
    # Keyword arguments of the loss, each of which is also a config field.
    hyper_parameters: Mapping[str, Field]
    # Config fields whose defaults differ from FixMatch's. An `unlabeled_ratio` of 0 means that the
    # algorithm does not learn from unlabeled images.
    settings: Mapping[str, Any] = {}
    # The number of generations that CReST and CReST+ train it for (paper section 4.1).
    generations: Mapping[str, int] = {"crest": 15, "crest_plus": 6}

    @property
    def unlabeled(self) -> bool:
        """Return whether the algorithm learns from unlabeled images."""
        return self.settings.get("unlabeled_ratio", 1) > 0


_FIXMATCH = "FixMatch (Sohn et al., 2020)"
_MIXMATCH = "MixMatch (Berthelot et al., 2019)"
_PUBLISHED = "the published FixMatch code"
_THRESHOLD = Field(
    0.95,
    "Confidence from which a pseudo-label is used.",
    "[0, 1]",
    source=_FIXMATCH,
)
_RAMP_UP = Field(
    0.4,
    "Part of a generation within which the unlabeled weight rises from 0.",
    "[0, 1]",
    source=_PUBLISHED,
)


def _weight(default: float, source: str) -> Field:
    return Field(default, "Weight of the unlabeled loss.", "[0, inf)", source=source)


# All algorithms use FixMatch's optimiser, model and augmentation, as in the paper and in the
# published FixMatch code. The ratios and schedules are those of that code's versions of the older
# algorithms.
ALGORITHMS = {
    "supervised": Algorithm(supervised, {}, {"unlabeled_ratio": 0}),
    "pseudo_label": Algorithm(
        pseudo_label,
        {
            "threshold": _THRESHOLD,
            "unlabeled_weight": _weight(1.0, _PUBLISHED),
            "ramp_up": _RAMP_UP,
        },
        {"unlabeled_ratio": 1, "optimizer.cosine_level": 7},
    ),
    "mean_teacher": Algorithm(
        mean_teacher,
        {"unlabeled_weight": _weight(50.0, _PUBLISHED), "ramp_up": _RAMP_UP},
        {"unlabeled_ratio": 1, "optimizer.cosine_level": 7},
    ),
    "mixmatch": Algorithm(
        mixmatch,
        {
            "unlabeled_weight": _weight(75.0, _MIXMATCH),
            "ramp_up_steps": Field(
                2**14,
                "Steps within which the unlabeled weight rises from 0.",
                "[0, inf)",
                source=_MIXMATCH,
            ),
            "sharpening_temperature": Field(
                0.5, "Temperature T that sharpens guesses.", "[0.01, 1]", source=_MIXMATCH
            ),
            "mixup_alpha": Field(
                0.75,
                "Both parameters of MixUp's beta distribution.",
                "[0.01, inf)",
                source=_MIXMATCH,
            ),
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
            "unlabeled_weight": _weight(1.0, _FIXMATCH),
            "weak_forward": Field(
                "joint",
                "Whether weak views share a forward pass, and batch statistics, with the rest.",
                choices=WEAK_FORWARD,
                source=_PUBLISHED,
            ),
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
