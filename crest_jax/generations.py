"""The outer driver: train, pseudo-label, select, rewrite the labeled set, train again.

A *generation* is one full training of a fresh model (paper section 3.3, Fig. 3). Only the labeled
set passes from one generation to the next. Every stage ends with a file that says that its result
is whole, and is skipped when that is there: so the same command continues a run from wherever it
was stopped.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from etils.epath import Path
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped, UInt8
from ml_collections import ConfigDict

from crest_jax import (
    checkpoints,
    distributed,
    evaluate,
    files,
    report,
    results,
    train_state,
    workdir,
)
from crest_jax.algorithms import ALGORITHMS
from crest_jax.augment import Augmentation
from crest_jax.cpu import library
from crest_jax.data import decode, long_tail, pipeline, pseudo_labels, records, sources, stream
from crest_jax.data import splits as splits_lib
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.sources import UNKNOWN, Example
from crest_jax.data.splits import Split, Splits
from crest_jax.errors import ConfigError, DataError, Preempted, WorkdirError
from crest_jax.models import MODELS
from crest_jax.rebalancing import (
    class_balanced_loss,
    crest,
    darp,
    label_shift,
    logit_adjustment,
    parts,
    resampling,
)
from crest_jax.rebalancing.distribution_alignment import progressive_temperature
from crest_jax.report import text
from crest_jax.train import METRICS, Schedule, keep_metrics, train
from crest_jax.train_state import TrainState
from crest_jax.train_step import DeviceBatch, Generation, TrainStep, in_a_row, make_train_step
from crest_jax.workdir import generation_folder

RESULT = "result.json"
# The estimate of the unlabeled split's class distribution, of an evaluation or of a generation.
UNLABELED_DISTRIBUTION = "unlabeled_distribution"
# Of the batches that a device is sent together.
_MOST_BYTES_AT_ONCE = 64 << 20

# What a model says of images, as they are stored.
Predictor = Callable[[UInt8[np.ndarray, "images height width channels"]], evaluate.Predictions]


class Program(NamedTuple):
    """What is compiled once and serves every generation."""

    mesh: Mesh
    # This host's devices, with which it evaluates and scores for itself.
    local_mesh: Mesh
    new_state: Callable[[Key[Array, ""]], TrainState]  # replicated over the mesh
    train_steps: TrainStep  # several in a row, `at_once` where none was left half done
    at_once: int
    predict: evaluate.Predict


def run(config: ConfigDict, folder: Path, *, pictures: bool = True) -> dict[str, Any]:
    """Runs or continues an experiment, all its generations.

    Args:
      config: validated.
      folder: the run's folder, already claimed for this config.
      pictures: whether its page shows some of the images.

    Returns:
      What results.json holds.
    """
    checkpoints.check(folder)
    distributed.together(lambda: splits_lib.prepare(config, folder / "splits"), first_only=True)
    splits = distributed.together(partial(splits_lib.load, config.data, folder / "splits"))
    sizes = sizes_of(config, splits)
    data = distributed.first_says(lambda: results.data_of(workdir.read_config(folder)))
    distributed.say(text.splits_line(sizes, splits.class_names))
    if computing := who_computes(config):
        distributed.say(computing)
    program = build(config, splits)
    finished = distributed.first_says(
        lambda: [
            is_finished(folder, generation, say=_say_made_anew)
            for generation in range(config.generations)
        ]
    )
    found: list[dict[str, Any]] = []
    for generation, is_done in enumerate(finished):
        if is_done:
            path = generation_folder(folder, generation) / RESULT
            found.append(
                distributed.first_says(
                    partial(results.read_generation, path, len(splits.class_names))
                )
            )
        else:
            found.append(run_generation(config, folder, generation, splits, program))
        # Where the next one was finished before, they are written with that.
        if not any(finished[generation + 1 : generation + 2]):
            summary = results.of_run(config, data, splits.class_names, sizes, found)
            distributed.together(
                partial(_write_results, folder, summary, pictures), first_only=True
            )
        distributed.say(text.generation_table(found[-1], splits.class_names))
    if config.generations > 1:
        distributed.say(text.results_table(found, splits.class_names))
        distributed.say(text.self_training_lines(found, splits.class_names))
    return summary


def sizes_of(config: ConfigDict, splits: Splits) -> dict[str, Any]:
    """How many `images` each split has, and `per_class`, or None where that is not known.

    Of the test images, also whether they are `held_out` of those that were given as labeled.
    """
    sizes = {
        name: {
            "images": split.examples,
            "per_class": None if split.per_class is None else split.per_class.tolist(),
        }
        for name, split in splits._asdict().items()
        if isinstance(split, Split)
    }
    sizes["test"]["held_out"] = sources.is_held_out(config.data)
    return sizes


def _write_results(folder: Path, summary: Mapping[str, Any], pictures: bool) -> None:
    """A page that cannot be written is no reason to stop training."""
    files.write_json(folder / results.RESULTS, summary)
    try:
        report.write(folder / report.REPORT, [folder], pictures=pictures)
    except Preempted:
        raise
    except WorkdirError as error:
        logging.warning("%s", error)
    except Exception:
        logging.exception("%s could not be written", folder / report.REPORT)


def build(config: ConfigDict, splits: Splits) -> Program:
    """Builds model, step and scoring pass for the devices at hand.

    Raises:
      DataError: the images have neither 1 nor 3 channels.
      ConfigError: the unlabeled distribution or the sampling rates that are given are not of these
        classes.
    """
    target_distribution(config, splits, None)
    if config.crest.rates:
        sampling_rates(config, splits)
    mesh = distributed.data_mesh()
    classes = len(splits.class_names)
    if splits.image_shape[-1] not in (1, 3):
        raise DataError(
            f"images of shape {splits.image_shape} are neither grey (1 channel) nor RGB (3)"
        )
    model = model_of(
        config, classes, axis_name=distributed.AXIS if config.sync_batch_norm else None
    )
    algorithm = ALGORITHMS[config.method]
    refines = "darp" in parts(config.rebalance)
    train_step = make_train_step(
        partial(algorithm.loss, **{name: config[name] for name in algorithm.hyper_parameters}),
        model,
        optimizer_of(config),
        mesh,
        steps=config.steps,
        alignment_target=config.alignment.target,
        refinement=_refinement(config) if refines else None,
        ema_decay=config.ema_decay,
        ema_batch_norm=config.ema_batch_norm,
        augmentation=Augmentation(**config.augment),
        accumulation=config.accumulation,
    )
    create = jax.jit(
        creator(config, model, splits.image_shape, classes, unlabeled_stream(config, splits)[0])
    )
    local_mesh = distributed.local_mesh()
    return Program(
        mesh,
        local_mesh,
        lambda key: distributed.replicate(create(key), mesh),
        in_a_row(train_step),
        steps_at_once(config, splits.image_shape, devices=mesh.size),
        evaluate.make_predict(model, local_mesh, batch_size=config.eval_batch_size),
    )


def model_of(config: ConfigDict, classes: int, *, axis_name: str | None) -> nn.Module:
    """Returns the model, whose batch norm is synchronised over the axis if there is one."""
    return MODELS[config.model.name](
        classes=classes,
        depth=config.model.depth,
        width=config.model.width,
        batch_norm_momentum=config.model.batch_norm_momentum,
        dtype=jnp.dtype(config.dtype),
        precision=jax.lax.Precision(config.precision),
        axis_name=axis_name,
    )


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimiser of every generation."""
    return train_state.make_optimizer(
        train_state.learning_rate_schedule(
            config.optimizer.learning_rate,
            steps=config.steps,
            level=config.optimizer.cosine_level,
            warm_up=config.optimizer.warm_up,
            drops=config.optimizer.drops,
        ),
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )


