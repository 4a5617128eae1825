"""Rebalancing methods, one file each, and the rules for combining them.

`config.rebalance` names one of them or several joined by +, as in `crest_plus+rs`, or is `none`.
Logit adjustment is not among them, because it is applied post hoc to every run.
"""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from crest_jax import plugins
from crest_jax.errors import PluginError
from crest_jax.field import Field, wrong_declarations
from crest_jax.rebalancing.class_balanced_loss import CB
from crest_jax.rebalancing.crest import CREST, CREST_PLUS
from crest_jax.rebalancing.darp import DARP
from crest_jax.rebalancing.distribution_alignment import DA, TARGETS
from crest_jax.rebalancing.protocol import (
    GENERATIONS,
    HOOKS,
    LABELED,
    PSEUDO_LABELS,
    Rebalancing,
    parameters_of,
)
from crest_jax.rebalancing.resampling import RS
from crest_jax.wording import shown

__all__ = [
    "CREST", "GENERATIONS", "LABELED", "PSEUDO_LABELS", "REBALANCING", "Field", "Rebalancing",
    "acts_on", "alignment_targets", "hyper_parameters", "named", "parts", "problems", "self_trains",
    "ways",
]  # fmt: skip

REBALANCING: dict[str, Rebalancing] = {
    "cb": CB,
    "rs": RS,
    "da": DA,
    "darp": DARP,
    "crest": CREST,
    "crest_plus": CREST_PLUS,
}
SELF_TRAINING = tuple(name for name, each in REBALANCING.items() if GENERATIONS in each.acts_on)


def parts(rebalance: str) -> tuple[str, ...]:
    """Return the methods that `rebalance` joins: `crest+rs` is crest and rs, `none` is nothing."""
    return () if rebalance == "none" else tuple(rebalance.split("+"))


def named(name: str) -> Rebalancing:
    """Return one way of rebalancing, the project's or one of `module:name`.

    Raises:
      ConfigError: There is none of that name.
      PluginError: The plug-in is missing, or is not a consistent `Rebalancing`.
    """
    found = plugins.find(name, REBALANCING, field="rebalance")
    if not isinstance(found, Rebalancing):
        raise PluginError(f"rebalance={name} must be a crest_jax.rebalancing.Rebalancing")
    for wrong in _wrong(found):
        raise PluginError(f"rebalance={name}: {wrong}")
    return found


def _wrong(found: Rebalancing) -> Iterator[str]:
    """Yield what is inconsistent in a `Rebalancing`."""
    everything = (LABELED, PSEUDO_LABELS, GENERATIONS)
    if not isinstance(found.acts_on, tuple) or not found.acts_on:
        yield "acts_on must be a tuple of LABELED, PSEUDO_LABELS or GENERATIONS"
    elif not set(found.acts_on) <= set(everything):
        yield f"acts_on={found.acts_on} must be of LABELED, PSEUDO_LABELS and GENERATIONS"
    yield from _wrong_hyper_parameters(found.hyper_parameters)
    if not set(found.alignment_targets) <= set(TARGETS):
        yield f"alignment_targets={found.alignment_targets} must be of {', '.join(TARGETS)}"
    acts_by = {
        LABELED: (found.class_weights, found.sampling_probabilities),
        PSEUDO_LABELS: (found.align, found.refinement, found.alignment_targets or None),
        GENERATIONS: (found.sampling_rates,),
    }
    for what, hooks in acts_by.items():
        if any(hook is not None for hook in hooks) and what not in found.acts_on:
            yield f"it has a hook for {what}, which acts_on lacks"
    if found.align and not found.alignment_targets:
        yield "align needs alignment_targets, such as ('constant',)"
    if (found.sampling_probabilities or found.refinement) and not found.needs_all_examples:
        yield "sampling_probabilities and refinement need needs_all_examples=True"
    if GENERATIONS in found.acts_on and not found.sampling_rates:
        yield (
            "acts_on has GENERATIONS, which needs sampling_rates: those of Eq. 1 are "
            "CREST.sampling_rates, which take CREST.hyper_parameters"
        )
    if not found.alignment_targets and all(getattr(found, name) is None for name in HOOKS):
        yield f"it has no hook, so it would do nothing: give it one of {', '.join(HOOKS)}"
    for name in HOOKS:
        yield from _wrong_hook(found, name)


