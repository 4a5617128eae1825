"""DARP: joint refinement of all pseudo-labels, so that their classes have a given distribution.

Kim et al., 2020, https://arxiv.org/abs/2007.08844. The refined pseudo-labels are the solution of a
convex problem (`refine`). Its dual has one variable per class, whatever the number of examples. The
published code updates these variables one after the other for a fixed number of rounds; this module
takes damped Newton steps in all of them at once, each of which takes a few passes over the
examples, until every class has its count.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from crest_jax.field import Field
from crest_jax.rebalancing.protocol import PSEUDO_LABELS, Rebalancing

# Mass that `remove_noise` adds to every entry, so that every row keeps full support.
_FLOOR = 1e-6
# Error of a class' count, relative to its target, below which the solver stops.
_TOLERANCE = 1e-4
# The error below which blurred rows are sharpened, and the factor by which they are.
_BLURRED_TOLERANCE = 0.1
_SHARPEN = 2**0.25
_MOST_STEPS = 400  # after which the solver stops in any case
_SMALLEST_ENTROPY = 1e-2  # lower bound on the entropy of a row, in nats


class DarpState(NamedTuple):
    """DARP's state between training steps."""

    # The latest soft pseudo-label of each unlabeled example, initially uniform.
    pseudo_labels: Float[Array, "examples classes"]
    # The refined pseudo-labels, as of the last refinement.
    refined: Float[Array, "examples classes"]


class Refinement(NamedTuple):
    """When pseudo-labels are refined, in training steps, and how much noise is removed."""

    start: int  # the first step that trains on refined pseudo-labels, at least 1
    every: int  # steps from one refinement to the next
    delta: float  # examples that a class keeps, over its target count; at least 1


def create(examples: int, classes: int) -> DarpState:
    """Return the state before the first step."""
    # Two separate arrays, because a donated state must not hold one buffer twice.
    uniform, same = (jnp.full((examples, classes), 1 / classes, jnp.float32) for _ in range(2))
    return DarpState(uniform, same)


def update(
    state: DarpState,
    *,
    rows: Int[Array, " batch"],
    guesses: Float[Array, "batch classes"],
    step: Int[Array, ""],
    target: Float[Array, " classes"],
    refinement: Refinement,
) -> DarpState:
    """Store a batch's pseudo-labels, and refine those of all examples if one is due.

    Args:
      state: the state before the step.
      rows: indices of the batch's examples among all unlabeled ones.
      guesses: their pseudo-labels, rows summing to 1.
      step: the step that is done, from 0.
      target: the class distribution that the pseudo-labels are to have, summing to 1.
      refinement: when and how to refine.
    """
    pseudo_labels = remember(state.pseudo_labels, rows, guesses)
    counts = target * len(pseudo_labels)
    since = step + 1 - refinement.start
    refined = lax.cond(
        (since >= 0) & (since % refinement.every == 0),
        lambda: refine(remove_noise(pseudo_labels, counts, refinement.delta), counts),
        lambda: state.refined,
    )
    return DarpState(pseudo_labels, refined)


def remember(
    pseudo_labels: Float[Array, "examples classes"],
    rows: Int[Array, " batch"],
    guesses: Float[Array, "batch classes"],
) -> Float[Array, "examples classes"]:
    """Write a batch's guesses into their rows; of an example that occurs twice, the last one."""
    examples = len(pseudo_labels)
    # On an accelerator, two writes of one scatter to the same row have no defined order.
    places = jnp.arange(len(rows))
    last = jnp.full(examples, -1).at[rows].max(places)
    once = jnp.where(last[rows] == places, rows, examples)
    return pseudo_labels.at[once].set(guesses, mode="drop")


def remove_noise(
    probabilities: Float[Array, "examples classes"],
    target_counts: Float[Array, " classes"],
    delta: float,
) -> Float[Array, "examples classes"]:
    """Zero class k in all but the `int(delta * target_k)` examples with most of it.

    Of equal examples the earlier ones keep it. Every entry then gets a little mass, and rows are
    normalised to sum to 1.

    Args:
      probabilities: pseudo-labels, rows summing to 1.
      target_counts: the target number of examples of each class.
      delta: at least 1; the larger it is, the less is removed.
    """
    examples = len(probabilities)
    order = jnp.argsort(-probabilities, axis=0, stable=True)
    ranks = (
        jnp.zeros_like(order)
        .at[order, jnp.arange(order.shape[1])]
        .set(jnp.arange(examples)[:, None])
    )
    kept = jnp.where(ranks < jnp.floor(delta * target_counts), probabilities, 0) + _FLOOR
    return kept / kept.sum(axis=1, keepdims=True)


class _Iterate(NamedTuple):
    multipliers: Float[Array, " classes"]
    sharpness: Float[Array, ""]
    damping: Float[Array, ""]
    refined: Float[Array, "examples classes"]
    residual: Float[Array, " classes"]
    step: Int[Array, ""]