def creator(
    config: ConfigDict,
    model: nn.Module,
    image_shape: tuple[int, ...],
    classes: int,
    examples: int,
) -> Callable[[Key[Array, ""]], TrainState]:
    """Returns what makes a generation's first state from a key.

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
        image_shape=tuple(image_shape),
        classes=classes,
        refined_examples=examples if "darp" in parts(config.rebalance) else 0,
    )


def run_generation(
    config: ConfigDict, folder: Path, generation: int, splits: Splits, program: Program
) -> dict[str, Any]:
    """Runs what is left of one generation, and returns its result.json."""
    here = generation_folder(folder, generation)
    # What is streamed is too much to be read just for this.
    check = records.shards if config.data.stream else records.check
    if not distributed.first_says(partial(_is_whole, here / "labeled", check)):
        rewrite_labeled(config, folder, generation, splits)
    state = train_generation(config, here, generation, splits, program)
    if not distributed.first_says(partial(_is_whole, here / "pseudo_labels", pseudo_labels.check)):
        scored = score_unlabeled(config, generation, state, splits, program)
        write_predictions(here / "pseudo_labels", scored)
    if not distributed.first_says(
        partial(_is_whole, here / "test_predictions", pseudo_labels.check)
    ):
        write_predictions(here / "test_predictions", predict_test(state, splits, program))

    history = distributed.first_says(partial(keep_metrics, here / METRICS, up_to=config.steps))
    for line in history:
        results.check_classes(line, len(splits.class_names), here / METRICS)
    summary = results.summarize_evaluations(history)
    images = config.steps * config.batch_size * (1 + config.unlabeled_ratio)
    per_class = labeled_per_class(here)
    result = {
        "generation": generation,
        "reseed": config.reseed,
        "environment": workdir.environment(),
        "temperature": temperature_of(config, generation),
        **summary,
        "images_per_second": images / max(summary["seconds"], 1e-9),
        "labeled_per_class": per_class,
        "logit_adjustment": {
            "tau": config.logit_adjustment_tau,
            "class_distribution": shares(per_class).tolist(),
        },
        "pseudo_labels": results.summarize_pseudo_labels(
            *count_pseudo_labels(here / "pseudo_labels", len(splits.class_names))
        ),
    }
    if splits.unlabeled.examples:
        predicted = np.array(result["pseudo_labels"]["predicted"])
        result[UNLABELED_DISTRIBUTION] = describe_unlabeled(
            config, generation, predicted, state, splits, program
        )
    distributed.together(lambda: files.write_json(here / RESULT, result), first_only=True)
    return result


def write_predictions(folder: Path, scored: PseudoLabels) -> None:
    """Writes what this host has scored, and waits for the others."""
    host, hosts = jax.process_index(), jax.process_count()
    distributed.together(partial(files.begin_folder, folder), first_only=True)
    written = distributed.gather_json(
        distributed.together(
            lambda: pseudo_labels.write_shard(folder, scored, host=host, hosts=hosts)
        )
    )
    distributed.together(lambda: pseudo_labels.finish(folder, written), first_only=True)


def count_pseudo_labels(folder: Path, classes: int) -> Int[np.ndarray, "2 truths classes"]:
    """Counts all pseudo-labels, and the selected ones, by true class (row) and label (column).

    A last row is of those whose true class is not known.
    """

    def count() -> Int[np.ndarray, "2 truths classes"]:
        counts = np.zeros((2, classes + 1, classes), np.int64)
        for part in pseudo_labels.parts(
            folder, host=jax.process_index(), hosts=jax.process_count()
        ):
            records.check_labels(part.truth, range(UNKNOWN, classes), str(folder))
            records.check_labels(part.labels, range(classes), str(folder))
            truth = np.where(part.truth == UNKNOWN, classes, part.truth)
            np.add.at(counts[0], (truth, part.labels), 1)
            np.add.at(counts[1], (truth[part.selected], part.labels[part.selected]), 1)
        return counts

    return distributed.total(distributed.together(count))


def rewrite_labeled(config: ConfigDict, folder: Path, generation: int, splits: Splits) -> None:
    """Writes what a generation trains on: the ORIGINAL labeled set and the latest selection.

    `X' = X u S` (section 3.3): selections of earlier generations do not accumulate. Every host
    writes shards of its own, and reads no more than what they are made of.
    """
    original = splits.labeled.examples
    selection = generation_folder(folder, generation - 1) / "pseudo_labels" if generation else None
    chosen = 0
    if selection:
        chosen = distributed.first_says(partial(pseudo_labels.selected_count, selection))
    writer = records.Writer(
        generation_folder(folder, generation) / "labeled",
        examples=original + chosen,
        class_names=splits.class_names,
        shards=config.data.shards,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )

    def write_shards() -> None:
        first, last = writer.rows.start, writer.rows.stop
        known = range(first, min(last, original))
        for example in records.read(folder / "splits" / "labeled", known):
            writer.add(example)
        if selection and last > original:
            numbers = range(max(first - original, 0), last - original)
            for example in _relabeled(folder / "splits" / "unlabeled", selection, numbers):
                writer.add(example)
        writer.close()

    distributed.together(writer.begin, first_only=True)
    distributed.together(write_shards)
    written = [entry for of_host in distributed.gather_json(writer.written) for entry in of_host]
    distributed.together(lambda: writer.finish(written), first_only=True)


def _relabeled(unlabeled: Path, selection: Path, numbers: range) -> Iterator[Example]:
    """Selected examples with their pseudo-labels.

    Args:
      unlabeled: records of the unlabeled split.
      selection: pseudo-labels of the generation before.
      numbers: which of the selected ones, in their order.

    Raises:
      DataError: something is missing or damaged, or one is not of the other.
    """
    rows, ids, labels = pseudo_labels.selected(selection, numbers)
    if not len(rows):
        return
    place_of = {row: place for place, row in enumerate(rows.tolist())}
    span = range(int(rows[0]), int(rows[-1]) + 1)
    for row, example in zip(span, records.read(unlabeled, span), strict=False):
        place = place_of.get(row)
        if place is None:
            continue
        if example.id.encode() != ids[place]:
            raise DataError(
                f"{selection} is not of {unlabeled}: its example {row} is {ids[place]!r}, "
                f"not {example.id}; delete it and run again to score anew"
            )
        yield example._replace(label=int(labels[place]))


def train_generation(
    config: ConfigDict, here: Path, generation: int, splits: Splits, program: Program
) -> TrainState:
    """Trains a fresh model on `here`/labeled and all images, to the last step."""
    held_out = {"test": splits.test}
    if splits.validation.examples:
        held_out["validation"] = splits.validation
    rebalance = parts(config.rebalance)
    init_key, step_key = generation_keys(config, generation)
    per_class = labeled_per_class(here)

    def constants(evaluated: Mapping[str, Any] | None) -> Generation:
        if evaluated is not None:
            results.check_classes(evaluated, len(splits.class_names), here / METRICS)
        temperature = temperature_of(config, generation)
        weights = np.ones(len(splits.class_names))
        if "cb" in rebalance:
            weights = class_balanced_loss.class_weights(
                np.array(per_class), config.class_balanced_loss.b
            )
        inputs = Generation(
            step_key,
            # Where there is no temperature, the step does not look at it.
            jnp.float32(1.0 if temperature is None else temperature),
            jnp.asarray(target_distribution(config, splits, evaluated), jnp.float32),
            jnp.asarray(weights, jnp.float32),
        )
        return distributed.replicate(inputs, program.mesh)

    batches_from = batches_of(config, here, generation, splits)

    def batches(start: int) -> Iterator[DeviceBatch]:
        following = batches_from(start=start)
        # A run that was stopped elsewhere first comes back to where it evaluates and saves.
        together = program.at_once - start % program.at_once
        while several := list(itertools.islice(following, together)):
            stacked = DeviceBatch(*map(np.stack, zip(*several, strict=True)))
            yield distributed.split(stacked, program.mesh, axis=1)
            together = program.at_once

    adjustment = logit_adjustment.adjustment(shares(per_class), config.logit_adjustment_tau)

    def evaluation(state: TrainState) -> dict[str, Any]:
        weights = {"ema": state.ema_weights, "raw": state.weights}
        models = {name: predictor(each, program, adjustment) for name, each in weights.items()}
        estimated = {}
        if config.unlabeled_distribution.source == "predicted":
            estimated = {UNLABELED_DISTRIBUTION: estimate_unlabeled(state, splits, program)}
        summaries = {}
        for name, split in held_out.items():
            _, labels, predictions = _over_share(split, models)
            summaries[name] = {
                weights: evaluate.summarize(labels, predicted, len(splits.class_names))
                for weights, predicted in predictions.items()
            }
        return estimated | summaries

    return train(
        program.new_state(init_key),
        program.train_steps,
        batches,
        constants,
        evaluation,
        folder=here,
        schedule=schedule_of(config),
        title=f"generation {generation + 1} of {config.generations}",
    )


def batches_of(
    config: ConfigDict, here: Path, generation: int, splits: Splits
) -> Callable[[int], Iterator[pipeline.Batch]]:
    """Returns what gives this host's part of a generation's batches, from a step on.

    The unlabeled stream is all training images, labeled ones too unless the config leaves them out,
    in every generation.
    """
    shared = {
        "batch_size": config.batch_size,
        "unlabeled_ratio": config.unlabeled_ratio,
        "seed": seed_of_streams(config),
        "generation": generation,
        "stop": config.steps,
        "process": jax.process_index(),
        "processes": jax.process_count(),
    }
    view = decode.view_of(config.data, splits.image_shape[-1])
    of_run = here.parent / "splits"
    names = unlabeled_stream(config, splits)[1]
    of_stream = [of_run / name for name in names]
    if config.data.stream:
        return partial(
            stream.batches,
            [here / "labeled"],
            of_stream,
            stream.Streaming(view, config.data.lanes, config.data.window),
            **shared,
        )
    if view.crop == "random":
        labeled, unlabeled = distributed.together(
            lambda: (
                records.load_encoded([here / "labeled"], view),
                records.load_encoded(of_stream, view),
            )
        )
    else:
        labeled = distributed.together(partial(records.load, here / "labeled", view))
        unlabeled, *more = (getattr(splits, name).images for name in names)
        for each in more:
            unlabeled = unlabeled + each
    probabilities = None
    if "rs" in parts(config.rebalance):
        probabilities = resampling.sampling_probabilities(labeled.labels, splits.class_names)
    return partial(
        pipeline.batches, labeled, unlabeled, labeled_probabilities=probabilities, **shared
    )


def unlabeled_stream(config: ConfigDict, splits: Splits) -> tuple[int, list[str]]:
    """Return how many examples the unlabeled stream has, and the splits that these are of."""
    names = ["labeled", "unlabeled"] if config.data.labeled_in_unlabeled else ["unlabeled"]
    return sum(getattr(splits, name).examples for name in names), names


def labeled_per_class(here: Path) -> list[int]:
    """Return how many examples of each class a generation trains on."""
    manifest = distributed.first_says(partial(records.read_manifest, here / "labeled"))
    return manifest["examples_per_class"]


def score_unlabeled(
    config: ConfigDict, generation: int, state: TrainState, splits: Splits, program: Program
) -> PseudoLabels:
    """Scores this host's part of the unlabeled split with the EMA model, and selects from it.

    Without augmentation, and without alignment. The last generation selects nothing.
    """
    ids, truth, predictions = _over_share(splits.unlabeled, {"ema": _ema(state, splits, program)})
    labels, confidence, _ = predictions["ema"]
    selected = np.zeros(len(labels), bool)
    if generation + 1 < config.generations:
        (selected,) = crest.select(
            [crest.Scores(labels, confidence)],
            sampling_rates(config, splits),
            all_gather=distributed.all_gather,
            host=jax.process_index(),
        )
    return PseudoLabels(ids, labels, confidence, selected, truth)


def predict_test(state: TrainState, splits: Splits, program: Program) -> PseudoLabels:
    """Scores this host's part of the test split with the EMA model, for reports to look at."""
    ids, truth, predictions = _over_share(splits.test, {"ema": _ema(state, splits, program)})
    labels, confidence, _ = predictions["ema"]
    return PseudoLabels(ids, labels, confidence, np.zeros(len(labels), bool), truth)


