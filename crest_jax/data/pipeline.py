"""Streams of raw uint8 batches (tf.data) that can start at any step.

A stream has no state to save. It is the concatenation of epochs, each a permutation of the N
examples that is computed from the seed and the epoch's number. Step s begins at example
s * batch_size of it, whatever came before: a run that continues sees the batches that it would have
seen anyway, after computing one permutation. With resampling every step draws its labeled examples
anew, from the seed and the step's number. Random crops are made from the seed and the place in the
stream.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Float, Int, UInt8

from crest_jax.data import decode
from crest_jax.data.records import Encoded, Images


class Batch(NamedTuple):
    """What one step trains on."""

    labeled: UInt8[np.ndarray, "labeled height width channels"]
    labels: Int[np.ndarray, " labeled"]
    unlabeled: UInt8[np.ndarray, "unlabeled height width channels"]
    # Which of all unlabeled examples these are.
    unlabeled_rows: Int[np.ndarray, " unlabeled"]


# There is no Python to be made into TensorFlow here, for which AutoGraph would write files.
@tf.autograph.experimental.do_not_convert
def batches(
    labeled: Images | Encoded,
    unlabeled: Images | Encoded,
    *,
    batch_size: int,
    unlabeled_ratio: int,
    seed: int,
    generation: int,
    start: int,
    stop: int,
    labeled_probabilities: Float[np.ndarray, " labeled"] | None = None,
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
      unlabeled_ratio: unlabeled examples for each labeled one; 0 for batches without any.
      seed: the run's.
      generation: from 0; each has an order of its own.
      start: first step.
      stop: one past the last step.
      labeled_probabilities: where given, each labeled example is drawn with them, independently and
        with replacement, instead of epoch by epoch.
      process: which host this is; it gets its contiguous part of the global batch.
      processes: how many hosts there are; they divide `batch_size`.
    """

    def stream(order: int, examples: int, size: int) -> tf.data.Dataset:
        return _shuffled(examples, size, seed=seed, order=order, start=start, stop=stop)

    def share(rows: tf.Tensor) -> tf.Tensor:
        size = rows.shape[0] // processes
        return rows[process * size : (process + 1) * size]

    # Each stream of each generation has an order of its own.
    orders = (2 * generation, 2 * generation + 1)
    if labeled_probabilities is None:
        labeled_stream = stream(orders[0], len(labeled.ids), batch_size)
    else:
        labeled_stream = _drawn(
            labeled_probabilities, batch_size, seed=seed, order=orders[0], start=start, stop=stop
        )
    if unlabeled_ratio:
        size = batch_size * unlabeled_ratio
        unlabeled_stream = stream(orders[1], len(unlabeled.ids), size)
    else:
        unlabeled_stream = tf.data.Dataset.from_tensors(np.zeros(0, np.int32)).repeat()

    first_of_host = process * batch_size // processes
    labels = tf.constant(labeled.labels)
    labeled_images = _looked_up(labeled, batch_size, first_of_host, seed=seed, order=orders[0])
    unlabeled_images = _looked_up(
        unlabeled,
        batch_size * unlabeled_ratio,
        first_of_host * unlabeled_ratio,
        seed=seed,
        order=orders[1],
    )
    steps = tf.data.Dataset.range(start, stop)
    rows = tf.data.Dataset.zip(steps, labeled_stream.map(share), unlabeled_stream.map(share))
    dataset = rows.map(
        lambda step, labeled_rows, unlabeled_rows: Batch(
            labeled_images(step, labeled_rows),
            tf.gather(labels, labeled_rows),
            unlabeled_images(step, unlabeled_rows),
            unlabeled_rows,
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _looked_up(
    split: Images | Encoded, size: int, first: int, *, seed: int, order: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns what gives a host's images of a step from their rows.

    Args:
      split: that they are of.
      size: of the global batch.
      first: where in it the host's part begins.
      seed: the run's.
      order: of the stream.
    """
    images = tf.constant(split.images)
    if isinstance(split, Images):
        return lambda step, rows: tf.gather(images, rows)
    of_stream = tf.random.fold_in(tf.constant([seed, order], tf.int64), tf.constant(-1, tf.int64))
    shape = tf.TensorSpec([split.view.size, split.view.size, split.view.channels], tf.uint8)

    def crops(step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        places = step * size + first + tf.range(rows.shape[0], dtype=tf.int64)
        return tf.map_fn(
            lambda each: decode.trained_on(
                each[0], split.view, tf.random.fold_in(of_stream, each[1])
            ),
            (tf.gather(images, rows), places),
            fn_output_signature=shape,
        )

    return crops


def _shuffled(
    examples: int, size: int, *, seed: int, order: int, start: int, stop: int
) -> tf.data.Dataset:
    """Rows of the examples of steps `start` to `stop - 1`, each of shape [size].

    A stateless shuffle of each epoch, not `index_shuffle`, which computes single places of a
    permutation: that keeps 8 bits of each seed, so that orders return after 256 epochs.
    """
    first, skipped = divmod(start * size, examples)
    epochs = tf.data.Dataset.range(first, -(-stop * size // examples))

    def permutation(epoch: tf.Tensor) -> tf.Tensor:
        rows = tf.random.experimental.stateless_shuffle(
            tf.range(examples), seed=tf.stack([tf.constant(seed, tf.int64), epoch + (order << 40)])
        )
        return rows[tf.where(epoch == first, skipped, 0) :]

    return epochs.map(permutation).rebatch(size, drop_remainder=True).take(stop - start)


def _drawn(
    probabilities: Float[np.ndarray, " examples"],
    size: int,
    *,
    seed: int,
    order: int,
    start: int,
    stop: int,
) -> tf.data.Dataset:
    """Rows of independent draws for steps `start` to `stop - 1`, each of shape [size]."""
    cumulative = np.cumsum(probabilities)
    # Rounding must leave no gap above the last of them, into which a draw could fall.
    cumulative[np.flatnonzero(probabilities)[-1] :] = 1.0

    def draw(step: tf.Tensor) -> tf.Tensor:
        uniform = tf.random.stateless_uniform(
            [size],
            seed=tf.stack([tf.constant(seed, tf.int64), step + (order << 40)]),
            dtype=tf.float64,
        )
        return tf.searchsorted(tf.constant(cumulative), uniform, side="right")

    return tf.data.Dataset.range(start, stop).map(draw)
