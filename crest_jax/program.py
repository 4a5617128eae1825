"""The resolved program of a run: the values and compiled functions that a config and data give.

This is where the config ends. The stages of a run are given a `Program`, or the values of it that
they need.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped
from ml_collections import ConfigDict

from crest_jax import algorithms, evaluate, models, optimizers, plugins, train_state
from crest_jax.algorithms import Loss, StepInputs
from crest_jax.augment import Augmentation
from crest_jax.config import by_name
from crest_jax.cpu import library
from crest_jax.data import long_tail
from crest_jax.data.splits import Splits
from crest_jax.data.views import View, view_of
from crest_jax.errors import DataError, PluginError
from crest_jax.field import of_each_class
from crest_jax.layout import RunFolder
from crest_jax.mesh import AXES, WITHIN_GROUP, data_mesh, local_mesh, replicate
from crest_jax.models.norm import AxisNames
from crest_jax.rebalancing import darp, distribution_alignment, logit_adjustment, named, parts
from crest_jax.rebalancing.distribution_alignment import progressive_temperature
from crest_jax.rebalancing.protocol import Align
from crest_jax.schedule import Schedule
from crest_jax.train_state import TrainState
from crest_jax.train_step import JittedTrainStep, TrainStep, in_a_row, make_train_step
from crest_jax.wording import shown

# The size of the batches that a device is sent together, at most.
_MOST_BYTES_AT_ONCE = 64 << 20
# How far the mean of class weights may be from 1.
_TOLERANCE = 1e-4


class Streams(NamedTuple):
    """Settings for reading the labeled and the unlabeled stream of a generation."""

    batch_size: int  # labeled images of a step, on all devices together
    unlabeled_ratio: int  # mu: unlabeled images of a step for each labeled one
    seed: int
    view: View
    unlabeled: tuple[str, ...]  # the splits that the unlabeled stream is made of
    from_files: bool  # whether images are read from files all along, instead of kept in memory
    lanes: int
    window: int
    # The probability of drawing each labeled example, from the class of each and all class names;
    # None where all are drawn alike.
    sampling_probabilities: Callable[
        [Int[np.ndarray, " labeled"], Sequence[str]], Float[np.ndarray, " labeled"] | None
    ]

    @property
    def images(self) -> int:
        """The labeled and unlabeled images of a step."""
        return self.batch_size * (1 + self.unlabeled_ratio)


class Program(NamedTuple):
    """Everything that serves all generations of a run."""

    generations: int
    # The config's seed, and how often it was reseeded; the steps have `keys` made of them.
    seed: int
    reseed: int
    schedule: Schedule
    streams: Streams
    shards: int  # files of each labeled set that is written
    # The seeds of a generation's initial weights, and of its steps.
    keys: Callable[[int], tuple[Key[Array, ""], Key[Array, ""]]]
    # The temperature of the alignment target in each generation; None where the target has none.
    temperatures: tuple[float | None, ...]
    # mu: the part of the examples predicted as each class that a generation selects.
    # None where no generation follows another.
    sampling_rates: Float[np.ndarray, " classes"] | None
    # The weights of the classes in the labeled loss, from how many labels each has.
    class_weights: Callable[[Int[np.ndarray, " classes"]], Float[np.ndarray, " classes"]]
    # p(y) of the unlabeled stream, from the latest estimate of that of the unlabeled split.
    target_distribution: Callable[[Sequence[float] | None], Float[np.ndarray, " classes"]]
    # Whether that estimate is made at each evaluation.
    estimates_unlabeled: bool
    tau: float  # strength of logit adjustment
    # The offsets of logit adjustment, from how many labels each class has.
    adjustment: Callable[[Sequence[int]], Float[np.ndarray, " classes"]]
    mesh: Mesh
    # The devices of this host, with which it evaluates and scores by itself.
    local_mesh: Mesh
    new_state: Callable[[Key[Array, ""]], TrainState]  # replicated over the mesh
    train_steps: JittedTrainStep  # `at_once` steps in a row
    at_once: int
    predict: evaluate.Predict


class Run(NamedTuple):
    """An experiment in its folder, ready for its stages."""

    folder: RunFolder
    splits: Splits
    program: Program

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.splits.class_names)


def build(
    config: ConfigDict,
    splits: Splits,
    initial: Mapping[str, Float[np.ndarray, "..."]] | None = None,
) -> Program:
    """Resolve a config for these splits and the devices at hand.

    Args:
      config: validated.
      splits: of the run; images are not looked at.
      initial: weights that every generation starts from, by name; the others start at random.

    Raises:
      DataError: The images have neither 1 nor 3 channels.
      ConfigError: The unlabeled distribution or the sampling rates that are given are not of these
        classes.
      PluginError: A plug-in's model does not map such images to such logits, or a hook does not
        return what it must.
    """
    classes = len(splits.class_names)
    if splits.image_shape[-1] not in (1, 3):
        raise DataError(
            f"images of shape {splits.image_shape} are neither grey (1 channel) nor RGB (3)"
        )
    target = partial(target_distribution, config, splits)
    # Errors of these are raised now, before anything is compiled.
    target(None)
    weights = partial(class_weights, config, splits.class_names)
    if splits.labeled.per_class is not None:
        weights(splits.labeled.per_class)
    check_model(config, splits.image_shape, classes)
    mesh, local = data_mesh(group=config.sync_batch_norm_group), local_mesh()
    model = model_of(config, classes, axis_name=batch_norm_axis(config))
    create = jax.jit(
        creator(config, model, splits.image_shape, classes, unlabeled_examples(config, splits))
    )

    def new_state(key: Key[Array, ""]) -> TrainState:
        state = train_state.starting_from(create(key), initial) if initial else create(key)
        return replicate(state, mesh)

    return Program(
        generations=config.generations,
        seed=config.seed,
        reseed=config.reseed,
        schedule=schedule_of(config),
        streams=streams_of(config, splits.image_shape[-1]),
        shards=config.data.shards,
        keys=partial(generation_keys, config),
        temperatures=tuple(
            temperature_of(config, generation) for generation in range(config.generations)
        ),
        sampling_rates=sampling_rates(config, splits) if config.generations > 1 else None,
        class_weights=weights,
        target_distribution=target,
        estimates_unlabeled=config.unlabeled_distribution.source == "predicted",
        tau=config.logit_adjustment_tau,
        adjustment=partial(adjustment, tau=config.logit_adjustment_tau),
        mesh=mesh,
        local_mesh=local,
        new_state=new_state,
        train_steps=in_a_row(train_step_of(config, model, mesh)),
        at_once=steps_at_once(config, splits.image_shape, devices=mesh.size),
        predict=evaluate.make_predict(model, local, batch_size=config.eval_batch_size),
    )


# The model and its training


def batch_norm_axis(config: ConfigDict) -> AxisNames:
    """Return the axes of the mesh over which training synchronises batch norm, if it does."""
    if not config.sync_batch_norm:
        return None
    return WITHIN_GROUP if config.sync_batch_norm_group else AXES


def model_of(config: ConfigDict, classes: int, *, axis_name: AxisNames) -> nn.Module:
    """Return the model, whose batch norm is synchronised over these axes of the mesh, if any."""
    return models.make(
        config.model.name,
        classes=classes,
        depth=config.model.depth,
        width=config.model.width,
        batch_norm_momentum=config.model.batch_norm_momentum,
        dtype=jnp.dtype(config.dtype),
        precision=jax.lax.Precision(config.precision),
        axis_name=axis_name,
    )


def check_model(config: ConfigDict, image_shape: tuple[int, ...], classes: int) -> None:
    """Check that a plug-in's model maps such images to such logits; nothing is computed.

    Raises:
      PluginError: It does not, or fails.
    """
    name = config.model.name
    if plugins.is_plugin(name):
        model = model_of(config, classes, axis_name=None)
        guarded = plugins.guarded(models.logits_of, f"model.name={name}")
        guarded(name, model, image_shape, classes=classes)


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optimiser of every generation."""
    settings = config.optimizer
    rate = optimizers.learning_rate_schedule(
        settings.learning_rate,
        steps=config.steps,
        level=settings.cosine_level,
        warm_up=settings.warm_up,
        drops=settings.drops,
    )
    taken = {name: settings[name] for name in optimizers.parameters(settings.name)}
    return optimizers.OPTIMIZERS[settings.name](rate, **taken)


