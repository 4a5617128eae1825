"""From one generation to the next: pseudo-label, select, rewrite the labeled set (section 3.3)."""

from collections.abc import Iterator

import jax
import numpy as np
from etils.epath import Path
from jaxtyping import Int

from crest_jax import files, hosts
from crest_jax.data import manifest, pseudo_labels, records
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.sources import UNKNOWN, Example
from crest_jax.data.writer import Writer
from crest_jax.errors import DataError
from crest_jax.program import Run
from crest_jax.rebalancing import crest
from crest_jax.scoring import by_ema
from crest_jax.train_state import TrainState


def score_unlabeled(run: Run, generation: int, state: TrainState) -> PseudoLabels:
    """Score this host's share of the unlabeled split with the EMA model, and select from it.

    There is no augmentation, and no alignment. The last generation selects nothing.
    """
    ids, truth, (labels, confidence, _) = by_ema(run.splits.unlabeled, state, run.program)
    selected = np.zeros(len(labels), bool)
    rates = run.program.sampling_rates
    if rates is not None and generation + 1 < run.program.generations:
        (selected,) = crest.select(
            [crest.Scores(labels, confidence)],
            rates,
            all_gather=hosts.all_gather,
            host=jax.process_index(),
        )
    return PseudoLabels(ids, labels, confidence, selected, truth)


def score_test(run: Run, state: TrainState) -> PseudoLabels:
    """Score this host's share of the test split with the EMA model, for reports to look at."""
    ids, truth, (labels, confidence, _) = by_ema(run.splits.test, state, run.program)
    return PseudoLabels(ids, labels, confidence, np.zeros(len(labels), bool), truth)


def write_scores(folder: Path, scored: PseudoLabels) -> None:
    """Write what this host has scored, and wait for the others."""
    hosts.on_first(files.begin_folder, folder)
    written = hosts.gather_json(
        hosts.on_all(
            pseudo_labels.write_shard,
            folder,
            scored,
            host=jax.process_index(),
            hosts=jax.process_count(),
        )
    )
    hosts.on_first(pseudo_labels.finish, folder, written)


def count_pseudo_labels(folder: Path, classes: int) -> Int[np.ndarray, "2 truths classes"]:
    """Count all pseudo-labels, and the selected ones, by true class (row) and label (column).

    The last row counts those whose true class is not known.
    """

    def count() -> Int[np.ndarray, "2 truths classes"]:
        counts = np.zeros((2, classes + 1, classes), np.int64)
        for shard in pseudo_labels.read_shards(
            folder, host=jax.process_index(), hosts=jax.process_count()
        ):
            manifest.check_labels(shard.truth, range(UNKNOWN, classes), str(folder))
            manifest.check_labels(shard.labels, range(classes), str(folder))
            truth = np.where(shard.truth == UNKNOWN, classes, shard.truth)
            np.add.at(counts[0], (truth, shard.labels), 1)
            np.add.at(counts[1], (truth[shard.selected], shard.labels[shard.selected]), 1)
        return counts

    return hosts.total(hosts.on_all(count))


def rewrite_labeled(run: Run, generation: int) -> None:
    """Write what a generation trains on: the ORIGINAL labeled set and the latest selection.

    `X' = X u S` (section 3.3): selections of earlier generations do not accumulate. Every host
    writes shards of its own, and reads no more than what they are made of.
    """
    original = run.splits.labeled.examples
    selection, chosen = None, 0
    if generation:
        selection = run.folder.generation(generation - 1).pseudo_labels
        chosen = hosts.from_first(pseudo_labels.selected_count, selection)
    writer = Writer(
        run.folder.generation(generation).labeled,
        examples=original + chosen,
        class_names=run.splits.class_names,
        shards=run.program.shards,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    splits = run.folder.splits

    def write_shards() -> None:
        first, last = writer.rows.start, writer.rows.stop
        known = range(first, min(last, original))
        for example in records.read(splits.labeled, known):
            writer.add(example)
        if selection and last > original:
            numbers = range(max(first - original, 0), last - original)
            for example in _relabeled(splits.unlabeled, selection, numbers):
                writer.add(example)
        writer.close()

    hosts.on_first(writer.begin)
    hosts.on_all(write_shards)
    written = [entry for of_host in hosts.gather_json(writer.written) for entry in of_host]
    hosts.on_first(writer.finish, written)


def _relabeled(unlabeled: Path, selection: Path, numbers: range) -> Iterator[Example]:
    """Yield selected examples with their pseudo-labels.

    Args:
      unlabeled: records of the unlabeled split.
      selection: pseudo-labels of the generation before.
      numbers: which of the selected ones, in their order.

    Raises:
      DataError: A file is missing or damaged, or the pseudo-labels are of another unlabeled split.
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
                f"not {example.id}; delete it and run again to score again"
            )
        yield example._replace(label=int(labels[place]))