def refine(
    probabilities: Float[Array, "examples classes"], target_counts: Float[Array, " classes"]
) -> Float[Array, "examples classes"]:
    """Find the nearest pseudo-labels whose classes have the target counts.

    Minimises `sum_m w_m KL(M_m || q_m)` with `w_m = 1 / H(q_m)` over M whose rows sum to 1 and
    whose columns sum to the counts, so that uncertain examples change before certain ones. Unlike
    in the paper, H is taken as at least 0.01 nats: all examples with a confidence above about 0.999
    have the same weight, because float32 cannot resolve how they should differ. The solution is
    `M_mk = Normalize(q_mk exp(nu_k / w_m))`, with the dual variables nu. Its column sums minus the
    targets are the gradient of the dual, and their derivative is the Hessian,
    `sum_m (diag(M_m) - M_m M_m^T) / w_m`.

    Where rows are nearly one-hot the Hessian nearly vanishes, and Newton's steps go astray. The
    problem is therefore solved first for blurred rows, `q^(1/32)`. The solution is the starting
    point for slightly sharper rows, and so on.

    Args:
      probabilities: q, rows summing to 1.
      target_counts: at least 0; scaled to sum to the number of examples. A class with a target of 0
        gets no mass.

    Returns:
      M, rows summing to 1, columns within 0.01 % of their targets wherever that can be reached.
    """
    counts = target_counts * (len(probabilities) / target_counts.sum())
    wanted = counts > 0
    logs = jnp.log(jnp.maximum(probabilities, _FLOOR))
    entropy = -(probabilities * logs).sum(axis=1)
    slack = jnp.maximum(entropy, _SMALLEST_ENTROPY)[:, None]  # 1 / w_m
    logs = jnp.where(wanted, logs, -jnp.inf)
    root = jnp.sqrt(counts)
    scale = jnp.where(wanted, 1 / jnp.maximum(root, 1e-15), 0)

    def at(
        multipliers: Float[Array, " classes"],
        sharpness: Float[Array, ""],
        damping: Float[Array, ""],
        step: Int[Array, ""],
    ) -> _Iterate:
        refined = jax.nn.softmax(sharpness * (logs + slack * multipliers), axis=1)
        residual = scale * (refined.sum(axis=0) - counts)
        return _Iterate(multipliers, sharpness, damping, refined, residual, step)

    def error(iterate: _Iterate) -> Float[Array, ""]:
        return jnp.abs(iterate.residual * scale).max()  # relative to the counts

    def unfinished(iterate: _Iterate) -> Bool[Array, ""]:
        solved = (error(iterate) < _TOLERANCE) & (iterate.sharpness == 1)
        return ~solved & (iterate.step < _MOST_STEPS)

    def improve(iterate: _Iterate) -> _Iterate:
        """Take one damped Newton step unless it goes far past the minimum in its direction.

        The dual's slope after the step decides this, from gradients alone, because differences of
        the dual's values drown in rounding errors. Classes are scaled so that their Hessian entries
        are of the same order of magnitude.
        """
        moved = iterate.sharpness * slack * iterate.refined
        hessian = jnp.diag(moved.sum(axis=0)) - moved.T @ iterate.refined
        hessian = scale[:, None] * hessian * scale
        unit = jnp.trace(hessian) / wanted.sum()
        matrix = hessian + jnp.diag(jnp.where(wanted, iterate.damping * unit, 1.0))
        direction = -scale * jnp.linalg.solve(matrix, iterate.residual)
        candidate = at(
            iterate.multipliers + direction,
            iterate.sharpness,
            jnp.maximum(iterate.damping / 8, 1e-6),
            iterate.step + 1,
        )
        slope, slope_after = (direction @ (root * each.residual) for each in (iterate, candidate))
        damped = iterate._replace(damping=4 * iterate.damping, step=iterate.step + 1)
        return _where(slope_after <= -slope / 10, candidate, damped)

    def advance(iterate: _Iterate) -> _Iterate:
        iterate = improve(iterate)
        sharper = at(
            iterate.multipliers,
            jnp.minimum(_SHARPEN * iterate.sharpness, 1),
            jnp.float32(1e-3),
            iterate.step,
        )
        ready = (iterate.sharpness < 1) & (error(iterate) < _BLURRED_TOLERANCE)
        return _where(ready, sharper, iterate)

    start = at(jnp.zeros_like(counts), jnp.float32(1 / 32), jnp.float32(1e-3), jnp.int32(0))
    return lax.while_loop(unfinished, advance, start).refined


def _where(condition: Bool[Array, ""], one: _Iterate, other: _Iterate) -> _Iterate:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def refinement(steps: int, *, start: float, every: int, delta: float) -> Refinement:
    """Return when the pseudo-labels of a generation are refined.

    Args:
      steps: of the generation.
      start: the part of them after which pseudo-labels are refined, in [0, 1].
      every: steps from one refinement to the next.
      delta: examples that a class keeps, over its target count.
    """
    # Nothing can have been refined before the first step.
    return Refinement(start=max(1, int(start * steps)), every=every, delta=delta)


DARP = Rebalancing(
    (PSEUDO_LABELS,),
    {
        "darp.start": Field(
            0.4,
            "Part of a generation after which pseudo-labels are refined.",
            "[0, 1]",
            source="Kim et al., 2020",
        ),
        "darp.every": Field(
            10, "Steps between two refinements.", "[1, inf)", source="Kim et al., 2020"
        ),
        "darp.delta": Field(
            2.0,
            "Examples that keep a class possible, over the class's target.",
            "[1, inf)",
            source="Kim et al., 2020",
        ),
    },
    refinement=refinement,
    needs_all_examples=True,
)
