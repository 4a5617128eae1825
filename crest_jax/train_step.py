"""One training step: `(state, batch, generation) -> (state, metrics)`, pure and mapped.

Written for one device, with explicit collectives over the mesh axis. An example's randomness
comes from the seed, the step and its place in the global batch, so the number of devices changes
nothing but the order of floating-point sums.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from crest_jax import augment
from crest_jax.algorithms import Loss, StepInputs
from crest_jax.distributed import AXIS, REPLICATED, SPLIT, over_devices
from crest_jax.rebalancing.distribution_alignment import (
    LABELED_DECAY,
    align,
    temperature_scaled,
)
from crest_jax.train_state import TrainState


class Generation(NamedTuple):
    """What is constant within a generation: inputs of the step, so one compilation serves all."""

    key: Key[Array, ""]
    temperature: Float[Array, ""]  # t of the alignment target, in [0, 1]
    class_distribution: Float[Array, " classes"]  # p(y), of the original labeled set


class DeviceBatch(NamedTuple):
    """`crest_jax.data.pipeline.Batch` on the devices."""

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]


Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, DeviceBatch, Generation], tuple[TrainState, Metrics]]


def make_train_step(
    loss: Callable[[StepInputs], Loss],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    alignment_target: str,
    ema_decay: float,
    flip: bool,
    operations: Sequence[str],
) -> TrainStep:
    """Compiles the step for all devices of the mesh; the state is donated.

    Args:
      loss: an algorithm with its hyper-parameters bound.
      model: built with the mesh's axis name if batch norm is synchronised.
      optimizer: as the state was created with.
      mesh: from `distributed.data_mesh`.
      alignment_target: one of `distribution_alignment.TARGETS`.
      ema_decay: of the weights' moving average, in [0, 1].
      flip: whether weak augmentation may mirror images.
      operations: what RandAugment draws from.
    """

    def step(
        state: TrainState, batch: DeviceBatch, generation: Generation
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(generation.key, state.step)
        labeled_key, unlabeled_key = jax.random.split(step_key)

        def guess(probs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
            match alignment_target:
                case "none":
                    return probs
                case "labeled_average":
                    target = state.labeled_distribution
                case _:
                    target = temperature_scaled(
                        generation.class_distribution, generation.temperature
                    )
            return align(probs, target, state.model_distribution)

        def loss_of(params):
            def forward(images):
                variables = {"params": params, "batch_stats": state.batch_stats}
                logits, updates = model.apply(
                    variables, images, train=True, mutable=["batch_stats"]
                )
                return logits, updates["batch_stats"]

            result = loss(
                StepInputs(
                    labeled=batch.labeled,
                    labels=batch.labels,
                    unlabeled=batch.unlabeled,
                    labeled_keys=_example_keys(labeled_key, len(batch.labeled)),
                    unlabeled_keys=_example_keys(unlabeled_key, len(batch.unlabeled)),
                    weak=lambda images, keys: augment.rescale(
                        augment.weak(images, keys, flip=flip)
                    ),
                    strong=partial(augment.strong, flip=flip, operations=operations),
                    forward=forward,
                    align=guess,
                )
            )
            # The mean over devices here makes the gradient that of the global batch.
            return lax.pmean(result.total, AXIS), result

        gradients, result = jax.grad(loss_of, has_aux=True)(state.params)
        # Without synchronised batch norm each device has statistics of its own to contribute.
        batch_stats, prediction, metrics = jax.tree.map(
            lambda leaf: lax.pmean(leaf, AXIS),
            (result.batch_stats, result.prediction, result.metrics),
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        labels = jax.nn.one_hot(batch.labels, state.labeled_distribution.shape[0])
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=optax.incremental_update(params, state.ema_params, 1 - ema_decay),
            labeled_distribution=optax.incremental_update(
                lax.pmean(labels.mean(axis=0), AXIS), state.labeled_distribution, 1 - LABELED_DECAY
            ),
            predictions=state.predictions.at[state.step % len(state.predictions)].set(prediction),
        )
        return new_state, metrics

    return over_devices(
        step,
        mesh,
        in_specs=(REPLICATED, SPLIT, REPLICATED),
        out_specs=(REPLICATED, REPLICATED),
        donate_argnums=0,
    )


def _example_keys(key: Key[Array, ""], examples: int) -> Key[Array, " examples"]:
    """One key per example of this device, by its place in the global batch."""
    places = lax.axis_index(AXIS) * examples + jnp.arange(examples)
    return jax.vmap(partial(jax.random.fold_in, key))(places)
