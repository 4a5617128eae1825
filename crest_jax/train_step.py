"""One training step: `(state, batch, constants) -> (state, metrics)`, pure and mapped.

It is written for one device, with explicit collectives over the axes of the mesh. An example's
randomness depends on the seed, the step and its place in the global batch, so the number of devices
changes nothing but the order of floating-point sums.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from crest_jax import augment
from crest_jax.algorithms import Loss, StepInputs
from crest_jax.augment import Augmentation
from crest_jax.mesh import AXES, REPLICATED, SPLIT, gather, mean, over_devices
from crest_jax.rebalancing import darp
from crest_jax.rebalancing.distribution_alignment import LABELED_DECAY, temperature_scaled
from crest_jax.rebalancing.protocol import Align
from crest_jax.train_state import TrainState


class Constants(NamedTuple):
    """Values that stay the same from step to step, as inputs so that one compilation serves all."""

    key: Key[Array, ""]
    temperature: Float[Array, ""]  # t of the alignment target, in [0, 1]
    # p(y), the target of the pseudo-labels' class distribution.
    target_distribution: Float[Array, " classes"]
    class_weights: Float[Array, " classes"]  # class weights of the labeled loss, with a mean of 1


class _Part(NamedTuple):
    """The examples of which one device computes a gradient at once."""

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]
    unlabeled_rows: Int[Array, " unlabeled"]
    labeled_keys: Key[Array, " labeled"]
    unlabeled_keys: Key[Array, " unlabeled"]


class DeviceBatch(NamedTuple):
    """A `crest_jax.data.pipeline.Batch` on the devices."""

    labeled: UInt8[Array, "labeled height width channels"]
    labels: Int[Array, " labeled"]
    unlabeled: UInt8[Array, "unlabeled height width channels"]
    # The row of each example among all unlabeled examples.
    unlabeled_rows: Int[Array, " unlabeled"]


# Derives the key of a step's dropout from that of its shuffling.
_DROPOUT = 0xD0

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, DeviceBatch, Constants], tuple[TrainState, Metrics]]


@runtime_checkable
class JittedTrainStep(Protocol):
    """A `TrainStep` of `jax.jit`, which can also be compiled without being run."""

    def __call__(
        self, state: TrainState, batch: DeviceBatch, constants: Constants, /
    ) -> tuple[TrainState, Metrics]:
        """Train on a batch, or on several in a row."""

    def lower(
        self, state: TrainState, batch: DeviceBatch, constants: Constants, /
    ) -> jax.stages.Lowered:
        """Return the program for arguments of these shapes, ready to be compiled."""


def in_a_row(train_step: TrainStep) -> JittedTrainStep:
    """Return a step that trains on several batches in a row, sent to the devices together.

    Batches and metrics have an additional leading axis, the steps. Between these no device waits
    for the host, and each step reuses the memory of the one before. The operating system then need
    not clear it again, which on a CPU takes a quarter of the time of a small model's step.
    """

    def steps(
        state: TrainState, batches: DeviceBatch, constants: Constants
    ) -> tuple[TrainState, Metrics]:
        if len(batches.labels) == 1:  # XLA would keep a loop of one step
            state, metrics = train_step(
                state, jax.tree.map(lambda leaf: leaf[0], batches), constants
            )
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)
        return lax.scan(lambda state, batch: train_step(state, batch, constants), state, batches)

    return jax.jit(steps, donate_argnums=0)


def make_train_step(
    loss: Callable[[StepInputs], Loss],
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    steps: int,
    alignment_target: str,
    align: Align,
    refinement: darp.Refinement | None,
    ema_decay: float,
    ema_batch_norm: bool,
    augmentation: Augmentation,
    accumulation: int = 1,
) -> TrainStep:
    """Compile the step for all devices of the mesh; the state is donated.

    Args:
      loss: an algorithm with its hyper-parameters bound.
      model: the network, built with axes of the mesh if batch norm is synchronised over them.
      optimizer: the optimiser that the state was created with.
      mesh: the result of `mesh.data_mesh`.
      steps: number of steps of the whole generation.
      alignment_target: one of `distribution_alignment.TARGETS`.
      align: aligns pseudo-labels with the target, unless that is "none".
      refinement: when DARP refines pseudo-labels; None for no refinement.
      ema_decay: decay of the weights' moving average, in [0, 1].
      ema_batch_norm: whether the averaged model has the moving average of batch norm's running
        statistics, rather than a copy of them.
      augmentation: settings of weak and strong views.
      accumulation: number of parts of a batch that are computed one after the other, which takes so
        much less memory. Batch norm normalises each part by itself; its running statistics and the
        gradient are means over the parts, as they are over devices without synchronised batch norm.
    """
    moves = {"flip": augmentation.flip, "shift": augmentation.shift}

    def weak(images: Array, keys: Array) -> Array:
        return augment.rescale(augment.weak(images, keys, **moves))

    def strong(images: Array, keys: Array, weak_keys: Array) -> Array:
        return augment.strong(
            images,
            keys,
            weak_keys=weak_keys if augmentation.from_weak_view else None,
            operations=augmentation.operations,
            cutout_fraction=augmentation.cutout,
            **moves,
        )

    def step(
        state: TrainState, batch: DeviceBatch, constants: Constants
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(constants.key, state.step)
        labeled_key, unlabeled_key, shuffle_key = jax.random.split(step_key, 3)

        def guess(probs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
            match alignment_target:
                case "none":
                    return probs
                case "labeled_average":
                    target = state.labeled_distribution
                case _:
                    target = temperature_scaled(
                        constants.target_distribution, constants.temperature
                    )
            return align(probs, target, state.model_distribution)

        def forward_with(
            params: PyTree, images: Array, dropout_key: Key[Array, ""]
        ) -> tuple[Array, PyTree]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            return logits, updates.get("batch_stats", {})

        def loss_of(
            params: PyTree, part: _Part, shuffle_key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Loss]:
            # Each device and each forward pass drops units of its own.
            dropout_key = jax.random.fold_in(
                jax.random.fold_in(shuffle_key, _DROPOUT), lax.axis_index(AXES)
            )
            passes = itertools.count()

            def forward(params: PyTree, images: Array) -> tuple[Array, PyTree]:
                key = jax.random.fold_in(dropout_key, next(passes))
                return forward_with(params, images, key)

            def refine(guesses: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
                if refinement is None:
                    return guesses
                assert state.darp is not None  # it is created where there is a refinement
                refined = state.darp.refined[part.unlabeled_rows]
                return jnp.where(state.step >= refinement.start, refined, guesses)

            result = loss(
                StepInputs(
                    labeled=part.labeled,
                    labels=part.labels,
                    unlabeled=part.unlabeled,
                    labeled_keys=part.labeled_keys,
                    unlabeled_keys=part.unlabeled_keys,
                    step=state.step,
                    progress=state.step / steps,
                    class_weights=constants.class_weights,
                    weak=weak,
                    strong=strong,
                    forward=partial(forward, params),
                    teacher=lambda images: lax.stop_gradient(forward(state.ema_params, images)[0]),
                    align=guess,
                    refine=refine,
                    shuffle=partial(shuffle, shuffle_key),
                )
            )
            # The mean over devices here makes the gradient that of the global batch.
            return lax.pmean(result.total, AXES), result

        whole = _Part(
            *batch,
            labeled_keys=_example_keys(labeled_key, len(batch.labeled)),
            unlabeled_keys=_example_keys(unlabeled_key, len(batch.unlabeled)),
        )
        # Each device differentiates by weights of its own. JAX would otherwise sum the gradients
        # where the model uses the weights, in its own type and for each part of a batch.
        own_params = lax.pcast(state.params, AXES, to="varying")
        gradients, result = _accumulated(
            jax.grad(loss_of, has_aux=True), own_params, whole, shuffle_key, accumulation
        )
        gradients = lax.psum(gradients, AXES)
        # The statistics of batch norm differ between devices that do not share them.
        batch_stats, prediction, metrics = mean(
            (result.batch_stats, result.prediction, result.metrics)
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        labels = jax.nn.one_hot(batch.labels, state.labeled_distribution.shape[0])
        predictions, pseudo_labels = state.predictions, state.darp
        if prediction is not None:
            predictions = predictions.at[state.step % len(predictions)].set(prediction)
        if refinement is not None:
            assert pseudo_labels is not None
            pseudo_labels = darp.update(
                pseudo_labels,
                rows=gather(batch.unlabeled_rows),
                guesses=gather(result.guesses),
                step=state.step,
                target=constants.target_distribution,
                refinement=refinement,
            )
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=optax.incremental_update(params, state.ema_params, 1 - ema_decay),
            ema_batch_stats=optax.incremental_update(
                batch_stats, state.ema_batch_stats, 1 - ema_decay
            )
            if ema_batch_norm
            else batch_stats,
            labeled_distribution=optax.incremental_update(
                lax.pmean(labels.mean(axis=0), AXES), state.labeled_distribution, 1 - LABELED_DECAY
            ),
            predictions=predictions,
            darp=pseudo_labels,
        )
        return new_state, metrics

    return over_devices(
        step,
        mesh,
        in_specs=(REPLICATED, SPLIT, REPLICATED),
        out_specs=(REPLICATED, REPLICATED),
        donate_argnums=0,
    )


def _accumulated(
    gradient: Callable[[PyTree, _Part, Key[Array, ""]], tuple[PyTree, Loss]],
    params: PyTree,
    whole: _Part,
    key: Key[Array, ""],
    parts: int,
) -> tuple[PyTree, Loss]:
    """Return the mean gradient and result of a batch's parts, each computed with its own key."""
    if parts == 1:
        return gradient(params, whole, key)
    split = jax.tree.map(
        lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:]), whole
    )
    keys = jax.random.split(key, parts)

    def add(total: PyTree, part: tuple[_Part, Key[Array, ""]]) -> tuple[PyTree, Loss]:
        gradients, result = gradient(params, *part)
        return jax.tree.map(jnp.add, total, gradients), result

    nothing = jax.tree.map(jnp.zeros_like, params)
    total, results = lax.scan(add, nothing, (split, keys))
    guesses = results.guesses
    if guesses is not None:
        guesses = guesses.reshape(-1, guesses.shape[-1])
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), results._replace(guesses=None))
    return jax.tree.map(lambda leaf: leaf / parts, total), mean._replace(guesses=guesses)


def _example_keys(key: Key[Array, ""], examples: int) -> Key[Array, " examples"]:
    """Return a key for each example of this device, derived from its place in the global batch."""
    places = lax.axis_index(AXES) * examples + jnp.arange(examples)
    return jax.vmap(partial(jax.random.fold_in, key))(places)


def shuffle(key: Key[Array, ""], parts: Sequence[PyTree]) -> list[PyTree]:
    """Permute the examples of all parts and all devices together; see `StepInputs.shuffle`.

    The parts of the global batch are concatenated in their order, regardless of the devices, so
    that the permutation does not depend on the number of devices.
    """
    sizes = [len(jax.tree.leaves(part)[0]) for part in parts]
    whole = [gather(part) for part in parts]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *whole)
    devices, device = lax.axis_size(AXES), lax.axis_index(AXES)
    permutation = jax.random.permutation(key, devices * sum(sizes))
    shuffled = []
    for number, size in enumerate(sizes):
        first = devices * sum(sizes[:number]) + device * size
        rows = lax.dynamic_slice_in_dim(permutation, first, size)
        shuffled.append(jax.tree.map(lambda leaf, rows=rows: leaf[rows], joined))
    return shuffled
