"""The outer driver: train, pseudo-label, select, rewrite the labeled set, train again.

A *generation* is one full training of a fresh model (paper section 3.3, Fig. 3). Only the labeled
set passes from one generation to the next. Every stage leaves its result on disk under its final
name when it is whole, and is skipped when that is there: so the same command continues a run from
wherever it was stopped.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from crest_jax import distributed, evaluate, train_state, workdir
from crest_jax.algorithms import ALGORITHMS
from crest_jax.data import long_tail, pipeline, pseudo_labels, records, sources
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.records import Images
from crest_jax.models import MODELS
from crest_jax.rebalancing import crest
from crest_jax.rebalancing.distribution_alignment import progressive_temperature
from crest_jax.report import text
from crest_jax.train import METRICS, Schedule, keep_metrics, train
from crest_jax.train_step import DeviceBatch, Generation, TrainStep, make_train_step

RESULT = "result.json"
RESULTS = "results.json"
# The reported figure is the mean of this many last evaluations (paper section 4.1).
LAST_EVALUATIONS = 5


class Splits(NamedTuple):
    """The splits in memory; what a generation trains on is read anew from its own folder."""

    labeled: Images
    unlabeled: Images
    test: Images
    validation: Images
    class_names: tuple[str, ...]

    @property
    def labeled_counts(self) -> Int[np.ndarray, "classes"]:
        """Size of each class in the original labeled set."""
        return np.bincount(self.labeled.labels, minlength=len(self.class_names))

    @property
    def class_distribution(self) -> Float[np.ndarray, "classes"]:
        """p(y), of the original labeled set."""
        return self.labeled_counts / self.labeled_counts.sum()


class Program(NamedTuple):
    """What is compiled once and serves every generation."""

    mesh: Mesh
    new_state: Any  # key -> TrainState, replicated over the mesh
    train_step: TrainStep
    predict: evaluate.Predict


def run(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Runs or continues an experiment, all its generations.

    Args:
      config: validated.
      folder: the run's folder, already claimed for this config.

    Returns:
      What results.json holds.
    """
    prepare_splits(config, folder / "splits")
    splits = load_splits(folder / "splits")
    program = build(config, splits)
    results = []
    for generation in range(config.generations):
        result = run_generation(config, folder, generation, splits, program)
        results.append(result)
        workdir.write_json(folder / RESULTS, _results(config, splits, results))
        print(text.generation_table(result, splits.class_names), flush=True)
    if config.generations > 1:
        print(text.results_table(results, splits.class_names), flush=True)
    return _results(config, splits, results)


def prepare_splits(config: ConfigDict, folder: Path) -> None:
    """Writes the labeled, unlabeled, validation and test records that are not there yet.

    Raises:
      DataError: the source is not there, or does not fit the config.
    """
    names = ("labeled", "unlabeled", "validation", "test")
    if all((folder / name).exists() for name in names):
        return
    source = sources.load(
        config.data.name, data_dir=config.data.data_dir, download=config.data.download
    )
    labels = source.labels("train")
    sizes = long_tail.class_sizes(
        config.long_tail.n_max, config.long_tail.gamma, len(source.class_names)
    )
    split = long_tail.split(
        labels,
        sizes,
        beta=config.long_tail.beta,
        fold=config.fold,
        validation_fraction=config.data.validation_fraction,
        class_names=source.class_names,
    )
    member_of = {int(row): name for name, rows in split._asdict().items() for row in rows}
    members: dict[str, list[sources.Example]] = {name: [] for name in split._fields}
    for row, example in enumerate(source.examples("train")):
        if row in member_of:
            members[member_of[row]].append(example)
    members["test"] = list(source.examples("test"))
    for name in names:
        if not (folder / name).exists():
            records.write(
                folder / name,
                members[name],
                class_names=source.class_names,
                shards=config.data.shards,
            )


def load_splits(folder: Path) -> Splits:
    """Reads what `prepare_splits` wrote.

    Raises:
      DataError: something is missing or damaged.
    """
    class_names = tuple(records.read_manifest(folder / "labeled")["class_names"])
    names = ("labeled", "unlabeled", "test", "validation")
    return Splits(*(records.load(folder / name) for name in names), class_names)


