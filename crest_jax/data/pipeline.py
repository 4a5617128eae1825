"""Streams of raw uint8 batches (tf.data) that can start at any step.

A stream has no state to save. Example number i of a stream, counted over the whole training, is
the element at position i mod N of a permutation of the N examples that is seeded by the epoch
i div N. A run that continues at step s therefore sees the batches that it would have seen anyway,
and the first of them arrives as fast as at step 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8

from crest_jax.data.records import Images


class Batch(NamedTuple):
    """What one step trains on."""

    labeled: UInt8[np.ndarray, "labeled height width channels"]
    labels: Int[np.ndarray, "labeled"]
    unlabeled: UInt8[np.ndarray, "unlabeled height width channels"]


def batches(
    labeled: Images,
    unlabeled: Images,
    *,
    batch_size: int,
    unlabeled_ratio: int,
    seed: int,
    generation: int,
    start: int,
    stop: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of steps `start` to `stop - 1`.

    The labeled and the unlabeled stream are reshuffled each epoch, each with a seed of its own.
    A set smaller than a batch is repeated until it fills one.

    Args:
      labeled: the labeled set of this generation.
      unlabeled: all training images; their labels are not looked at.
      batch_size: labeled examples of the global batch.
      unlabeled_ratio: unlabeled examples for each labeled one.
      seed: the run's.
      generation: from 0; each has an order of its own.
      start: first step.
      stop: one past the last step.
      process: which host this is; it gets its contiguous part of the global batch.
      processes: how many hosts there are; they divide `batch_size`.
    """

    def stream(number: int, examples: int, size: int) -> tf.data.Dataset:
        share = size // processes
        offset = process * share
        return tf.data.Dataset.range(start, stop).map(
            lambda step: _shuffled(
                step * size + offset + tf.range(share, dtype=tf.int64),
                examples,
                seed=seed,
                order=2 * generation + number,
            )
        )

    labeled_images, labels = tf.constant(labeled.images), tf.constant(labeled.labels)
    unlabeled_images = tf.constant(unlabeled.images)
    rows = tf.data.Dataset.zip(
        stream(0, len(labeled.ids), batch_size),
        stream(1, len(unlabeled.ids), batch_size * unlabeled_ratio),
    )
    dataset = rows.map(
        lambda labeled_rows, unlabeled_rows: Batch(
            tf.gather(labeled_images, labeled_rows),
            tf.gather(labels, labeled_rows),
            tf.gather(unlabeled_images, unlabeled_rows),
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _shuffled(counters: tf.Tensor, examples: int, *, seed: int, order: int) -> tf.Tensor:
    """Rows of the examples that these counters stand for, [n] -> [n]."""
    epochs = counters // examples
    # The raw operation: tf.random.experimental.index_shuffle pads a matrix of seeds along the
    # wrong axis, so it takes one epoch at a time only.
    return tf.raw_ops.RandomIndexShuffle(
        index=counters % examples,
        seed=tf.stack([seed * tf.ones_like(epochs), order * tf.ones_like(epochs), epochs], axis=-1),
        max_index=tf.constant(examples - 1, tf.int64),
        rounds=4,
    )
