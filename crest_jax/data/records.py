"""Splits on disk: a folder of TFRecord shards with a manifest.

The manifest is written last, so a folder that has one is complete. It lists the size, digest and
number of examples of every shard, because a TFRecord reader does not notice a file that was cut
between two records.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils.epath import Path
from google.protobuf.message import DecodeError
from jaxtyping import Int, UInt8
from PIL import Image

from crest_jax import files, schema
from crest_jax.data import decode
from crest_jax.data.decode import AS_STORED, View
from crest_jax.data.sources import UNKNOWN, Example
from crest_jax.errors import DataError

FORMAT = 2
_FRAME = 16  # bytes of length and checksums that a TFRecord file adds to each record
_AT_ONCE = 256  # records fetched from TensorFlow at a time: four times as fast as one by one
_FIELDS = {
    "examples": schema.COUNT,
    # Null if the classes of the examples are not known.
    "examples_per_class": schema.or_null(schema.Each(schema.COUNT), "counts by class"),
    "class_names": schema.Each(schema.TEXT),
    "image_shape": schema.Kind(
        "null, or height, width and channels, each above 0",
        lambda shape: shape is None or _is_shape(shape),
    ),
    # The channels of the images once they are resized; given if the folder is one of a run's
    # `splits`.
    "channels": schema.Maybe(schema.Kind("1 or 3", lambda channels: channels in (1, 3))),
    "ids_sha256": schema.SHA256,  # of the shards' `ids_sha256`, one per line
    "shards": schema.Each(
        {
            "file": schema.FILE_NAME,
            "examples": schema.COUNT,
            "bytes": schema.COUNT,
            "sha256": schema.SHA256,
            "ids_sha256": schema.SHA256,  # of the ids, one per line
        }
    ),
}


class Images(NamedTuple):
    """A decoded split in memory."""

    ids: list[str]
    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]

    def __add__(self, other: "Images") -> "Images":
        """Concatenate the examples of both splits, starting with this one's."""
        if not other.ids:  # an empty split has no image shape to agree on
            return self
        return Images(
            self.ids + other.ids,
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
        )


class Encoded(NamedTuple):
    """Splits in memory whose images are decoded each time a training step uses them."""

    ids: list[str]
    images: list[bytes]
    labels: Int[np.ndarray, " examples"]
    view: View


