"""Batches from records that do not fit in memory, which can start at any step.

As in `pipeline`, a stream has no state that would have to be saved: the example at position i is
computed from i. Here, however, examples cannot be accessed by index; shards can only be read from
their beginning. An epoch is therefore its shards in a random order, interleaved a few at a time and
then shuffled within windows. To start in the middle, whole shards are skipped without being opened,
and the first few that are opened are read up to the position without being decoded.

Shards are dealt out to *lanes*, each a separate stream that contributes its share of every batch.
Hosts take whole lanes, so a host opens only its own shards, and batches do not depend on the number
of hosts.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from etils.epath import Path

from crest_jax.data import decode, manifest
from crest_jax.data.manifest import Shard
from crest_jax.data.pipeline import Batch
from crest_jax.data.records import Images
from crest_jax.data.tensorflow import tf, without_autograph
from crest_jax.data.views import View
from crest_jax.errors import DataError

_Item = TypeVar("_Item")

# The number of shards of a lane that are read at once.
INTERLEAVED = 16


class Streaming(NamedTuple):
    """The settings for reading a stream."""

    view: View  # the view of an image that training steps use
    lanes: int  # the number of lanes; divides the batch size and each set's number of shards
    window: int  # the number of examples in a shuffle window, over all lanes


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
    """Yield the batches of steps `start` to `stop - 1`.

    The `unlabeled_rows` of a batch are a placeholder: they are all 0.

    Args:
      labeled: the folders of records whose examples make up this generation's labeled set.
      unlabeled: the folders of records of the unlabeled stream; their labels are ignored.
      streaming: the settings for reading.
      batch_size: the number of labeled examples in the global batch.
      unlabeled_ratio: the number of unlabeled examples per labeled one; 0 for none.
      seed: the seed of the run.
      generation: the generation, from 0; each has its own order.
      start: the first step.
      stop: one past the last step.
      process: the index of this host, which gets its contiguous share of the global batch.
      processes: the number of hosts; must divide `lanes`.

    Raises:
      DataError: A shard is missing, damaged, or shorter than its manifest says; an image cannot be
        decoded; a label is not valid; or a lane has no examples.
    """
    labeled_shards = _shards_of_lanes(labeled, streaming.lanes)
    valid = labeled_shards[0][0].labels
    share = streaming.lanes // processes
    lanes = range(process * share, (process + 1) * share)

    @without_autograph
    def stream(shards: Sequence[Sequence[Shard]], order: int, size: int) -> tf.data.Dataset:
        """Return a data set of this host's share of each global batch."""
        lane_streams = [
            _lane(
                shards[lane],
                streaming,
                size=size // streaming.lanes,
                seed=_folded((seed, generation), 2 * lane + order),
                start=start,
            )
            for lane in lanes
        ]
        return tf.data.Dataset.zip(tuple(lane_streams)).map(
            lambda *lanes: tuple(tf.concat(leaves, axis=0) for leaves in zip(*lanes, strict=True))
        )

    labeled_stream = stream(labeled_shards, 0, batch_size)
    if unlabeled_ratio:
        unlabeled_shards = _shards_of_lanes(unlabeled, streaming.lanes)
        unlabeled_stream = stream(unlabeled_shards, 1, batch_size * unlabeled_ratio)
    else:
        shape = (0, *labeled_stream.element_spec[0].shape[1:])
        nothing = (np.zeros(shape, np.uint8), np.zeros(0, np.int64))
        unlabeled_stream = tf.data.Dataset.from_tensors(nothing).repeat()
    dataset = tf.data.Dataset.zip(labeled_stream, unlabeled_stream).take(stop - start)
    iterator = dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    for (images, labels), (unlabeled_images, _) in _reporting(iterator, [*labeled, *unlabeled]):
        rows = np.zeros(len(unlabeled_images), np.int32)
        manifest.check_labels(labels, valid, " or ".join(map(str, labeled)))
        yield Batch(images, labels.astype(np.int32), unlabeled_images, rows)


def _shards_of_lanes(folders: Sequence[Path], lanes: int) -> list[list[Shard]]:
    """Return the non-empty shards of each lane.

    All lanes are checked, so that a lane without examples is an error on every host.

    Raises:
      DataError: A lane has no shard with an example.
    """
    folder_shards = list(map(manifest.shards, folders))
    dealt = [
        [shard for shards in folder_shards for shard in shards[lane::lanes] if shard.examples]
        for lane in range(lanes)
    ]
    for shards in dealt:
        if not shards:
            raise DataError(
                f"data.lanes={lanes} is more than the number of shards with an example in "
                f"{' and '.join(map(str, folders))}: lower --config.data.lanes"
            )
    return dealt


