"""The interface of a rebalancing."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Float

from crest_jax.field import Field

LABELED = "the labeled examples"
PSEUDO_LABELS = "the pseudo-labels"
GENERATIONS = "what the next generation trains on"

# The types of hooks. After what is listed, each takes by keyword those hyper-parameters of its
# rebalancing that it names.

# (labels of each class [classes], class names, **) -> the weights of the classes in the labeled
# loss, finite, at least 0, and with a mean of 1 [classes].
ClassWeights: TypeAlias = Callable[..., Float[np.ndarray, " classes"]]
# (class of each labeled example [labeled], class names, **) -> the probability of drawing each,
# with a sum of 1 [labeled].
SamplingProbabilities: TypeAlias = Callable[..., Float[np.ndarray, " labeled"]]
# (p(y) of the labeled set [classes], class names, **) -> the part of the examples predicted as each
# class that a generation selects, in [0, 1] [classes].
SamplingRates: TypeAlias = Callable[..., Float[np.ndarray, " classes"]]
# (predictions [batch, classes], target distribution [classes], moving average of the predictions
# [classes], **) -> pseudo-labels [batch, classes]. JAX traces it.
Align: TypeAlias = Callable[..., Float[Array, "batch classes"]]
# (steps of a generation, **) -> `darp.Refinement`: when pseudo-labels are refined together.
Refine: TypeAlias = Callable[..., Any]

# The arguments that each hook takes by position.
HOOKS = {
    "class_weights": ("counts", "class_names"),
    "sampling_probabilities": ("labels", "class_names"),
    "align": ("probs", "target", "model_distribution"),
    "refinement": ("steps",),
    "sampling_rates": ("class_distribution", "class_names"),
}


class Rebalancing(NamedTuple):
    """A way of rebalancing: what it acts on, its hyper-parameters, and its hooks.

    A hook that is None changes nothing. Two ways that act on the same thing exclude each other.

    Attributes:
      acts_on: one or more of LABELED, PSEUDO_LABELS and GENERATIONS. One that acts on GENERATIONS
        trains in several.
      hyper_parameters: config fields by their dotted names. A hook takes them as keyword arguments,
        each by the last part of its name: `crest.alpha` as `alpha`.
      class_weights: the hook that gives the weights of the classes in the labeled loss.
      sampling_probabilities: the hook that gives the probability of drawing each labeled example.
      alignment_targets: the values that `alignment.target` may have, its default first; empty for
        no alignment.
      align: the hook that aligns pseudo-labels in place of `distribution_alignment.align`.
      refinement: the hook that says when pseudo-labels are refined together.
      sampling_rates: the hook that gives the part of each class' pseudo-labels to select. One that
        acts on GENERATIONS has this hook.
      needs_all_examples: whether it needs all examples in memory, so that they cannot be streamed.
    """

    acts_on: tuple[str, ...]
    hyper_parameters: Mapping[str, Field] = {}
    class_weights: ClassWeights | None = None
    sampling_probabilities: SamplingProbabilities | None = None
    alignment_targets: tuple[str, ...] = ()
    align: Align | None = None
    refinement: Refine | None = None
    sampling_rates: SamplingRates | None = None
    needs_all_examples: bool = False

    def keywords(self, hook: str) -> dict[str, str]:
        """Return the hyper-parameters that a hook takes by name, as keyword -> config field."""
        names = {name.rpartition(".")[2]: name for name in self.hyper_parameters}
        taken = parameters_of(getattr(self, hook))
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
            return names
        named = {each.name for each in taken[len(HOOKS[hook]) :]}
        return {keyword: field for keyword, field in names.items() if keyword in named}


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function; none where it does not say, as `max` does not."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