def creator(
    config: ConfigDict,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    classes: int,
    examples: int,
) -> Callable[[Key[Array, ""]], TrainState]:
    """Return the function that makes a generation's first state from a key.

    Args:
      config: of the run.
      model: from `model_of`.
      image_shape: height, width and channels.
      classes: how many.
      examples: how many the unlabeled stream has.
    """
    return partial(
        train_state.create,
        model=model,
        optimizer=optimizer_of(config),
        image_shape=image_shape,
        classes=classes,
        refined_examples=0 if refinement_of(config) is None else examples,
    )


def train_step_of(config: ConfigDict, model: nn.Module, mesh: Mesh) -> TrainStep:
    """Return the step of every generation, mapped over the mesh."""
    return make_train_step(
        loss_of(config),
        model,
        optimizer_of(config),
        mesh,
        steps=config.steps,
        alignment_target=config.alignment.target,
        align=alignment_of(config),
        refinement=refinement_of(config),
        ema_decay=config.ema_decay,
        ema_batch_norm=config.ema_batch_norm,
        augmentation=Augmentation(**config.augment),
        accumulation=config.accumulation,
    )


def loss_of(config: ConfigDict) -> Callable[[StepInputs], Loss]:
    """Return the loss with its hyper-parameters."""
    algorithm = algorithms.named(config.method)
    values = {name: config[name] for name in algorithm.hyper_parameters}
    loss: Callable[[StepInputs], Loss] = partial(algorithm.loss, **values)
    if not plugins.is_plugin(config.method):
        return loss
    name = f"method={config.method}"
    guarded = plugins.guarded(loss, name)

    def checked(inputs: StepInputs) -> Loss:
        found = guarded(inputs)
        for wrong in algorithms.wrong_results(
            found, classes=len(inputs.class_weights), unlabeled=len(inputs.unlabeled)
        ):
            raise PluginError(f"{name} {wrong}")
        if found.guesses is None and refinement_of(config) is not None:
            raise PluginError(
                f"{name} returns a Loss without guesses, which rebalance={config.rebalance} refines"
            )
        return found

    return checked