class Writer:
    """Writes a folder of records to a given number of shards, one by one, without keeping them.

    As a context manager, it completes the folder on exit unless there was an error. Several hosts
    share the work in phases: one host calls `begin`; each host calls `add` for its own examples,
    then `close`; one host calls `finish` with what all hosts have `written`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        examples: int,
        class_names: Sequence[str],
        shards: int,
        classes_known: bool = True,
        channels: int | None = None,
        host: int = 0,
        hosts: int = 1,
    ):
        """Prepare to write; nothing is written before `begin`.

        Args:
          folder: The folder to write; an existing one is replaced.
          examples: The total number of examples; consecutive ones share a shard.
          class_names: The names of the classes, indexed by label.
          shards: The number of files.
          classes_known: Whether the examples have labels; if not, every label is `UNKNOWN`.
          channels: The channels of the images once they are resized, for the manifest.
          host: The index of this host; each host writes consecutive shards.
          hosts: The number of hosts.
        """
        self._folder = folder
        self._class_names = list(class_names)
        self._classes_known = classes_known
        self._channels = channels
        # As equal as possible, the larger shards first.
        self._sizes = [examples // shards + (shard < examples % shards) for shard in range(shards)]
        own = range(shards * host // hosts, shards * (host + 1) // hosts)
        # The indices, among all examples, of those that this host must add.
        self.rows = range(sum(self._sizes[: own.start]), sum(self._sizes[: own.stop]))
        # The manifest entries of the shards that this host has written.
        self.written: list[dict] = []
        self._to_begin = iter(own)
        self._open: _OpenShard | None = None
        self._added = 0
        self._ids: set[str] = set()

    def __enter__(self) -> "Writer":
        """Begin the folder."""
        self.begin()
        return self

    def begin(self) -> None:
        """Create an empty folder, removing whatever an earlier attempt left.

        Raises:
          WorkdirError: The folder cannot be written.
        """
        files.begin_folder(self._folder)

    def add(self, example: Example) -> None:
        """Append an example.

        Raises:
          DataError: An earlier example has the same id, the label is not valid, the image is not a
            readable JPEG or PNG, or there are more examples than this host must add.
          WorkdirError: The shard cannot be written.
        """
        if example.id in self._ids:
            raise DataError(f"{self._folder}: two examples have the same id, {example.id}")
        labels = _labels(len(self._class_names), self._classes_known)
        if example.label not in labels:
            raise DataError(f"{self._folder}: a label is not in {labels[0]}..{labels[-1]}")
        if self._added == len(self.rows):
            raise DataError(f"{self._folder}: there are more examples than {len(self.rows)}")
        shape = stored_shape(example)
        while self._open is None or self._open.examples == self._open.size:
            self._next_shard()
        self._open.add(example, shape)
        self._ids.add(example.id)
        self._added += 1

    def __exit__(self, kind, error, trace) -> None:
        """Complete the folder, unless there was an error."""
        if kind is None:
            self.close()
            self.finish(self.written)

    def close(self) -> None:
        """Close the shards of this host.

        Raises:
          DataError: Fewer examples were added than this host must add.
          WorkdirError: A shard cannot be written.
        """
        if self._added < len(self.rows):
            raise DataError(
                f"{self._folder}: there are {self._added} examples, not {len(self.rows)}"
            )
        while self._next_shard():  # creates the remaining shards, which are empty
            pass

    def finish(self, written: Sequence[dict]) -> None:
        """Write the manifest, which completes the folder.

        Args:
          written: The `written` entries of all hosts, in any order.

        Raises:
          DataError: A shard is missing, or was written twice.
          WorkdirError: The manifest cannot be written.
        """
        expected = [self._file_name(shard) for shard in range(len(self._sizes))]
        written = sorted(written, key=lambda entry: entry["file"])
        if [entry["file"] for entry in written] != expected:
            raise DataError(
                f"{self._folder}: {len(written)} shards were written, not each of "
                f"{len(expected)} once: do all hosts run the same command?"
            )
        per_class = None
        if self._classes_known:
            per_class = np.sum([entry["examples_per_class"] for entry in written], axis=0).tolist()
        shapes = {tuple(shape) for entry in written for shape in entry["image_shapes"]}
        manifest = {
            "format": FORMAT,
            "examples": sum(self._sizes),
            "examples_per_class": per_class,
            "class_names": self._class_names,
            "image_shape": list(*shapes) if len(shapes) == 1 else None,
            "ids_sha256": _digest_of_digests(entry["ids_sha256"] for entry in written),
            "shards": [
                {name: entry[name] for name in _FIELDS["shards"].schema} for entry in written
            ],
        }
        if self._channels is not None:
            manifest["channels"] = self._channels
        files.write_json(self._folder / files.MANIFEST, manifest)

    def _next_shard(self) -> bool:
        """Close the open shard and open the next; return False if there is no next one."""
        if self._open is not None:
            self.written.append(self._open.close())
            self._open = None
        shard = next(self._to_begin, None)
        if shard is None:
            return False
        path = self._folder / self._file_name(shard)
        self._open = _OpenShard(path, self._sizes[shard], len(self._class_names))
        return True

    def _file_name(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{len(self._sizes):05d}.tfrecord"


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, path: Path, size: int, classes: int):
        self.path, self.size, self.examples = path, size, 0
        with files.writing(self.path):
            self._file = tf.io.TFRecordWriter(str(path))
        self._ids = _IdDigest()
        self._per_class = np.zeros(classes, np.int64)
        self._shapes: set[tuple[int, int, int]] = set()

    def add(self, example: Example, shape: tuple[int, int, int]) -> None:
        with files.writing(self.path):
            self._file.write(_serialize(example))
        self._ids.add(example.id)
        if example.label != UNKNOWN:
            self._per_class[example.label] += 1
        self._shapes.add(shape)
        self.examples += 1

    def close(self) -> dict:
        """Close the file and return its entry for `Writer.written`."""
        with files.writing(self.path):
            self._file.close()
        return {
            "file": self.path.name,
            "examples": self.examples,
            "bytes": files.size(self.path),
            "sha256": files.sha256(self.path),
            "ids_sha256": self._ids.hexdigest(),
            "examples_per_class": self._per_class.tolist(),
            "image_shapes": sorted(self._shapes),
        }


def write(
    folder: Path, examples: Iterable[Example], *, class_names: Sequence[str], shards: int
) -> None:
    """Write `examples`, which must all fit in memory, with a `Writer`.

    Raises:
      DataError: As for `Writer.add`.
    """
    examples = list(examples)
    with Writer(folder, examples=len(examples), class_names=class_names, shards=shards) as writer:
        for example in examples:
            writer.add(example)


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a folder of records.

    Raises:
      DataError: The folder has no manifest, or its manifest is unreadable, malformed, or of another
        format version.
    """
    path = folder / files.MANIFEST
    try:
        manifest = files.parse_json(files.read_bytes(path))
        found = manifest["format"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", _way_out(folder)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable manifest", _way_out(folder)) from error
    if found != FORMAT:
        raise DataError(
            f"{path} has format {schema.shown(found)}, this version reads {FORMAT}: "
            "continue with the version that wrote it"
        )
    for wrong in schema.mismatches(manifest, _FIELDS):
        raise DataError(f"manifest {path} is not usable ({wrong})", _way_out(folder))
    per_class = manifest["examples_per_class"]
    if per_class is not None and len(per_class) != len(manifest["class_names"]):
        raise DataError(
            f"manifest {path} has {len(per_class)} counts for "
            f"{len(manifest['class_names'])} classes",
            _way_out(folder),
        )
    return manifest