def build(config: ConfigDict, splits: Splits) -> Program:
    """Builds model, step and scoring pass for the devices at hand."""
    mesh = distributed.data_mesh()
    classes = len(splits.class_names)
    model = MODELS[config.model.name](
        classes=classes,
        depth=config.model.depth,
        width=config.model.width,
        batch_norm_momentum=config.model.batch_norm_momentum,
        dtype=jnp.dtype(config.dtype),
        axis_name=distributed.AXIS if config.sync_batch_norm else None,
    )
    optimizer = train_state.make_optimizer(
        train_state.cosine_schedule(
            config.optimizer.learning_rate,
            steps=config.steps,
            level=config.optimizer.cosine_level,
        ),
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    algorithm = ALGORITHMS[config.method]
    train_step = make_train_step(
        partial(algorithm.loss, **{name: config[name] for name in algorithm.hyper_parameters}),
        model,
        optimizer,
        mesh,
        alignment_target=config.alignment.target,
        ema_decay=config.ema_decay,
        flip=config.augment.flip,
        operations=tuple(config.augment.operations),
    )
    create = jax.jit(
        partial(
            train_state.create,
            model=model,
            optimizer=optimizer,
            image_shape=splits.labeled.images.shape[1:],
            classes=classes,
        )
    )
    return Program(
        mesh,
        lambda key: distributed.replicate(create(key), mesh),
        train_step,
        evaluate.make_predict(model, mesh, batch_size=config.eval_batch_size),
    )


def run_generation(
    config: ConfigDict, folder: Path, generation: int, splits: Splits, program: Program
) -> dict[str, Any]:
    """Runs what is left of one generation, and returns its result.json."""
    here = folder_of(folder, generation)
    if (here / RESULT).exists():
        return workdir.read_json(here / RESULT)

    if not (here / "labeled").exists():
        rewrite_labeled(config, folder, generation, splits)
    labeled = records.load(here / "labeled")
    init_key, step_key = generation_keys(config, generation)
    temperature = _temperature(config, generation)
    prior = splits.class_distribution
    adjustment = config.logit_adjustment_tau * np.log(prior)
    # The unlabeled stream is all training images, labeled ones too, in every generation.
    everything = splits.labeled + splits.unlabeled

    def batches(start: int) -> Iterator[DeviceBatch]:
        for batch in pipeline.batches(
            labeled,
            everything,
            batch_size=config.batch_size,
            unlabeled_ratio=config.unlabeled_ratio,
            seed=config.seed,
            generation=generation,
            start=start,
            stop=config.steps,
        ):
            yield distributed.split(DeviceBatch(*batch), program.mesh)

    def evaluation(state: train_state.TrainState) -> dict[str, Any]:
        held_out = {"test": splits.test}
        if splits.validation.ids:
            held_out["validation"] = splits.validation
        weights = {"ema": state.ema_params, "raw": state.params}
        return {
            split: {
                name: evaluate.summarize(
                    images.labels,
                    program.predict(params, state.batch_stats, images.images, adjustment),
                    len(splits.class_names),
                )
                for name, params in weights.items()
            }
            for split, images in held_out.items()
        }

    state = train(
        program.new_state(init_key),
        program.train_step,
        batches,
        distributed.replicate(
            Generation(step_key, jnp.float32(temperature), jnp.asarray(prior, jnp.float32)),
            program.mesh,
        ),
        evaluation,
        folder=here,
        schedule=Schedule(config.steps, config.eval_every, config.checkpoint_every),
        title=f"generation {generation + 1} of {config.generations}",
    )

    if not (here / "pseudo_labels").exists():
        predictions = program.predict(
            state.ema_params, state.batch_stats, splits.unlabeled.images, adjustment
        )
        selected = _select(config, generation, splits, predictions)
        pseudo_labels.write(
            here / "pseudo_labels",
            PseudoLabels(
                splits.unlabeled.ids, predictions.labels, predictions.confidence, selected
            ),
        )
    result = {
        "generation": generation,
        "temperature": temperature,
        **summarize_evaluations(keep_metrics(here / METRICS, up_to=config.steps)),
        "labeled_per_class": records.read_manifest(here / "labeled")["examples_per_class"],
        "pseudo_labels": summarize_pseudo_labels(
            pseudo_labels.read(here / "pseudo_labels"),
            splits.unlabeled.labels,
            len(splits.class_names),
        ),
    }
    images = config.steps * config.batch_size * (1 + config.unlabeled_ratio)
    result["images_per_second"] = images / max(result["seconds"], 1e-9)
    workdir.write_json(here / RESULT, result)
    return result


def rewrite_labeled(config: ConfigDict, folder: Path, generation: int, splits: Splits) -> None:
    """Writes what a generation trains on: the ORIGINAL labeled set and the latest selection.

    `X' = X u S` (section 3.3): selections of earlier generations do not accumulate.
    """
    examples = list(records.read(folder / "splits" / "labeled"))
    if generation > 0:
        chosen = pseudo_labels.read(folder_of(folder, generation - 1) / "pseudo_labels")
        label_of = {
            chosen.ids[row]: int(chosen.labels[row]) for row in np.flatnonzero(chosen.selected)
        }
        examples += [
            example._replace(label=label_of[example.id])
            for example in records.read(folder / "splits" / "unlabeled")
            if example.id in label_of
        ]
    records.write(
        folder_of(folder, generation) / "labeled",
        examples,
        class_names=splits.class_names,
        shards=config.data.shards,
    )


def generation_keys(config: ConfigDict, generation: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Seeds of a generation's initial weights, and of its steps."""
    init_key, step_key = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), generation)
    )
    return init_key, step_key