def hook_of(config: ConfigDict, name: str) -> Callable[..., Any] | None:
    """Return a hook of the config's rebalancing with its hyper-parameters; None if it has none.

    Args:
      config: validated.
      name: one of `rebalancing.protocol.HOOKS`.
    """
    for part in parts(config.rebalance):
        way = named(part)
        hook = getattr(way, name)
        if hook is not None:
            values = by_name(config)
            taken = {keyword: values[field] for keyword, field in way.keywords(name).items()}
            bound = partial(hook, **taken)
            own = plugins.is_plugin(part)
            return plugins.guarded(bound, f"rebalance={part}: {name}") if own else bound
    return None


def refinement_of(config: ConfigDict) -> darp.Refinement | None:
    """Return when pseudo-labels are refined together; None where they are not.

    Raises:
      PluginError: A plug-in's hook fails, or returns something else.
    """
    refinement = hook_of(config, "refinement")
    if refinement is None:
        return None
    when = refinement(config.steps)
    if not isinstance(when, darp.Refinement):
        raise PluginError(
            f"rebalance={config.rebalance}: refinement must return a crest_jax.rebalancing.darp."
            f"Refinement, not {shown(when)}"
        )
    return when


def schedule_of(config: ConfigDict) -> Schedule:
    """Return how long each generation trains, and how often it evaluates and saves."""
    return Schedule(config.steps, config.eval_every, config.checkpoint_every)


