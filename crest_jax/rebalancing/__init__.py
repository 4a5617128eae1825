"""Rebalancing methods, one file each, and the rules for combining them.

`config.rebalance` names one of them or several joined by +, as in `crest_plus+rs`, or is `none`.
Logit adjustment is not among them, because it is applied post hoc to every run.
"""

from collections.abc import Iterable

from crest_jax import plugins
from crest_jax.errors import ConfigError
from crest_jax.rebalancing.class_balanced_loss import CB
from crest_jax.rebalancing.crest import CREST, CREST_PLUS
from crest_jax.rebalancing.darp import DARP
from crest_jax.rebalancing.distribution_alignment import DA
from crest_jax.rebalancing.protocol import GENERATIONS, LABELED, PSEUDO_LABELS, Rebalancing
from crest_jax.rebalancing.resampling import RS

__all__ = [
    "GENERATIONS", "LABELED", "PSEUDO_LABELS", "REBALANCING", "Rebalancing", "all_of", "named",
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
        raise ConfigError(f"rebalance={name} must be a crest_jax.rebalancing.Rebalancing")
    return found


def all_of(rebalance: str) -> list[Rebalancing]:
    """Return the ways of rebalancing that `rebalance` joins. Errors are those of `named`."""
    return [named(name) for name in parts(rebalance)]


def self_trains(rebalance: str) -> bool:
    """Return whether `rebalance` trains in several generations. Errors are those of `named`."""
    return any(GENERATIONS in each.acts_on for each in all_of(rebalance))


def problems(rebalance: str, *, unlabeled: bool) -> list[str]:
    """Return why `rebalance` is impossible, one sentence per problem; empty if it is possible.

    Args:
      rebalance: names joined by +, or none.
      unlabeled: whether the algorithm learns from unlabeled data.
    """
    names = parts(rebalance)
    unknown = [name for name in names if name not in REBALANCING and not plugins.is_plugin(name)]
    if unknown:
        return [
            f"{_and(map(repr, unknown))} is not one of {', '.join(REBALANCING)}, which + joins; "
            "none stands alone"
        ]
    try:
        acts_on = {name: named(name).acts_on for name in [*REBALANCING, *names]}
    except ConfigError as error:
        return [str(error)]
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
