"""The state of a generation as one immutable pytree: everything that a step reads and writes."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from crest_jax.rebalancing import darp
from crest_jax.rebalancing.darp import DarpState
from crest_jax.rebalancing.distribution_alignment import WINDOW


class TrainState(NamedTuple):
    """What a checkpoint holds."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    # The averaged model: an exponential moving average of `params`, and the batch statistics as
    # they are, or their average.
    ema_params: PyTree
    ema_batch_stats: PyTree
    # Running average of the labeled batches' class frequencies, starting uniform.
    labeled_distribution: Float[Array, " classes"]
    # The mean prediction on each of the last 128 unlabeled batches, a ring starting uniform.
    predictions: Float[Array, "window classes"]
    # Pseudo-labels of every unlabeled example, where DARP refines them.
    darp: DarpState | None = None

    @property
    def weights(self) -> tuple[PyTree, PyTree]:
        """Parameters and batch statistics of the model that is trained."""
        return self.params, self.batch_stats

    @property
    def ema_weights(self) -> tuple[PyTree, PyTree]:
        """Parameters and batch statistics of the averaged model, which the figures are of."""
        return self.ema_params, self.ema_batch_stats

    @property
    def model_distribution(self) -> Float[Array, " classes"]:
        """p~(y), the moving average of the model's predictions (paper section 3.4)."""
        return self.predictions.mean(axis=0)


def create(
    key: Key[Array, ""],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    refined_examples: int = 0,
) -> TrainState:
    """Initialises a fresh model and everything around it.

    Args:
      key: seeds the weights.
      model: one of `crest_jax.models`.
      optimizer: an optax optimiser.
      image_shape: height, width and channels.
      classes: how many.
      refined_examples: how many unlabeled examples DARP keeps pseudo-labels of, if it is used.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=True)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
        # Copies: a donated state must not hold one buffer twice.
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, variables["batch_stats"]),
        labeled_distribution=jnp.full((classes,), 1 / classes, jnp.float32),
        predictions=jnp.full((WINDOW, classes), 1 / classes, jnp.float32),
        darp=darp.create(refined_examples, classes) if refined_examples else None,
    )


def learning_rate_schedule(
    learning_rate: float,
    *,
    steps: int,
    level: int,
    warm_up: int = 0,
    drops: Sequence[int] = (),
) -> optax.Schedule:
    """`learning_rate cos(pi step/steps level/16)`; level 1 ends at 0.98 of where it began.

    FixMatch's ImageNet recipe (section 4.2 there) is warm-up, drops, and level 0.

    Args:
      learning_rate: at step 0 unless there is a warm-up, and otherwise at its end.
      steps: of the whole generation.
      level: how far down the half cosine to go, up to 8 for 0 (FixMatch section 2.3 takes 7).
      warm_up: steps of linear increase, from one such step's share.
      drops: steps from which on the rate is a tenth of what it was before.
    """

    def rate(step):
        cosine = jnp.cos(jnp.pi * step / steps * level / 16)
        warm = jnp.minimum(1.0, (step + 1) / warm_up) if warm_up else 1.0
        return learning_rate * cosine * warm * 0.1 ** sum(step >= drop for drop in drops)

    return rate


def make_optimizer(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Nesterov SGD with the L2 term `0.5 weight_decay |w|^2` on all weights but batch norm's.

    The term enters as its gradient, before the momentum, which is the same as in the loss.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_outside_batch_norm),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


def _outside_batch_norm(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any("BatchNorm" in entry.key for entry in path), params
    )
