"""The training state of a generation: one immutable pytree of all that a step reads and writes."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
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


def starting_from(state: TrainState, weights: Mapping[str, Float[np.ndarray, "..."]]) -> TrainState:
    """Return a fresh state with some of its weights replaced, the averaged ones too.

    Args:
      state: from `create`.
      weights: by names such as `params/Conv_0/kernel` and `batch_stats/BatchNorm_0/mean`.
    """

    def replaced(kind: str, tree: PyTree) -> PyTree:
        leaves = flatten_dict(tree, sep="/")
        given = {name: weights.get(f"{kind}/{name}") for name in leaves}
        return unflatten_dict(
            {
                name: leaf if given[name] is None else jnp.array(given[name], leaf.dtype)
                for name, leaf in leaves.items()
            },
            sep="/",
        )

    return state._replace(
        params=replaced("params", state.params),
        batch_stats=replaced("batch_stats", state.batch_stats),
        ema_params=replaced("params", state.ema_params),
        ema_batch_stats=replaced("batch_stats", state.ema_batch_stats),
    )