def sampling_rates(config: ConfigDict, splits: Splits) -> Float[np.ndarray, " classes"]:
    """mu: which part of the examples predicted as each class a generation selects.

    Raises:
      ConfigError: the rates that are given are not of these classes.
    """
    if not config.crest.rates:
        return crest.sampling_rates(class_distribution(config, splits), config.crest.alpha)
    return _of_each_class("crest.rates", config.crest.rates, splits.class_names)


def class_distribution(config: ConfigDict, splits: Splits) -> Float[np.ndarray, " classes"]:
    """Return p(y) of the original labeled set: the long tail's formula, or its counts."""
    if config.class_distribution == "ideal":
        return long_tail.ideal_distribution(config.long_tail.gamma, len(splits.class_names))
    return splits.labeled_distribution


def schedule_of(config: ConfigDict) -> Schedule:
    """How long each generation trains, and how often it looks up."""
    return Schedule(config.steps, config.eval_every, config.checkpoint_every)


def steps_at_once(config: ConfigDict, image_shape: tuple[int, ...], *, devices: int) -> int:
    """How many steps the devices are sent together.

    As many as the config allows and a device's memory should hold, of which whole multiples make
    up the steps from one evaluation or checkpoint to the next. One on a CPU with XLA's own
    convolutions, which take ten times as long within a loop.
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
    kernels, said = library.kernels(), library.whose()
    if kernels and kernels.tiles and (config.dtype, config.precision) == ("float32", "default"):
        said += "; --config.dtype=bfloat16 would be faster here"
    return said


def temperature_of(config: ConfigDict, generation: int) -> float | None:
    """Temperature of the alignment target in a generation; None where the target has none."""
    match config.alignment.target:
        case "progressive":
            return progressive_temperature(generation, config.generations, config.crest.t_min)
        case "constant":
            return config.alignment.t
    return None


def target_distribution(
    config: ConfigDict, splits: Splits, evaluated: Mapping[str, Any] | None
) -> Float[np.ndarray, " classes"]:
    """Return p(y) of the unlabeled stream, which the pseudo-labels' classes are held against.

    It is that of the labeled set (paper section 3.3), as `class_distribution` has it. Where that of
    the unlabeled images is given, or estimated from the model, the labeled images in the stream,
    whose classes are known, are counted beside them.

    Args:
      config: names where the distribution is from.
      splits: of the run.
      evaluated: the latest evaluation; None before the first, when an estimate is not there yet and
        the labeled set's distribution stands in.

    Raises:
      ConfigError: the distribution that is given is not one of these classes.
    """
    match config.unlabeled_distribution.source:
        case "given":
            given = _of_each_class(
                "unlabeled_distribution.given",
                config.unlabeled_distribution.given,
                splits.class_names,
            )
            unlabeled = shares(given)
        case "predicted" if evaluated is not None:
            unlabeled = np.asarray(evaluated[UNLABELED_DISTRIBUTION])
        case _:
            return class_distribution(config, splits)
    if not config.data.labeled_in_unlabeled:
        return unlabeled
    return shares(splits.labeled.per_class + splits.unlabeled.examples * unlabeled)


def shares(
    of_each: Sequence[int | float] | Shaped[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    """Return what part of the whole each is."""
    return np.asarray(of_each) / np.sum(of_each)


def _of_each_class(
    field: str, values: Sequence[int | float], class_names: Sequence[str]
) -> Float[np.ndarray, " classes"]:
    """What a config field gives for each class, whose number is known only with the data."""
    if len(values) != len(class_names):
        raise ConfigError(
            f"{field} has {len(values)} entries for {len(class_names)} classes: give one for each "
            f"of {', '.join(class_names)}"
        )
    return np.asarray(values, np.float64)


def estimate_unlabeled(state: TrainState, splits: Splits, program: Program) -> list[float]:
    """Estimate the unlabeled split's class distribution from what the EMA model says of it."""
    classes = len(splits.class_names)
    _, labels = _labels_by_ema(splits.unlabeled, state, splits, program)
    counts = distributed.total(np.bincount(labels, minlength=classes))
    confusion = known_errors(state, splits, program)
    return label_shift.estimate(confusion, counts, splits.labeled_distribution).tolist()


