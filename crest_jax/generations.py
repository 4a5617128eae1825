"""The outer driver: train, pseudo-label, select, rewrite the labeled set, train again.

A *generation* is one full training of a fresh model (paper section 3.3, Fig. 3). Only the labeled
set passes from one generation to the next. Every stage ends with a file that says that its result
is whole, and is skipped when that is there: so the same command continues a run from wherever it
was stopped.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import (
    batches,
    checkpoints,
    environment,
    evaluate,
    files,
    hosts,
    initial_weights,
    printing,
    program,
    report,
    results,
    self_training,
    stages,
    unlabeled_classes,
    workdir,
)
from crest_jax.data import loading, manifest, preparation, pseudo_labels, sources
from crest_jax.data.sources import Source
from crest_jax.data.splits import Split, Splits, written_sizes
from crest_jax.errors import WorkdirError
from crest_jax.layout import GenerationFolder, RunFolder
from crest_jax.mesh import replicate
from crest_jax.program import Run
from crest_jax.report import text
from crest_jax.results import UNLABELED_DISTRIBUTION
from crest_jax.scoring import over_share, predictor
from crest_jax.train_state import TrainState
from crest_jax.train_step import Constants
from crest_jax.training import keep_metrics, train


def run(
    config: ConfigDict, folder: Path, *, source: Source | None = None, pictures: bool = True
) -> dict[str, Any]:
    """Run or continue an experiment, all its generations.

    Args:
      config: validated.
      folder: the run's folder, already claimed for this config.
      source: the data set; by default the one that the config names.
      pictures: whether its page shows some of the images.

    Returns:
      The content of results.json.
    """
    here = RunFolder(folder)
    finished, problems, is_over = hosts.from_first(_look, here, config.generations)
    this = None if is_over else prepare(config, here, source)
    splits = this.splits if this else _written(config, here)
    sizes, names = sizes_of(config, splits), splits.class_names
    data = hosts.from_first(_data_of, folder)
    printing.say(text.splits_line(sizes, names))
    if computing := program.who_computes(config):
        printing.say(computing)
    for problem in problems:
        printing.say(problem)
    found: list[dict[str, Any]] = []
    for generation, is_done in enumerate(finished):
        if is_done or this is None:
            path = here.generation(generation).result
            found.append(hosts.from_first(results.read_generation, path, len(names)))
        else:
            found.append(run_generation(this, generation))
        # Where the next one was finished before, they are written with that.
        if not any(finished[generation + 1 : generation + 2]):
            summary = results.of_run(config, data, names, sizes, found)
            hosts.on_first(_write_results, here, summary, pictures)
        printing.say(text.generation_table(found[-1], names))
    if config.generations > 1:
        printing.say(text.results_table(found, names))
        printing.say(text.self_training_lines(found, names))
    return summary


def prepare(config: ConfigDict, folder: RunFolder, source: Source | None = None) -> Run:
    """Write the splits that are not there yet, read them, and compile what they are given to."""
    checkpoints.check(folder.path)
    weights = hosts.on_first(initial_weights.named_in, config, folder)
    hosts.on_first(preparation.prepare, config, folder.splits.path, folder.unreadable, source)
    splits = hosts.on_all(loading.load, config.data, folder.splits.path)
    hosts.on_first(_keep_weights, weights, config, folder, splits)
    initial = hosts.on_all(initial_weights.kept, config, folder)
    return Run(folder, splits, program.build(config, splits, initial))


def _keep_weights(
    weights: initial_weights.Weights | None, config: ConfigDict, folder: RunFolder, splits: Splits
) -> None:
    """Keep the weights that generations start from, as far as they fit; say how far that is."""
    if weights is not None:
        fitted = initial_weights.fit(weights, config, splits)
        printing.say(f"model.init_from={config.model.init_from}: {fitted}")
        initial_weights.keep(folder, fitted.weights)


def run_generation(run: Run, generation: int) -> dict[str, Any]:
    """Run what is left of one generation, and return its result.json."""
    here = run.folder.generation(generation)
    # What is streamed is too much to be read just for this.
    check = manifest.shards if run.program.streams.from_files else manifest.check
    if not stages.is_done(here.labeled, check):
        self_training.rewrite_labeled(run, generation)
    state = train_generation(run, generation)
    if not stages.is_done(here.pseudo_labels, pseudo_labels.check):
        scored = self_training.score_unlabeled(run, generation, state)
        self_training.write_scores(here.pseudo_labels, scored)
    if not stages.is_done(here.test_predictions, pseudo_labels.check):
        self_training.write_scores(here.test_predictions, self_training.score_test(run, state))
    result = summarize(run, generation, state)
    hosts.on_first(files.write_json, here.result, result)
    return result


def train_generation(run: Run, generation: int) -> TrainState:
    """Train a fresh model on the generation's labeled set and all images, to the last step."""
    here, program = run.folder.generation(generation), run.program
    held_out = {"test": run.splits.test}
    if run.splits.validation.examples:
        held_out["validation"] = run.splits.validation
    init_key, step_key = program.keys(generation)
    per_class = labeled_per_class(here)
    weights = program.class_weights(np.array(per_class))
    temperature = program.temperatures[generation]

    def constants(evaluated: Mapping[str, Any] | None) -> Constants:
        if evaluated is not None:
            results.check_classes(evaluated, run.classes, here.metrics)
        target = program.target_distribution((evaluated or {}).get(UNLABELED_DISTRIBUTION))
        inputs = Constants(
            step_key,
            # Where there is no temperature, the step does not look at it.
            jnp.float32(1.0 if temperature is None else temperature),
            jnp.asarray(target, jnp.float32),
            jnp.asarray(weights, jnp.float32),
        )
        return replicate(inputs, program.mesh)

    adjustment = program.adjustment(per_class)

    def evaluation(state: TrainState) -> dict[str, Any]:
        trained = {"ema": state.ema_weights, "raw": state.weights}
        models = {name: predictor(each, program, adjustment) for name, each in trained.items()}
        summaries: dict[str, Any] = {}
        if program.estimates_unlabeled:
            summaries[UNLABELED_DISTRIBUTION] = unlabeled_classes.estimate(run, state)
        for name, split in held_out.items():
            _, classes, predictions = over_share(split, models)
            summaries[name] = {
                which: evaluate.summarize(classes, predicted, run.classes)
                for which, predicted in predictions.items()
            }
        return summaries

    return train(
        program.new_state(init_key),
        program.train_steps,
        batches.on_devices(run, generation),
        constants,
        evaluation,
        folder=here,
        schedule=program.schedule,
        title=f"generation {generation + 1} of {program.generations}",
    )