def folder_of(folder: Path, generation: int) -> Path:
    """Where a generation keeps its files."""
    return folder / f"generation_{generation:02d}"


def summarize_evaluations(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the reported figures of a generation from its evaluations.

    The last evaluations' confusion matrices of the EMA model are added up, so that the accuracy
    is the mean of theirs, and recall and precision are of all their predictions together.
    """
    last = [line["test"] for line in history[-LAST_EVALUATIONS:]]

    def pooled(weights: str, matrix: str) -> Int[np.ndarray, "classes classes"]:
        return np.sum([test[weights][matrix] for test in last], axis=0)

    plain = pooled("ema", "confusion_matrix")
    adjusted = pooled("ema", "confusion_matrix_logit_adjusted")
    best = max(history, key=lambda line: line["test"]["ema"]["accuracy"])
    summary = {
        "accuracy": evaluate.class_balanced_accuracy(plain),
        "accuracy_logit_adjusted": evaluate.class_balanced_accuracy(adjusted),
        "accuracy_raw_weights": evaluate.class_balanced_accuracy(pooled("raw", "confusion_matrix")),
        "per_class_recall": evaluate.per_class_recall(plain),
        "per_class_precision": evaluate.per_class_precision(plain),
        "per_class_recall_logit_adjusted": evaluate.per_class_recall(adjusted),
        "per_class_precision_logit_adjusted": evaluate.per_class_precision(adjusted),
        "confusion_matrix": plain.tolist(),
        "evaluations": len(last),
        # Chosen on the test set, so no figure to report.
        "best_on_test": {"step": best["step"], "accuracy": best["test"]["ema"]["accuracy"]},
        "steps": history[-1]["step"],
        "seconds": history[-1]["seconds"],
    }
    if "validation" in history[-1]:
        chosen = max(history, key=lambda line: line["validation"]["ema"]["accuracy"])
        summary["selected_on_validation"] = {
            "step": chosen["step"],
            "validation_accuracy": chosen["validation"]["ema"]["accuracy"],
            "accuracy": chosen["test"]["ema"]["accuracy"],
        }
    return summary


def summarize_pseudo_labels(
    predicted: PseudoLabels, truth: Int[np.ndarray, "unlabeled"], classes: int
) -> dict[str, list]:
    """Counts pseudo-labels by predicted class, and compares them with the truth.

    Returns:
      Per class: `predicted` and `selected` counts, `precision` and `selected_precision` (right
      ones among these, per cent, None where there are none), and `recall` on the unlabeled split.
    """
    all_of_them = evaluate.confusion_matrix(truth, predicted.labels, classes)
    chosen = predicted.selected
    selected = evaluate.confusion_matrix(truth[chosen], predicted.labels[chosen], classes)
    return {
        "predicted": all_of_them.sum(axis=0).tolist(),
        "selected": selected.sum(axis=0).tolist(),
        "precision": evaluate.per_class_precision(all_of_them),
        "selected_precision": evaluate.per_class_precision(selected),
        "recall": evaluate.per_class_recall(all_of_them),
    }


def _select(
    config: ConfigDict, generation: int, splits: Splits, predictions: evaluate.Predictions
) -> Bool[np.ndarray, "unlabeled"]:
    """Which pseudo-labels the next generation trains on; none where there is no next one."""
    if generation + 1 == config.generations:
        return np.zeros(len(predictions.labels), bool)
    rates = crest.sampling_rates(splits.labeled_counts, config.crest.alpha)
    return crest.select(predictions.labels, predictions.confidence, rates)


def _temperature(config: ConfigDict, generation: int) -> float:
    if config.alignment.target == "progressive":
        return progressive_temperature(generation, config.generations, config.crest.t_min)
    return config.alignment.t


def _results(config: ConfigDict, splits: Splits, results: list[dict[str, Any]]) -> dict[str, Any]:
    headline = ("accuracy", "accuracy_logit_adjusted", "per_class_recall", "per_class_precision",
                "labeled_per_class", "pseudo_labels", "steps", "seconds",
                "images_per_second")  # fmt: skip
    return {
        "method": config.method,
        "rebalance": config.rebalance,
        "data": config.data.name,
        "class_names": list(splits.class_names),
        "gamma": config.long_tail.gamma,
        "beta": config.long_tail.beta,
        "fold": config.fold,
        "seed": config.seed,
        "environment": workdir.environment(),
        **{name: results[-1][name] for name in headline},
        "generations": results,
    }