def describe_unlabeled(
    config: ConfigDict,
    generation: int,
    predicted: Int[np.ndarray, " classes"],
    state: TrainState,
    splits: Splits,
    program: Program,
) -> dict[str, Any]:
    """The estimate at the end of a generation, and how sure it is, ready for JSON.

    Args:
      config: of the run.
      generation: seeds the draws that the intervals are of, together with the run's seed.
      predicted: the unlabeled examples by pseudo-label.
      state: of the generation's last step.
      splits: of the run.
      program: its.
    """
    labeled = splits.labeled_distribution
    confusion = known_errors(state, splits, program)
    return results.summarize_unlabeled(
        label_shift.estimate(confusion, predicted, labeled),
        label_shift.interval(
            confusion, predicted, labeled, seed=[config.seed, generation], level=results.LEVEL
        ),
        labeled,
        known_from=_known(splits)[0],
    )


def known_errors(
    state: TrainState, splits: Splits, program: Program
) -> Int[np.ndarray, "classes classes"]:
    """How the EMA model errs on images whose class is known and that are distributed as labeled."""
    labels, predicted = _labels_by_ema(_known(splits)[1], state, splits, program)
    return distributed.total(evaluate.confusion_matrix(labels, predicted, len(splits.class_names)))


def _known(splits: Splits) -> tuple[str, Split]:
    """The validation split, or where there is none the labeled images, which are trained on."""
    if splits.validation.examples:
        return "validation", splits.validation
    return "labeled", splits.labeled


