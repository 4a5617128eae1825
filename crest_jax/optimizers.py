"""Optimisers of optax by name, and the schedule of the learning rate.

An optimiser is a function of the schedule and of config fields `optimizer.*`, which are its keyword
arguments. To add one, write it, add it to `OPTIMIZERS`, and declare its fields (`config.FIELDS`).
The weights and biases of batch norm have no weight decay.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree


def learning_rate_schedule(
    learning_rate: float,
    *,
    steps: int,
    level: int,
    warm_up: int = 0,
    drops: Sequence[int] = (),
) -> optax.Schedule:
    """Return the schedule `learning_rate cos(pi step/steps level/16)`, with warm-up and drops.

    Level 1 ends at 0.98 of the initial rate. FixMatch's ImageNet recipe (section 4.2 there) is
    warm-up, drops, and level 0.

    Args:
      learning_rate: the rate at step 0, or at the end of the warm-up if there is one.
      steps: number of steps of the whole generation.
      level: how far down the half cosine to go; 8 ends at 0 (FixMatch section 2.3 takes 7).
      warm_up: number of steps of linear increase, which starts at `learning_rate / warm_up`.
      drops: steps from which on the rate is a tenth of what it was before.
    """

    def rate(step: int | Array) -> Array:
        cosine = jnp.cos(jnp.pi * step / steps * level / 16)
        warm = jnp.minimum(1.0, (step + 1) / warm_up) if warm_up else 1.0
        return learning_rate * cosine * warm * 0.1 ** sum(step >= drop for drop in drops)

    return rate


def sgd(
    rate: optax.Schedule, *, weight_decay: float, momentum: float, nesterov: bool
) -> optax.GradientTransformation:
    """Return SGD with the L2 term `0.5 weight_decay |w|^2`: FixMatch's, with Nesterov momentum.

    The gradient of the term is added before the momentum, which is equivalent to adding the term to
    the loss.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_outside_batch_norm),
        optax.sgd(rate, momentum=momentum, nesterov=nesterov),
    )


def adam(
    rate: optax.Schedule, *, weight_decay: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Return Adam (Kingma and Ba, 2015) with the L2 term `0.5 weight_decay |w|^2`."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_outside_batch_norm),
        optax.adam(rate, b1=b1, b2=b2, eps=eps),
    )


def adamw(
    rate: optax.Schedule, *, weight_decay: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, 2019), whose weight decay is apart from the gradient."""
    return optax.adamw(
        rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_outside_batch_norm
    )


def lars(
    rate: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    trust_coefficient: float,
) -> optax.GradientTransformation:
    """Return LARS (You et al., 2017), which scales each layer's step by the norm of its weights.

    Batch norm's weights and biases are not scaled.
    """
    return optax.lars(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=_outside_batch_norm,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=_outside_batch_norm,
        momentum=momentum,
        nesterov=nesterov,
    )


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "lars": lars,
}


def parameters(name: str) -> list[str]:
    """Return the names of the config fields `optimizer.*` that an optimiser takes."""
    return [
        each.name
        for each in inspect.signature(OPTIMIZERS[name]).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]


def _outside_batch_norm(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any("BatchNorm" in entry.key for entry in path), params
    )
