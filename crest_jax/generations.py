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
from jaxtyping import Array, Bool, Key
from ml_collections import ConfigDict

from crest_jax import distributed, evaluate, results, train_state, workdir
from crest_jax.algorithms import ALGORITHMS
from crest_jax.data import pipeline, pseudo_labels, records
from crest_jax.data import splits as splits_lib
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.splits import Splits
from crest_jax.models import MODELS
from crest_jax.rebalancing import crest
from crest_jax.rebalancing.distribution_alignment import progressive_temperature
from crest_jax.report import text
from crest_jax.train import METRICS, Schedule, keep_metrics, train
from crest_jax.train_step import DeviceBatch, Generation, TrainStep, make_train_step

RESULT = "result.json"
RESULTS = "results.json"


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
    splits_lib.prepare(config, folder / "splits")
    splits = splits_lib.load(folder / "splits")
    program = build(config, splits)
    finished: list[dict[str, Any]] = []
    for generation in range(config.generations):
        result = run_generation(config, folder, generation, splits, program)
        finished.append(result)
        workdir.write_json(folder / RESULTS, results.of_run(config, splits.class_names, finished))
        print(text.generation_table(result, splits.class_names), flush=True)
    if config.generations > 1:
        print(text.results_table(finished, splits.class_names), flush=True)
    return results.of_run(config, splits.class_names, finished)


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
        **results.summarize_evaluations(keep_metrics(here / METRICS, up_to=config.steps)),
        "labeled_per_class": records.read_manifest(here / "labeled")["examples_per_class"],
        "pseudo_labels": results.summarize_pseudo_labels(
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