def _labels_by_ema(
    split: Split, state: TrainState, splits: Splits, program: Program
) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """Classes of this host's part of a split, and what the EMA model takes them for."""
    _, labels, predictions = _over_share(split, {"ema": _ema(state, splits, program)})
    return labels, predictions["ema"].labels


def _ema(state: TrainState, splits: Splits, program: Program) -> Predictor:
    """Return what the EMA model says of images, where nobody looks at adjusted labels."""
    return predictor(state.ema_weights, program, np.zeros(len(splits.class_names)))


def predictor(
    weights: tuple[PyTree, PyTree], program: Program, adjustment: Float[np.ndarray, " classes"]
) -> Predictor:
    """Return what a model says of images.

    Args:
      weights: its parameters and batch statistics.
      program: of the run.
      adjustment: from `logit_adjustment`, for the adjusted labels.
    """
    local = distributed.to_local(weights, program.local_mesh)
    return lambda images: program.predict(*local, images, adjustment)


def _over_share(
    split: Split, models: Mapping[str, Predictor]
) -> tuple[
    Shaped[np.ndarray, " examples"], Int[np.ndarray, " examples"], dict[str, evaluate.Predictions]
]:
    """What models say of this host's part of a split, as `evaluate.over_parts`."""
    share = split.share(jax.process_index(), jax.process_count())
    return distributed.together(lambda: evaluate.over_parts(share, models))


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