class Shard(NamedTuple):
    """One TFRecord file of a folder."""

    path: Path
    examples: int
    labels: range  # the labels that are valid in the folder
    # Height, width and channels of all images in the folder; None if they differ.
    image_shape: tuple[int, int, int] | None


def shards(folder: Path) -> list[Shard]:
    """Return the shards of a folder, after checking that none is missing or truncated.

    Raises:
      DataError: A shard is missing or truncated, the shards do not add up to the manifest's number
        of examples, or the folder has no usable manifest.
    """
    manifest = read_manifest(folder)
    shape = manifest["image_shape"]
    labels = _labels(len(manifest["class_names"]), manifest["examples_per_class"] is not None)
    found = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        _check_size(path, entry)
        found.append(Shard(path, entry["examples"], labels, tuple(shape) if shape else None))
    listed = sum(shard.examples for shard in found)
    if listed != manifest["examples"]:
        raise DataError(
            f"{_name(folder)}: the manifest's examples is {manifest['examples']}, but its shards "
            f"have {listed}",
            _way_out(folder),
        )
    return found


def check(folder: Path) -> None:
    """Check that the shards of a folder are, byte for byte, what was written.

    Raises:
      DataError: A shard is missing or damaged, or the folder has no usable manifest.
    """
    for entry in read_manifest(folder)["shards"]:
        _verify(folder / entry["file"], entry)


