"""The batches that a generation trains on, on this host and on its devices."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from crest_jax import hosts
from crest_jax.data import loading, pipeline, records, stream
from crest_jax.mesh import split
from crest_jax.program import Run
from crest_jax.train_step import DeviceBatch


def on_devices(run: Run, generation: int) -> Callable[[int], Iterator[DeviceBatch]]:
    """Return a function of the first step that yields batches, several together, on the devices.

    None that are together are on both sides of an evaluation or a checkpoint.
    """
    from_step = on_host(run, generation)
    at_once = run.program.at_once

    def batches(start: int) -> Iterator[DeviceBatch]:
        following = from_step(start=start)
        # A run that was stopped elsewhere first comes back to where it evaluates and saves.
        together = at_once - start % at_once
        while several := list(itertools.islice(following, together)):
            stacked = tuple(map(np.stack, zip(*several, strict=True)))
            yield DeviceBatch(*split(stacked, run.program.mesh, axis=1))
            together = at_once

    return batches


def on_host(run: Run, generation: int) -> Callable[..., Iterator[pipeline.Batch]]:
    """Return a function of `start`, the first step, that yields this host's share of each batch.

    The unlabeled stream is all training images, labeled ones too unless the config leaves them out,
    in every generation.
    """
    streams, splits = run.program.streams, run.splits
    labeled_folder = run.folder.generation(generation).labeled
    shared = {
        "batch_size": streams.batch_size,
        "unlabeled_ratio": streams.unlabeled_ratio,
        "seed": streams.seed,
        "generation": generation,
        "stop": run.program.schedule.steps,
        "process": jax.process_index(),
        "processes": jax.process_count(),
    }
    unlabeled_folders = [*map(run.folder.splits.split, streams.unlabeled)]
    if streams.from_files:
        return partial(
            stream.batches,
            [labeled_folder],
            unlabeled_folders,
            stream.Streaming(streams.view, streams.lanes, streams.window),
            **shared,
        )
    labeled: records.Encoded | records.Images
    unlabeled: records.Encoded | records.Images
    if streams.view.crop == "random":
        labeled = hosts.on_all(records.load_encoded, [labeled_folder], streams.view)
        unlabeled = hosts.on_all(records.load_encoded, unlabeled_folders, streams.view)
    else:
        labeled = hosts.on_all(loading.load_images, labeled_folder, streams.view)
        unlabeled = records.joined([getattr(splits, name).images for name in streams.unlabeled])
    return partial(
        pipeline.batches,
        labeled,
        unlabeled,
        labeled_probabilities=streams.sampling_probabilities(labeled.labels, splits.class_names),
        **shared,
    )
