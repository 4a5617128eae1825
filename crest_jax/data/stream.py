"""Batches from records that do not fit in memory, which can start at any step.

As in `pipeline`, a stream has no state to save: what is at place i of it is computed from i. But no
example can be had by its number here, only shards can be read from their beginning. So an epoch is
its shards in a random order, a few at a time interleaved, and then shuffled within windows. To
start somewhere, whole shards are passed over without being opened, and a few of the first are read
up to the place without being decoded.

Shards are dealt out to *lanes*, each a stream of its own that gives its part of every batch. Hosts
take whole lanes: a host opens nothing but its own shards, and batches do not depend on how many
hosts there are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from etils.epath import Path

from crest_jax.data import decode, records
from crest_jax.data.decode import View
from crest_jax.data.pipeline import Batch
from crest_jax.errors import DataError

# Shards of a lane that are read at once.
INTERLEAVED = 16


class Streaming(NamedTuple):
    """How to read."""

    view: View  # what steps see of an image
    lanes: int  # divides the batch, and each set's number of shards
    window: int  # examples to shuffle among, over all lanes


def batches(
    labeled: Sequence[Path],
    unlabeled: Sequence[Path],
    streaming: Streaming,
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

    A batch has no `unlabeled_rows` to speak of: they are all 0.

    Args:
      labeled: folders of records, whose examples together are this generation's labeled set.
      unlabeled: likewise, all training images; their labels are not looked at.
      streaming: how to read.
      batch_size: labeled examples of the global batch.
      unlabeled_ratio: unlabeled examples for each labeled one; 0 for batches without any.
      seed: the run's.
      generation: from 0; each has an order of its own.
      start: first step.
      stop: one past the last step.
      process: which host this is; it gets its contiguous part of the global batch.
      processes: how many hosts there are; they divide `lanes`.

    Raises:
      DataError: a shard is missing, damaged, or shorter than its manifest says.
    """
    of_labeled = _shards_of_lanes(labeled, streaming.lanes)
    valid = of_labeled[0][0].labels
    share = streaming.lanes // processes
    lanes = range(process * share, (process + 1) * share)

    def stream(shards: Sequence[Sequence[records.Shard]], order: int, size: int) -> tf.data.Dataset:
        """What this host gives of each global batch."""
        of_lanes = [
            _lane(
                shards[lane],
                streaming,
                size=size // streaming.lanes,
                seed=_folded((seed, generation), 2 * lane + order),
                start=start,
            )
            for lane in lanes
        ]
        return tf.data.Dataset.zip(tuple(of_lanes)).map(
            lambda *parts: tuple(tf.concat(leaves, axis=0) for leaves in zip(*parts, strict=True))
        )

    labeled_stream = stream(of_labeled, 0, batch_size)
    if unlabeled_ratio:
        of_unlabeled = _shards_of_lanes(unlabeled, streaming.lanes)
        unlabeled_stream = stream(of_unlabeled, 1, batch_size * unlabeled_ratio)
    else:
        shape = (0, *labeled_stream.element_spec[0].shape[1:])
        nothing = (np.zeros(shape, np.uint8), np.zeros(0, np.int64))
        unlabeled_stream = tf.data.Dataset.from_tensors(nothing).repeat()
    dataset = tf.data.Dataset.zip(labeled_stream, unlabeled_stream).take(stop - start)
    iterator = dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    for (images, labels), (unlabeled_images, _) in _reporting(iterator, [*labeled, *unlabeled]):
        rows = np.zeros(len(unlabeled_images), np.int32)
        records.check_labels(labels, valid, " or ".join(map(str, labeled)))
        yield Batch(images, labels.astype(np.int32), unlabeled_images, rows)


def _shards_of_lanes(folders: Sequence[Path], lanes: int) -> list[list[records.Shard]]:
    """Each lane's shards that hold examples. A lane without is an error on every host."""
    of_folders = list(map(records.shards, folders))
    dealt = [
        [shard for shards in of_folders for shard in shards[lane::lanes] if shard.examples]
        for lane in range(lanes)
    ]
    for shards in dealt:
        if not shards:
            raise DataError(
                f"data.lanes={lanes} is more than there are shards with an example in "
                f"{' and '.join(map(str, folders))}: lower it, or data.shards"
            )
    return dealt