def steps_at_once(config: ConfigDict, image_shape: tuple[int, ...], *, devices: int) -> int:
    """Return how many steps the devices are sent together.

    It is the largest number that the config allows, that a device's memory should hold, and that
    divides the steps from one evaluation or checkpoint to the next. On a CPU with XLA's own
    convolutions, which take ten times as long within a loop, it is 1.
    """
    if jax.default_backend() == "cpu" and library.kernels() is None:
        return 1
    stops = [each for each in (config.eval_every, config.checkpoint_every) if each < config.steps]
    between = math.gcd(config.steps, *stops)
    images = config.batch_size * (1 + config.unlabeled_ratio) // devices
    fitting = max(_MOST_BYTES_AT_ONCE // (images * math.prod(image_shape)), 1)
    most = min(between, config.steps_at_once, fitting)
    return next(steps for steps in range(most, 0, -1) if between % steps == 0)


def who_computes(config: ConfigDict) -> str | None:
    """Say who computes convolutions and norms on a CPU, and what would be faster there."""
    if jax.default_backend() != "cpu":
        return None
    kernels, said = library.kernels(), library.describe()
    if kernels and kernels.tiles and (config.dtype, config.precision) == ("float32", "default"):
        said += "; --config.dtype=bfloat16 would be faster here"
    return said


# Random numbers


def generation_keys(config: ConfigDict, generation: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Return the seeds of a generation's initial weights, and of its steps."""
    of_fold = jax.random.fold_in(jax.random.key(config.seed), config.fold)
    init_key, step_key = jax.random.split(jax.random.fold_in(of_fold, generation))
    if config.reseed:
        step_key = jax.random.fold_in(step_key, config.reseed)
    return init_key, step_key


def seed_of_streams(config: ConfigDict) -> int:
    """Return the seed of the order of examples, of 63 bits."""
    numbers = np.random.SeedSequence([config.seed, config.fold, config.reseed])
    return int(numbers.generate_state(1, np.uint64)[0] >> np.uint64(1))


def streams_of(config: ConfigDict, channels: int) -> Streams:
    """Return how the streams are read, whose images have this many channels."""
    return Streams(
        batch_size=config.batch_size,
        unlabeled_ratio=config.unlabeled_ratio,
        seed=seed_of_streams(config),
        view=view_of(config.data, channels),
        unlabeled=unlabeled_splits(config),
        from_files=config.data.stream,
        lanes=config.data.lanes,
        window=config.data.window,
        sampling_probabilities=partial(sampling_probabilities, config),
    )


def unlabeled_splits(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the splits that the unlabeled stream is made of."""
    return ("labeled", "unlabeled") if config.data.labeled_in_unlabeled else ("unlabeled",)


def unlabeled_examples(config: ConfigDict, splits: Splits) -> int:
    """Return the number of examples of the unlabeled stream."""
    return sum(getattr(splits, name).examples for name in unlabeled_splits(config))


# Class distributions, and what follows from them


def class_distribution(config: ConfigDict, splits: Splits) -> Float[np.ndarray, " classes"]:
    """Return p(y) of the original labeled set: the long tail's formula, or its counts."""
    if config.class_distribution == "ideal":
        return long_tail.ideal_distribution(config.long_tail.gamma, len(splits.class_names))
    return splits.labeled_distribution


def target_distribution(
    config: ConfigDict, splits: Splits, estimate: Sequence[float] | None
) -> Float[np.ndarray, " classes"]:
    """Return p(y) of the unlabeled stream, which the pseudo-labels' classes are held against.

    It is that of the labeled set (paper section 3.3), as `class_distribution` has it. Where that of
    the unlabeled images is given, or estimated from the model, the labeled images in the stream,
    whose classes are known, are counted beside them.

    Args:
      config: names where the distribution comes from.
      splits: of the run.
      estimate: the latest one of the unlabeled split; None before the first, when the labeled set's
        distribution stands in.

    Raises:
      ConfigError: The distribution that is given is not one of these classes.
    """
    match config.unlabeled_distribution.source:
        case "given":
            given = of_each_class(
                "unlabeled_distribution.given",
                config.unlabeled_distribution.given,
                splits.class_names,
            )
            unlabeled = shares(given)
        case "predicted" if estimate is not None:
            unlabeled = np.asarray(estimate)
        case _:
            return class_distribution(config, splits)
    if not config.data.labeled_in_unlabeled:
        return unlabeled
    return shares(splits.labeled.per_class + splits.unlabeled.examples * unlabeled)


def sampling_rates(config: ConfigDict, splits: Splits) -> Float[np.ndarray, " classes"]:
    """Return mu, the part of the examples predicted as each class that a generation selects.

    Raises:
      ConfigError: The rates that are given are not of these classes.
      PluginError: A plug-in's hook fails, or returns no such rates.
    """
    rates_of = hook_of(config, "sampling_rates")
    assert rates_of is not None  # what trains in several generations has this hook
    p = class_distribution(config, splits)
    rates = _numbers(config, "sampling_rates", rates_of(p, splits.class_names))
    if rates.shape != p.shape or not ((rates >= 0) & (rates <= 1)).all():
        raise PluginError(
            f"rebalance={config.rebalance}: sampling_rates must return a rate in [0, 1] for each "
            f"of {len(p)} classes, not {shown(rates.tolist())}"
        )
    return rates


def temperature_of(config: ConfigDict, generation: int) -> float | None:
    """Return the temperature of the alignment target in a generation; None where it has none."""
    match config.alignment.target:
        case "progressive":
            return progressive_temperature(generation, config.generations, config.crest.t_min)
        case "constant":
            return config.alignment.t
    return None


def class_weights(
    config: ConfigDict, class_names: Sequence[str], per_class: Int[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Return the weights of the classes in the labeled loss, ones unless these are rebalanced.

    Raises:
      PluginError: A plug-in's hook fails, or returns no such weights.
    """
    weights_of = hook_of(config, "class_weights")
    if weights_of is None:
        return np.ones(len(per_class))
    weights = _numbers(config, "class_weights", weights_of(per_class, class_names))
    if (
        weights.shape != per_class.shape
        or not ((weights >= 0) & np.isfinite(weights)).all()
        or not np.isclose(weights.mean(), 1, rtol=_TOLERANCE)
    ):
        raise PluginError(
            f"rebalance={config.rebalance}: class_weights must return a finite weight of at least "
            f"0 for each of {len(per_class)} classes, with a mean of 1, not "
            f"{shown(weights.tolist())}"
        )
    return weights


def sampling_probabilities(
    config: ConfigDict, labels: Int[np.ndarray, " labeled"], class_names: Sequence[str]
) -> Float[np.ndarray, " labeled"] | None:
    """Return the probability of drawing each labeled example; None where all are drawn alike.

    Raises:
      DataError: A class has no example to draw.
      PluginError: A plug-in's hook fails, or returns no such probabilities.
    """
    probabilities_of = hook_of(config, "sampling_probabilities")
    if probabilities_of is None:
        return None
    probabilities = _numbers(
        config, "sampling_probabilities", probabilities_of(labels, class_names)
    )
    if (
        probabilities.shape != labels.shape
        or not (probabilities >= 0).all()
        or not np.isclose(probabilities.sum(), 1)
    ):
        raise PluginError(
            f"rebalance={config.rebalance}: sampling_probabilities must return a probability for "
            f"each of {len(labels)} labeled examples, with a sum of 1, not numbers of shape "
            f"{probabilities.shape} with a sum of {probabilities.sum():g}"
            f"{', of which some are below 0' if (probabilities < 0).any() else ''}"
        )
    return probabilities


def alignment_of(config: ConfigDict) -> Align:
    """Return the function that aligns pseudo-labels, where `alignment.target` is not none."""
    own = hook_of(config, "align")
    if own is None:
        return distribution_alignment.align

    def checked(probs: Array, target: Array, model_distribution: Array) -> Array:
        aligned = own(probs, target, model_distribution)
        if jnp.shape(aligned) != probs.shape:
            raise PluginError(
                f"rebalance={config.rebalance}: align must return an array of shape {probs.shape}, "
                f"not of shape {jnp.shape(aligned)}"
            )
        return aligned

    return checked


def adjustment(per_class: Sequence[int], tau: float) -> Float[np.ndarray, " classes"]:
    """Return the offsets of logit adjustment by what a generation trains on."""
    return logit_adjustment.adjustment(shares(per_class), tau)


def shares(
    of_each: Sequence[int | float] | Shaped[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    """Return each part's share of the whole."""
    return np.asarray(of_each) / np.sum(of_each)


def _numbers(config: ConfigDict, hook: str, found: Any) -> Float[np.ndarray, "..."]:
    """Return what a hook returned as an array.

    Raises:
      PluginError: It is none of numbers.
    """
    try:
        return np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"rebalance={config.rebalance}: {hook} must return numbers, not {shown(found)}"
        ) from error