def is_finished(
    folder: Path, generation: int, *, say: Callable[[str, Path], None] = lambda what, path: None
) -> bool:
    """Whether a generation's results are there, and what the next one is made from.

    Args:
      folder: the run's.
      generation: from 0.
      say: is given what is wrong with something, and where that is, if it is damaged.

    Raises:
      UnavailableError: something cannot be read at the moment.
    """
    here = generation_folder(folder, generation)
    return (
        (here / RESULT).exists()
        and _is_undamaged(here / RESULT, files.read_json, say)
        and _is_whole(here / "pseudo_labels", pseudo_labels.check, say)
    )


def _say_made_anew(what: str, path: Path) -> None:
    print(f"{what}: {path} is made anew", flush=True)


def _is_whole(
    folder: Path,
    check: Callable[[Path], Any],
    say: Callable[[str, Path], None] = _say_made_anew,
) -> bool:
    """Whether a stage's folder is there, to the last byte."""
    return files.is_whole(folder) and _is_undamaged(folder, check, say)


def _is_undamaged(
    path: Path, check: Callable[[Path], Any], say: Callable[[str, Path], None]
) -> bool:
    try:
        check(path)
    except (DataError, WorkdirError) as error:
        say(error.what, path)
        return False
    return True


def _refinement(config: ConfigDict) -> darp.Schedule:
    return darp.Schedule(
        # Nothing can have been refined before the first step.
        start=max(1, int(config.darp.start * config.steps)),
        every=config.darp.every,
        delta=config.darp.delta,
    )