def _lane(
    shards: Sequence[records.Shard],
    streaming: Streaming,
    *,
    size: int,
    seed: tf.Tensor,
    start: int,
) -> tf.data.Dataset:
    """Images and labels of a lane from step `start` on, `size` of each a step, without end."""
    files = tf.constant([str(shard.path) for shard in shards])
    counts = np.array([shard.examples for shard in shards])
    sizes = tf.constant(counts, tf.int64)
    window = max(streaming.window // streaming.lanes, 1)
    first_epoch, place = divmod(start * size, int(counts.sum()))

    def order_of(epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(
            tf.range(len(shards)), seed=_folded(seed, epoch)
        )

    # The group of shards that the first place lies in, and what it is there.
    order = order_of(tf.constant(first_epoch, tf.int64)).numpy()
    grouped = np.add.reduceat(counts[order], np.arange(0, len(order), INTERLEAVED)).cumsum()
    first_group = int(np.searchsorted(grouped, place, side="right"))
    passed_over = place - (int(grouped[first_group - 1]) if first_group else 0)

    def records_of(epoch: tf.Tensor, group: tf.Tensor, members: tf.Tensor) -> tf.data.Dataset:
        begins = (epoch == first_epoch) & (group == first_group)
        skipped = tf.where(begins, tf.constant(passed_over, tf.int64), 0)
        windows = (
            tf.data.Dataset.from_tensor_slices(
                (tf.gather(files, members), tf.gather(sizes, members))
            )
            .interleave(
                _records,
                INTERLEAVED,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .batch(window)
            .enumerate()
            .skip(skipped // window)
        )
        group_seed = _folded(_folded(seed, epoch), group + 1)
        return (
            windows.map(
                lambda number, found: tf.random.experimental.stateless_shuffle(
                    found, seed=_folded(group_seed, number)
                )
            )
            .unbatch()
            .skip(skipped % window)
        )

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        return (
            tf.data.Dataset.from_tensor_slices(order_of(epoch))
            .batch(INTERLEAVED)
            .enumerate()
            .skip(tf.where(epoch == first_epoch, tf.constant(first_group, tf.int64), 0))
            .flat_map(lambda group, members: records_of(epoch, group, members))
        )

    def parsed(place: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, image, label = records.parse(record)
        seen = decode.trained_on(image, streaming.view, _folded(_folded(seed, -1), place))
        if not streaming.view.size:
            seen = tf.ensure_shape(seen, shards[0].image_shape)
        return seen, label

    return (
        tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        .flat_map(epoch_of)
        .enumerate(start * size)
        .map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(size, drop_remainder=True)
    )


def _records(path: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
    """Those of a shard, or of several, and an error where they are not so many.

    An epoch of none would be followed by another for ever.
    """
    return tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(count))


class Parts:
    """A split's images in its own order, decoded anew, a part at a time, whenever asked for."""

    def __init__(self, folder: Path, *, view: View, size: int, host: int = 0, hosts: int = 1):
        """Prepares to read.

        Args:
          folder: of records.
          view: of an image.
          size: of a part, in images.
          host: whose part of the shards to read.
          hosts: how many there are.
        """
        self._folder, self._view, self._size = folder, view, size
        self._host, self._hosts = host, hosts

    def share(self, host: int, hosts: int) -> "Parts":
        """What a host is to look at: contiguous shards."""
        return Parts(self._folder, view=self._view, size=self._size, host=host, hosts=hosts)

    def __iter__(self) -> Iterator[records.Images]:
        """Reads them.

        Raises:
          DataError: a shard is missing, damaged, or shorter than its manifest says.
        """

        def parsed(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            name, image, label = records.parse(record)
            return name, decode.evaluated(image, self._view), label

        shards = records.shards(self._folder)
        begin, end = (
            len(shards) * number // self._hosts for number in (self._host, self._host + 1)
        )
        files = [str(shard.path) for shard in shards[begin:end]]
        count = sum(shard.examples for shard in shards[begin:end])
        dataset = (
            _records(tf.constant(files, tf.string), tf.constant(count, tf.int64))
            .map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self._size)
            .prefetch(tf.data.AUTOTUNE)
        )
        for names, images, labels in _reporting(dataset.as_numpy_iterator(), [self._folder]):
            records.check_labels(labels, shards[0].labels, str(self._folder))
            try:
                ids = [name.decode() for name in names]
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._folder}: an id is not UTF-8: delete it and run again to make it anew"
                ) from error
            yield records.Images(ids, images, labels.astype(np.int32))


def _folded(seed: tf.Tensor | tuple[int, int], number: tf.Tensor | int) -> tf.Tensor:
    """Another seed for every number."""
    return tf.random.fold_in(tf.cast(seed, tf.int64), tf.cast(number, tf.int64))


def _reporting(iterator: Iterator, folders: Sequence[Path]) -> Iterator:
    """Turns what TensorFlow says of damaged files and images into an error of ours."""
    where = " or ".join(map(str, folders))
    try:
        yield from iterator
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"an image of {where} cannot be decoded, and was no better where it came from: "
            f"{error.message.splitlines()[0]}"
        ) from error
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        for folder in folders:
            records.check(folder)  # names the file
        # TensorFlow quotes what is no example in its message, where Python wants UTF-8.
        said = error.message if isinstance(error, tf.errors.OpError) else "one is no example"
        raise DataError(
            f"records of {where} cannot be read: {said.splitlines()[0]}; delete what is damaged "
            "and run again to make it anew"
        ) from error