def _wrong_hyper_parameters(declared: Any) -> Iterator[str]:
    wrong = list(wrong_declarations(declared, dotted=True))
    yield from wrong
    keywords = [name.rpartition(".")[2] for name in declared] if not wrong else []
    for keyword in sorted({each for each in keywords if keywords.count(each) > 1}):
        yield f"hyper_parameters has more than one whose name ends in {keyword}"


def _wrong_hook(found: Rebalancing, name: str) -> Iterator[str]:
    hook = getattr(found, name)
    if hook is None:
        return
    if not callable(hook):
        yield f"{name}={shown(hook)} must be a function"
        return
    taken = parameters_of(hook)
    if not taken:
        return
    try:
        inspect.Signature(taken).bind(*HOOKS[name], **found.keywords(name))
    except TypeError as error:
        yield (
            f"{name} must take {', '.join(HOOKS[name])}, and hyper-parameters that it declares by "
            f"name ({error})"
        )


def ways(rebalance: str) -> list[Rebalancing]:
    """Return the ways of rebalancing that `rebalance` joins.

    At most one of them has each hook, since no two may act on the same thing (`problems`). Errors
    are those of `named`.
    """
    return [named(name) for name in parts(rebalance)]


def acts_on(rebalance: str) -> set[str]:
    """Return what `rebalance` acts on. Errors are those of `named`."""
    return {what for way in ways(rebalance) for what in way.acts_on}


def self_trains(rebalance: str) -> bool:
    """Return whether `rebalance` trains in several generations. Errors are those of `named`."""
    return GENERATIONS in acts_on(rebalance)


def alignment_targets(rebalance: str) -> tuple[str, ...]:
    """Return the valid values of `alignment.target`, the default first.

    Errors are those of `named`.
    """
    return next(filter(None, (way.alignment_targets for way in ways(rebalance))), ("none",))


def hyper_parameters(rebalance: str) -> dict[str, Field]:
    """Return the hyper-parameters of all parts of `rebalance`. Errors are those of `named`."""
    return {name: each for way in ways(rebalance) for name, each in way.hyper_parameters.items()}


def problems(rebalance: str, *, unlabeled: bool) -> list[str]:
    """Return why `rebalance` is impossible, one sentence per problem; empty if it is possible.

    Args:
      rebalance: names joined by +, or none.
      unlabeled: whether the algorithm learns from unlabeled data.

    Raises:
      PluginError: A plug-in is missing, or cannot be used.
    """
    names = parts(rebalance)
    unknown = [name for name in names if name not in REBALANCING and not plugins.is_plugin(name)]
    if unknown:
        return [
            f"{_and(map(repr, unknown))} is not one of {', '.join(REBALANCING)}, or module:name of "
            "your own, which + joins; none stands alone"
        ]
    acted_on = {name: named(name).acts_on for name in [*REBALANCING, *names]}
    found = []
    if not unlabeled:
        possible = [name for name in REBALANCING if acted_on[name] == (LABELED,)]
        needy = [name for name in names if acted_on[name] != (LABELED,)]
        if needy:
            found.append(
                f"{_and(needy)} needs an algorithm that learns from unlabeled data; without one, "
                f"rebalance may be none, {', '.join(possible)}"
            )
    for what in (LABELED, PSEUDO_LABELS, GENERATIONS):
        rivals = [name for name in names if what in acted_on[name]]
        if len(rivals) > 1:
            choices = [name for name in acted_on if what in acted_on[name]]
            found.append(
                f"{_and(rivals)} both rebalance {what}; take at most one of {', '.join(choices)}"
            )
    return found


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