def summarize(run: Run, generation: int, state: TrainState) -> dict[str, Any]:
    """Return the content of a generation's result.json.

    Args:
      run: the run.
      generation: whose evaluations and pseudo-labels are on disk.
      state: of its last step.
    """
    here, schedule = run.folder.generation(generation), run.program.schedule
    history = hosts.from_first(keep_metrics, here.metrics, up_to=schedule.steps)
    for line in history:
        results.check_classes(line, run.classes, here.metrics)
    summary = results.summarize_evaluations(history)
    images = schedule.steps * run.program.streams.images
    per_class = labeled_per_class(here)
    result = {
        "generation": generation,
        "reseed": run.program.reseed,
        "environment": environment.current(),
        "temperature": run.program.temperatures[generation],
        **summary,
        "images_per_second": images / max(summary["seconds"], 1e-9),
        "labeled_per_class": per_class,
        "logit_adjustment": {
            "tau": run.program.tau,
            "class_distribution": program.shares(per_class).tolist(),
        },
        "pseudo_labels": results.summarize_pseudo_labels(
            *self_training.count_pseudo_labels(here.pseudo_labels, run.classes)
        ),
    }
    if run.splits.unlabeled.examples:
        predicted = np.array(result["pseudo_labels"]["predicted"])
        result[UNLABELED_DISTRIBUTION] = unlabeled_classes.describe(
            run, generation, predicted, state
        )
    return result


def labeled_per_class(here: GenerationFolder) -> list[int]:
    """Return how many examples of each class a generation trains on."""
    per_class = hosts.from_first(manifest.read, here.labeled)["examples_per_class"]
    assert per_class is not None  # the classes of what is trained on are known
    return per_class


def sizes_of(config: ConfigDict, splits: Splits) -> dict[str, Any]:
    """Return how many `images` each split has, and `per_class`, or None where that is not known.

    For the test images also whether they are `held_out` of those that were given as labeled.
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


def _look(folder: RunFolder, generations: int) -> tuple[list[bool], list[str], bool]:
    """Look what a run has finished, without reading its images.

    Returns:
      Whether the results of each generation are there; what is damaged; and whether all is done, so
      that there are only results to print.
    """
    problems: list[str] = []

    def note(problem: str, path: Path) -> None:
        problems.append(stages.made_again(problem, path))

    finished = [
        stages.is_finished(folder.generation(generation), say=note)
        for generation in range(generations)
    ]
    return finished, problems, all(finished) and preparation.are_whole(folder.splits.path)


def _written(config: ConfigDict, folder: RunFolder) -> Splits:
    """Return the splits of a run that is over, without their images; warn if these have changed."""
    hosts.on_first(preparation.warn_of_changes, config, folder.splits.path, folder.unreadable)
    return hosts.on_all(written_sizes, config.data, folder.splits.path).without_images()


def _data_of(folder: Path) -> str:
    return sources.data_of(workdir.read_config(folder))


def _write_results(folder: RunFolder, summary: Mapping[str, Any], pictures: bool) -> None:
    """Write results.json and the page; a page that cannot be written is no reason to stop."""
    files.write_json(folder.results, summary)
    try:
        report.write(folder.page, [folder.path], pictures=pictures)
    except WorkdirError as error:
        logging.warning("%s", error)
    except Exception:
        logging.exception("%s could not be written", folder.page)