def _lane(
    shards: Sequence[Shard],
    streaming: Streaming,
    *,
    size: int,
    seed: tf.Tensor,
    start: int,
) -> tf.data.Dataset:
    """Return an endless data set of a lane's images and labels, `size` a step from step `start`."""
    files = tf.constant([str(shard.path) for shard in shards])
    counts = np.array([shard.examples for shard in shards])
    sizes = tf.constant(counts, tf.int64)
    window = max(streaming.window // streaming.lanes, 1)
    first_epoch, place = divmod(start * size, int(counts.sum()))

    def order_of(epoch: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(
            tf.range(len(shards)), seed=_folded(seed, epoch)
        )

    # The group of interleaved shards that the first position lies in, and the offset within it.
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
        _, image, label = parse(record)
        seen = decode.decode_for_training(image, streaming.view, _folded(_folded(seed, -1), place))
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
    """Return a data set of the records of one or more shards that fails unless there are `count`.

    Without this check, if all shards turned out empty, empty epochs would follow each other for
    ever.
    """
    return tf.data.TFRecordDataset(path).apply(tf.data.experimental.assert_cardinality(count))


class StreamedChunks:
    """A split in its original order, read and decoded a chunk at a time on every iteration."""

    def __init__(self, folder: Path, *, view: View, size: int, host: int = 0, hosts: int = 1):
        """Prepare to read; nothing is read before iteration.

        Args:
          folder: the folder of records.
          view: the view of an image that evaluations use.
          size: the number of images in a chunk.
          host: the index of the host whose share of the shards to read.
          hosts: the number of hosts.
        """
        self._folder, self._view, self._size = folder, view, size
        self._host, self._hosts = host, hosts

    def share(self, host: int, hosts: int) -> "StreamedChunks":
        """Return the chunks that a host must process, from contiguous shards."""
        return StreamedChunks(
            self._folder, view=self._view, size=self._size, host=host, hosts=hosts
        )

    def __iter__(self) -> Iterator[Images]:
        """Yield the chunks.

        Raises:
          DataError: A shard is missing, damaged, or shorter than its manifest says; an image cannot
            be decoded; or a label or id is not valid.
        """
        shards = manifest.shards(self._folder)
        begin, end = (
            len(shards) * number // self._hosts for number in (self._host, self._host + 1)
        )
        dataset = self._decoded(shards[begin:end])
        for names, images, labels in _reporting(dataset.as_numpy_iterator(), [self._folder]):
            manifest.check_labels(labels, shards[0].labels, str(self._folder))
            try:
                ids = [name.decode() for name in names]
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._folder}: an id is not UTF-8: delete it and run again to recreate it"
                ) from error
            yield Images(ids, images, labels.astype(np.int32))

    @without_autograph
    def _decoded(self, shards: Sequence[Shard]) -> tf.data.Dataset:
        """Return a data set of the ids, images and labels of some shards, a chunk at a time."""

        def parsed(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            name, image, label = parse(record)
            return name, decode.decode_for_evaluation(image, self._view), label

        files = tf.constant([str(shard.path) for shard in shards], tf.string)
        count = tf.constant(sum(shard.examples for shard in shards), tf.int64)
        return (
            _records(files, count)
            .map(parsed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self._size)
            .prefetch(tf.data.AUTOTUNE)
        )


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the id, encoded image and label of a record."""
    kinds = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_single_example(record, kinds)
    return parsed["id"], parsed["image"], parsed["label"]


def _folded(seed: tf.Tensor | tuple[int, int], number: tf.Tensor | int) -> tf.Tensor:
    """Derive a different seed for every number."""
    return tf.random.fold_in(tf.cast(seed, tf.int64), tf.cast(number, tf.int64))


def _reporting(iterator: Iterator[_Item], folders: Sequence[Path]) -> Iterator[_Item]:
    """Re-raise TensorFlow's errors about damaged files and images as DataError."""
    where = " or ".join(map(str, folders))
    try:
        yield from iterator
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"an image of {where} cannot be decoded, as it could not where it was copied from: "
            f"{error.message.splitlines()[0]}"
        ) from error
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        for folder in folders:
            manifest.check(folder)  # if it fails, its error names the damaged file
        # TensorFlow quotes a record that is not an example in its message, which Python then fails
        # to decode as UTF-8.
        said = error.message if isinstance(error, tf.errors.OpError) else "one is not an example"
        raise DataError(
            f"records of {where} cannot be read: {said.splitlines()[0]}; delete the damaged folder "
            "and run again to recreate it"
        ) from error
