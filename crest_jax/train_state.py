"""The training state of a generation: one immutable pytree of all that a step reads and writes."""

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
    """The state that a step updates and a checkpoint holds."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    # The averaged model: the exponential moving average of `params`, and either a copy or the
    # moving average of `batch_stats`.
    ema_params: PyTree
    ema_batch_stats: PyTree
    # The running average of the labeled batches' class frequencies; initially uniform.
    labeled_distribution: Float[Array, " classes"]
    # A ring buffer of the mean predictions on the last 128 unlabeled batches; initially uniform.
    predictions: Float[Array, "window classes"]
    # The pseudo-labels of all unlabeled examples, if DARP refines them.
    darp: DarpState | None = None

    @property
    def weights(self) -> tuple[PyTree, PyTree]:
        """The parameters and batch statistics of the model that is trained."""
        return self.params, self.batch_stats

    @property
    def ema_weights(self) -> tuple[PyTree, PyTree]:
        """The parameters and batch statistics of the averaged model, whose figures are reported."""
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
    """Initialise a fresh model and the rest of the training state.

    Args:
      key: seed of the weights.
      model: one of `crest_jax.models`.
      optimizer: an optax optimiser.
      image_shape: height, width and channels.
      classes: number of classes.
      refined_examples: number of unlabeled examples whose pseudo-labels DARP keeps; 0 without DARP.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=True)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies: a donated state must not hold one buffer twice.
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
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

    def rate(step):
        cosine = jnp.cos(jnp.pi * step / steps * level / 16)
        warm = jnp.minimum(1.0, (step + 1) / warm_up) if warm_up else 1.0
        return learning_rate * cosine * warm * 0.1 ** sum(step >= drop for drop in drops)

    return rate


def make_optimizer(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Return Nesterov SGD with the L2 term `0.5 weight_decay |w|^2`, except for batch norm.

    The gradient of the term is added before the momentum, which is equivalent to adding the term to
    the loss.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_outside_batch_norm),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


def _outside_batch_norm(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any("BatchNorm" in entry.key for entry in path), params
    )