def check_labels(labels: Int[np.ndarray, " examples"], valid: range, where: str) -> None:
    """Check that all labels are in the valid range.

    Args:
      labels: The labels to check.
      valid: The labels that are allowed.
      where: The name of the data, for the error message.

    Raises:
      DataError: A label is outside the range.
    """
    wrong = labels[(labels < valid.start) | (labels >= valid.stop)]
    if len(wrong):
        raise DataError(
            f"{where}: an example has label {wrong[0]}, which is not in {valid[0]}..{valid[-1]}",
            "delete it and run again to make it anew",
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


def read(folder: Path, rows: range | None = None) -> Iterator[Example]:
    """Yield the examples of a folder in the order in which they were written.

    Args:
      folder: The folder of records.
      rows: The consecutive examples to yield; all by default. With a range, only the shards that
        hold some of it are opened, and the manifest's totals are not checked.

    Raises:
      DataError: A shard is missing, truncated, changed, or disagrees with the manifest.
    """
    manifest = read_manifest(folder)
    known = manifest["examples_per_class"] is not None
    labels = _labels(len(manifest["class_names"]), known)
    per_class = np.zeros(len(manifest["class_names"]), np.int64)
    digests = []
    count = end = 0
    for entry in manifest["shards"]:
        begin, end = end, end + entry["examples"]
        if rows is None:
            wanted = range(begin, end)
        else:
            wanted = range(max(begin, rows.start), min(end, rows.stop))
            if not wanted:
                continue
        ids = _IdDigest()
        for row, example in enumerate(_read_shard(folder, entry, labels), start=begin):
            ids.add(example.id)
            count += 1
            if known:
                per_class[example.label] += 1
            if row in wanted:
                yield example
        digests.append(ids.hexdigest())
    if rows is not None:
        return
    found = {
        "examples": count,
        "examples_per_class": per_class.tolist() if known else None,
        "ids_sha256": _digest_of_digests(digests),
    }
    for field, value in found.items():
        if manifest[field] != value:
            raise DataError(
                f"{_name(folder)}: the manifest's {field} is {manifest[field]}, but its records "
                f"give {value}",
                _way_out(folder),
            )


def _read_shard(folder: Path, entry: dict, labels: range) -> Iterator[Example]:
    path = folder / entry["file"]
    _verify(path, entry)
    count = 0
    batches = tf.data.TFRecordDataset(str(path)).batch(_AT_ONCE).as_numpy_iterator()
    for record in _whole(path, itertools.chain.from_iterable(batches)):
        try:
            example = _deserialize(record)
        except (DecodeError, IndexError, UnicodeDecodeError) as error:
            raise DataError(
                f"{_name(path)}: record {count} is no example", _way_out(folder)
            ) from error
        if example.label not in labels:
            raise DataError(
                f"{_name(path)}: {example.id} has label {example.label}, but by the manifest a "
                f"label is in {labels[0]}..{labels[-1]}",
                _way_out(folder),
            )
        count += 1
        yield example
    if count != entry["examples"]:
        raise DataError(
            f"{_name(path)} holds {count} examples, its manifest says {entry['examples']}",
            _way_out(folder),
        )


def _whole(path: Path, found: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the records found, turning TensorFlow's read errors into a DataError."""
    try:
        yield from found
    except tf.errors.OpError as error:
        raise DataError(
            f"{_name(path)} holds no whole records ({files.reason(error)})", _way_out(path.parent)
        ) from error


def load(folder: Path, view: View = AS_STORED) -> Images:
    """Read and decode a whole folder.

    Args:
      folder: The folder of records.
      view: The view of an image that evaluations use. If it keeps images as they are stored, they
        must all have the same shape.

    Raises:
      DataError: As for `read`; or images differ in shape, or cannot be decoded.
    """
    examples = list(read(folder))
    shape = (0, 0, 0)
    if examples:
        shape = (*[view.size] * 2, view.channels) if view.size else image_shape(folder, 0)
    images = np.zeros([0, *shape], np.uint8)
    encoded = tf.constant([example.image for example in examples], tf.string)
    decoded = (
        tf.data.Dataset.from_tensor_slices(encoded)
        .map(
            partial(decode.evaluated, view=view),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .as_numpy_iterator()
    )
    for row, example in enumerate(examples):
        try:
            image = next(decoded)
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{_name(folder)}: image {example.id} cannot be decoded ({files.reason(error)})"
            ) from error
        if image.shape != shape:
            raise DataError(
                f"{_name(folder)}: image {example.id} has shape {image.shape}, its manifest says "
                f"{shape}",
                _way_out(folder),
            )
        if row == 0:  # allocate memory only once an image has been found to have this shape
            images = np.zeros([len(examples), *shape], np.uint8)
        images[row] = image
    labels = np.array([example.label for example in examples], np.int32)
    return Images([example.id for example in examples], images, labels)


def load_encoded(folders: Sequence[Path], view: View) -> Encoded:
    """Read whole folders, one after the other, without decoding the images.

    Args:
      folders: The folders of records.
      view: The view of an image that training steps use.

    Raises:
      DataError: As for `read`.
    """
    examples = [example for folder in folders for example in read(folder)]
    labels = np.array([example.label for example in examples], np.int32)
    return Encoded(
        [example.id for example in examples], [example.image for example in examples], labels, view
    )


def channels_of(folder: Path) -> int:
    """Return the number of channels that images of one of a run's splits have once resized.

    Raises:
      DataError: The folder has no usable manifest.
    """
    return read_manifest(folder).get("channels", 3)


def image_shape(folder: Path, image_size: int) -> tuple[int, int, int]:
    """Return height, width and channels of the decoded images of one of a run's splits.

    Args:
      folder: The folder of records.
      image_size: The side in pixels to which images are resized, or 0 to keep them as stored.

    Raises:
      DataError: `image_size` is 0 and the images differ in shape or there are none; or the folder
        has no usable manifest.
    """
    if image_size:
        return image_size, image_size, channels_of(folder)
    shape = read_manifest(folder)["image_shape"]
    if shape is None:
        raise DataError(
            f"{_name(folder)}: images differ in shape: set --config.data.image_size to have them "
            "resized"
        )
    height, width, channels = shape
    return height, width, channels


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(schema.COUNT.fits(side) and side for side in value)
    )


def _serialize(example: Example) -> bytes:
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.id.encode()])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def _deserialize(record: bytes) -> Example:
    feature = tf.train.Example.FromString(record).features.feature
    return Example(
        feature["id"].bytes_list.value[0].decode(),
        feature["image"].bytes_list.value[0],
        feature["label"].int64_list.value[0],
    )


