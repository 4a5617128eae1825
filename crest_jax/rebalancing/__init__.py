"""Rebalancing methods, one file each, and the rules for combining them.

`config.rebalance` names one of them or several joined by +, as in `crest_plus+rs`, or is `none`.
Logit adjustment is not among them, because it is applied post hoc to every run.
"""

from collections.abc import Iterable, Iterator

from crest_jax import plugins
from crest_jax.errors import PluginError
from crest_jax.rebalancing.class_balanced_loss import CB
from crest_jax.rebalancing.crest import CREST, CREST_PLUS
from crest_jax.rebalancing.darp import DARP
from crest_jax.rebalancing.distribution_alignment import DA, TARGETS
from crest_jax.rebalancing.protocol import GENERATIONS, LABELED, PSEUDO_LABELS, Rebalancing
from crest_jax.rebalancing.resampling import RS

__all__ = [
    "GENERATIONS", "LABELED", "PSEUDO_LABELS", "REBALANCING", "Rebalancing", "joined", "named",
    "parts", "problems", "self_trains",
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
      ConfigError: There is none of that name, or it is not a `Rebalancing`.
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


def joined(rebalance: str) -> Rebalancing:
    """Return the ways of rebalancing that `rebalance` joins as a single one.

    At most one of them has each hook, since no two may act on the same thing (`problems`). Errors
    are those of `named`.
    """
    ways = [named(name) for name in parts(rebalance)]
    hooks = {
        name: next(filter(None, (getattr(way, name) for way in ways)), default)
        for name, default in Rebalancing._field_defaults.items()
    }
    return Rebalancing(tuple(what for way in ways for what in way.acts_on), **hooks)


def self_trains(rebalance: str) -> bool:
    """Return whether `rebalance` trains in several generations. Errors are those of `named`."""
    return GENERATIONS in joined(rebalance).acts_on


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
            f"{_and(map(repr, unknown))} is not one of {', '.join(REBALANCING)}, which + joins; "
            "none stands alone"
        ]
    acts_on = {name: named(name).acts_on for name in [*REBALANCING, *names]}
    found = []
    if not unlabeled:
        possible = [name for name in REBALANCING if acts_on[name] == (LABELED,)]
        needy = [name for name in names if acts_on[name] != (LABELED,)]
        if needy:
            found.append(
                f"{_and(needy)} needs an algorithm that learns from unlabeled data; without one, "
                f"rebalance may be none, {', '.join(possible)}"
            )
    for what in (LABELED, PSEUDO_LABELS, GENERATIONS):
        rivals = [name for name in names if what in acts_on[name]]
        if len(rivals) > 1:
            choices = [name for name in acts_on if what in acts_on[name]]
            found.append(
                f"{_and(rivals)} both rebalance {what}; take at most one of {', '.join(choices)}"
            )
    return found


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
