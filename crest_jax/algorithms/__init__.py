"""Semi-supervised algorithms, one file each, as pure functions from a step's inputs to its loss.

An algorithm is `loss(inputs: StepInputs, **hyper_parameters) -> Loss`. To add one, write its file
and add it to `ALGORITHMS`.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from crest_jax import plugins
from crest_jax.algorithms.fixmatch import WEAK_FORWARD, fixmatch
from crest_jax.algorithms.mean_teacher import mean_teacher
from crest_jax.algorithms.mixmatch import mixmatch
from crest_jax.algorithms.pseudo_label import pseudo_label
from crest_jax.algorithms.step_inputs import Loss, LossFunction, StepInputs
from crest_jax.algorithms.supervised import supervised
from crest_jax.errors import PluginError
from crest_jax.field import Field, wrong_declarations
from crest_jax.rebalancing import SELF_TRAINING
from crest_jax.rebalancing.protocol import parameters_of
from crest_jax.wording import shown

__all__ = ["ALGORITHMS", "Algorithm", "Field", "Loss", "LossFunction", "StepInputs", "named"]


class Algorithm(NamedTuple):
    """A loss and the settings it is trained with.

    Rebalancing enters a loss in two places: the loss weights labels by the weight of their class
    (`class_weights`), and passes its guesses for unlabeled images through `align` and `refine`.

    Attributes:
      loss: the loss, which takes `StepInputs` and its hyper-parameters.
      hyper_parameters: keyword arguments of the loss, each of which is also a config field.
      settings: config fields whose defaults differ from FixMatch's. An `unlabeled_ratio` of 0 means
        that the algorithm does not learn from unlabeled images.
      generations: the number of generations that each of CReST and CReST+ trains it for (paper
        section 4.1).
    """

    loss: LossFunction
    hyper_parameters: Mapping[str, Field]
    settings: Mapping[str, Any] = {}
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
      PluginError: The plug-in is missing, is neither of these, or is not consistent.
    """
    found = plugins.find(name, ALGORITHMS, field="method")
    if not isinstance(found, Algorithm):
        if not callable(found):
            raise PluginError(
                f"method={name} must be a crest_jax.algorithms.Algorithm, or a function from "
                "StepInputs to a Loss"
            )
        found = Algorithm(found, {})
    for wrong in _wrong(found):
        raise PluginError(f"method={name}: {wrong}")
    return found


def wrong_results(found: Any, *, classes: int, unlabeled: int) -> Iterator[str]:
    """Yield what is wrong with the result of a loss, which JAX traces.

    Args:
      found: what the loss returned.
      classes: how many there are.
      unlabeled: the number of unlabeled images of a device.
    """
    if not isinstance(found, Loss):
        yield f"returns a {type(found).__name__}: it must return a crest_jax.algorithms.Loss"
        return
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "total": (found.total, ()),
        "prediction": (found.prediction, (classes,)),
        "guesses": (found.guesses, (unlabeled, classes)),
    }
    for name, (value, shape) in shapes.items():
        if value is None and name != "total":
            continue
        if not hasattr(value, "dtype") or value.shape != shape:
            yield f"returns a Loss with {name} of {_shape(value)}: it must be of shape {shape}"
    if not isinstance(found.metrics, dict):
        yield f"returns a Loss with metrics={shown(found.metrics)}: it must be a dict of scalars"
        return
    for name, value in found.metrics.items():
        if not isinstance(name, str) or not hasattr(value, "dtype") or value.shape != ():
            yield f"returns a Loss with the metric {name!r} of {_shape(value)}: it must be a scalar"


def _shape(value: Any) -> str:
    return f"shape {value.shape}" if hasattr(value, "shape") else f"type {type(value).__name__}"


def _wrong(found: Algorithm) -> Iterator[str]:
    """Yield what is inconsistent in an `Algorithm`; `config` checks its settings."""
    if not callable(found.loss):
        yield f"loss={shown(found.loss)} must be a function from StepInputs to a Loss"
        return
    wrong = list(wrong_declarations(found.hyper_parameters, dotted=False))
    yield from wrong
    if not wrong and (taken := parameters_of(found.loss)):
        try:
            inspect.Signature(taken).bind("inputs", **found.hyper_parameters)
        except TypeError as error:
            yield f"its loss must take StepInputs, and its hyper-parameters by name ({error})"
    if not isinstance(found.settings, Mapping):
        yield f"settings={shown(found.settings)} must be a mapping from config fields to values"
    of_each = found.generations
    if (
        not isinstance(of_each, Mapping)
        or not set(SELF_TRAINING) <= set(of_each)
        or not all(type(number) is int and number > 1 for number in of_each.values())
    ):
        yield (
            f"generations={shown(of_each)} must give a number of at least 2 for each of "
            f"{', '.join(SELF_TRAINING)}"
        )