def _labels(classes: int, known: bool) -> range:
    """Return the range of valid labels: the classes, or only `UNKNOWN`."""
    return range(classes) if known else range(UNKNOWN, UNKNOWN + 1)


def bytes_of(example: Example) -> int:
    """Return the size of an example in a TFRecord file, in bytes."""
    return len(_serialize(example)) + _FRAME


def stored_shape(example: Example) -> tuple[int, int, int]:
    """Return height, width and channels of an image, read from its header.

    Raises:
      DataError: The image is not a readable JPEG or PNG.
    """
    try:
        with Image.open(io.BytesIO(example.image), formats=("JPEG", "PNG")) as image:
            decode.check_pixels(image.height, image.width)
            return image.height, image.width, _decoded_channels(image)
    except Exception as error:  # damaged files make parsers raise all kinds of exceptions
        raise DataError(
            f"{example.id} is not a JPEG or PNG that can be read ({files.reason(error)})"
        ) from error


def _decoded_channels(image: Image.Image) -> int:
    """Return the number of channels that TensorFlow decodes an image to.

    TensorFlow converts palettes to RGB or RGBA, and CMYK to RGB.
    """
    match image.mode:
        case "P":
            return 4 if image.has_transparency_data else 3
        case "CMYK":
            return 3
    return len(image.getbands())


class _IdDigest:
    """The SHA-256 of ids, one per line."""

    def __init__(self):
        self._sha256 = hashlib.sha256()
        self._between = b""

    def add(self, name: str) -> None:
        self._sha256.update(self._between + name.encode())
        self._between = b"\n"

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _digest_of_digests(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _verify(path: Path, entry: dict) -> None:
    _check_size(path, entry)
    digest, fits = _digest_of_records(path)
    if digest != entry["sha256"]:
        raise DataError(f"{_name(path)} has changed since written", _way_out(path.parent))
    if not fits:
        raise DataError(
            f"{_name(path)} has a record that is said to be longer than the file",
            _way_out(path.parent),
        )


def _digest_of_records(path: Path) -> tuple[str, bool]:
    """Return the SHA-256 of a file of records, and whether every record fits inside the file.

    TensorFlow allocates as many bytes as a record's header states before it checks that they are
    there, and ends the process if the allocation fails.
    """
    digest = hashlib.sha256()
    left, fits = files.size(path), True
    with files.reading(path), path.open("rb") as file:
        while left:
            head = file.read(min(8, left))
            digest.update(head)
            left -= len(head)
            rest = int.from_bytes(head, "little") + _FRAME - 8
            fits = fits and rest <= left
            left -= (rest := min(rest, left))
            while rest:
                piece = file.read(min(rest, 1 << 20))
                digest.update(piece)
                rest -= len(piece)
    return digest.hexdigest(), fits


def _check_size(path: Path, entry: dict) -> None:
    try:
        size = files.size(path)
    except FileNotFoundError as error:
        raise DataError(f"{_name(path)} is missing", _way_out(path.parent)) from error
    if size < entry["bytes"]:
        raise DataError(
            f"{_name(path)} is truncated at byte {size} of {entry['bytes']}", _way_out(path.parent)
        )


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _way_out(folder: Path) -> str:
    return f"delete {folder} and run again to make it anew"
