"""Rebalancing methods, one file each, and the rules for combining them.

`config.rebalance` names one of them or several joined by +, as in `crest_plus+rs`, or is `none`.
Logit adjustment is not among them, because it is applied post hoc to every run.
"""

from collections.abc import Iterable

LABELED = "the labeled examples"
PSEUDO_LABELS = "the pseudo-labels"
GENERATIONS = "what the next generation trains on"

# What each method rebalances. Methods that rebalance the same thing exclude each other.
REBALANCING = {
    "cb": (LABELED,),
    "rs": (LABELED,),
    "da": (PSEUDO_LABELS,),
    "darp": (PSEUDO_LABELS,),
    "crest": (GENERATIONS,),
    "crest_plus": (PSEUDO_LABELS, GENERATIONS),
}
SELF_TRAINING = tuple(name for name, what in REBALANCING.items() if GENERATIONS in what)


def parts(rebalance: str) -> tuple[str, ...]:
    """Return the methods that `rebalance` joins: `crest+rs` is crest and rs, `none` is nothing."""
    return () if rebalance == "none" else tuple(rebalance.split("+"))


def problems(rebalance: str, *, unlabeled: bool) -> list[str]:
    """Return why `rebalance` is impossible, one sentence per problem; empty if it is possible.

    Args:
      rebalance: names joined by +, or none.
      unlabeled: whether the algorithm learns from unlabeled data.
    """
    names = parts(rebalance)
    unknown = [name for name in names if name not in REBALANCING]
    if unknown:
        return [
            f"{_and(map(repr, unknown))} is not one of {', '.join(REBALANCING)}, which + joins; "
            "none stands alone"
        ]
    found = []
    if not unlabeled:
        possible = [name for name, what in REBALANCING.items() if what == (LABELED,)]
        needy = [name for name in names if name not in possible]
        if needy:
            found.append(
                f"{_and(needy)} needs an algorithm that learns from unlabeled data; without one, "
                f"rebalance may be none, {', '.join(possible)}"
            )
    for what in (LABELED, PSEUDO_LABELS, GENERATIONS):
        rivals = [name for name in names if what in REBALANCING[name]]
        if len(rivals) > 1:
            choices = [name for name in REBALANCING if what in REBALANCING[name]]
            found.append(
                f"{_and(rivals)} both rebalance {what}; take at most one of {', '.join(choices)}"
            )
    return found


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
