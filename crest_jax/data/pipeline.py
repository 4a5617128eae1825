"""Streams of raw uint8 batches (tf.data) that can start at any step.

A stream has no state that would have to be saved. It is the concatenation of epochs, each a
permutation of the N examples that is computed from the seed and the epoch number. Step s always
begins at example s * batch_size of the stream, so a resumed run computes one permutation and then
sees the same batches as an uninterrupted run. With resampling, every step draws its labeled
examples from the seed and the step number. Random crops depend on the seed and the position in the
stream.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from crest_jax.data import decode
from crest_jax.data.records import Encoded, Images
from crest_jax.data.tensorflow import tf, without_autograph


class Batch(NamedTuple):
    """The examples of one training step."""

    labeled: UInt8[np.ndarray, "labeled height width channels"]
    labels: Int[np.ndarray, " labeled"]
    unlabeled: UInt8[np.ndarray, "unlabeled height width channels"]
    # The indices of these examples among all unlabeled ones.
    unlabeled_rows: Int[np.ndarray, " unlabeled"]


@without_autograph
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
    """Yield the batches of steps `start` to `stop - 1`.

    The labeled and the unlabeled stream are reshuffled every epoch, with different seeds. A set
    smaller than a batch is repeated until it fills one.

    Args:
      labeled: the labeled set of this generation.
      unlabeled: the images of the unlabeled stream; their labels are ignored.
      batch_size: the number of labeled examples in the global batch.
      unlabeled_ratio: the number of unlabeled examples per labeled one; 0 for none.
      seed: the seed of the run.
      generation: the generation, from 0; each has its own order.
      start: the first step.
      stop: one past the last step.
      labeled_probabilities: if given, labeled examples are drawn with these probabilities,
        independently and with replacement, instead of epoch by epoch.
      process: the index of this host, which gets its contiguous share of the global batch.
      processes: the number of hosts; must divide `batch_size`.
    """

    def stream(order: int, examples: int, size: int) -> tf.data.Dataset:
        return _shuffled(examples, size, seed=seed, order=order, start=start, stop=stop)

    def share(rows: tf.Tensor) -> tf.Tensor:
        size = rows.shape[0] // processes
        return rows[process * size : (process + 1) * size]

    # Each stream of each generation has its own order.
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
    """Return a function that maps a step and the rows of a host's examples to their images.

    Args:
      split: the split that the rows index.
      size: the number of this stream's examples in the global batch.
      first: the position in the global batch where the host's share begins.
      seed: the seed of the run.
      order: the number of the stream's order.
    """
    images = tf.constant(split.images)
    if isinstance(split, Images):
        return lambda step, rows: tf.gather(images, rows)
    stream_seed = tf.random.fold_in(tf.constant([seed, order], tf.int64), tf.constant(-1, tf.int64))
    shape = tf.TensorSpec([split.view.size, split.view.size, split.view.channels], tf.uint8)

    def crops(step: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        places = step * size + first + tf.range(rows.shape[0], dtype=tf.int64)
        return tf.map_fn(
            lambda each: decode.decode_for_training(
                each[0], split.view, tf.random.fold_in(stream_seed, each[1])
            ),
            (tf.gather(images, rows), places),
            fn_output_signature=shape,
        )

    return crops


def _shuffled(
    examples: int, size: int, *, seed: int, order: int, start: int, stop: int
) -> tf.data.Dataset:
    """Return a data set of the rows of steps `start` to `stop - 1`, each of shape [size].

    This uses a stateless shuffle of each epoch rather than `index_shuffle`, which computes single
    positions of a permutation but keeps only 8 bits of each seed, so that orders would repeat after
    256 epochs.
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
    """Return a data set of independently drawn rows, of shape [size] for each step."""
    cumulative = np.cumsum(probabilities)
    # Rounding must not leave a gap below 1 into which a draw could fall.
    cumulative[np.flatnonzero(probabilities)[-1] :] = 1.0

    def draw(step: tf.Tensor) -> tf.Tensor:
        uniform = tf.random.stateless_uniform(
            [size],
            seed=tf.stack([tf.constant(seed, tf.int64), step + (order << 40)]),
            dtype=tf.float64,
        )
        return tf.searchsorted(tf.constant(cumulative), uniform, side="right")

    return tf.data.Dataset.range(start, stop).map(draw)
