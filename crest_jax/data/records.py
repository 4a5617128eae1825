"""Splits on disk: a folder of TFRecord shards with a manifest.

The folder appears under its name only when it is whole. The manifest lists every shard with its
size, digest and count, because a TFRecord reader does not notice a file that was cut between two
records.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8
from PIL import Image

from crest_jax.data import decode
from crest_jax.data.sources import Example
from crest_jax.errors import DataError

MANIFEST = "manifest.json"
FORMAT = 1
_FIELDS = {
    "examples": int,
    "examples_per_class": list,
    "class_names": list,
    "image_shape": list | None,
    "ids_sha256": str,
    "shards": list,
}


class Images(NamedTuple):
    """A decoded split in memory."""

    ids: list[str]
    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]

    def __add__(self, other: "Images") -> "Images":
        """All examples of both, this one's first."""
        if not other.ids:  # an empty split has no image shape to agree on
            return self
        return Images(
            self.ids + other.ids,
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
        )


class Writer:
    """Writes a folder of records one by one, in as many shards as said, without holding them.

    A context manager: the folder appears, complete, when it is left without an error. Several hosts
    go through the same in phases: one `begin`s, all `add` every example, of which each keeps those
    of its own shards, one `finish`es with the `entries` of all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        examples: int,
        class_names: Sequence[str],
        shards: int,
        host: int = 0,
        hosts: int = 1,
    ):
        """Prepares to write.

        Args:
          folder: must not be there yet.
          examples: how many there will be; consecutive ones share a shard.
          class_names: by label.
          shards: how many files.
          host: which this is; shard i is written by host i modulo the number of hosts.
          hosts: how many.
        """
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._class_names = list(class_names)
        # As even as can be, the larger ones first.
        self._sizes = [examples // shards + (shard < examples % shards) for shard in range(shards)]
        self._labels = np.zeros(len(class_names), np.int64)
        self._shapes: set[tuple[int, int, int]] = set()
        self._ids: set[str] = set()
        self._digest = _IdDigest()
        # What the manifest says of the shards that this host has written.
        self.entries: list[dict] = []
        self._host, self._hosts = host, hosts
        self._shard = -1  # the one that examples go into
        self._file: tf.io.TFRecordWriter | None = None  # where it is this host's
        self._written = 0  # examples of this shard

    def __enter__(self) -> "Writer":
        """Begins."""
        self.begin()
        return self

    def begin(self) -> None:
        """Begins anew, whatever an earlier attempt has left."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def add(self, example: Example) -> None:
        """Appends an example.

        Raises:
          DataError: its id was there before, its label is not a class, it is no image, or there
            are more examples than were announced.
        """
        if example.id in self._ids:
            raise DataError(f"{self._folder}: two examples have the same id, {example.id}")
        if not 0 <= example.label < len(self._class_names):
            raise DataError(f"{self._folder}: a label is not in 0..{len(self._class_names) - 1}")
        if self._shard < 0:
            self._begin_shards()
        if self._shard == len(self._sizes):
            raise DataError(f"{self._folder}: there are more examples than {sum(self._sizes)}")
        self._shapes.add(_stored_shape(example))
        if self._file:
            self._file.write(_serialize(example))
        self._ids.add(example.id)
        self._digest.add(example.id)
        self._labels[example.label] += 1
        self._written += 1
        if self._written == self._sizes[self._shard]:
            self._end_shard()
            self._begin_shards()

    def __exit__(self, kind, error, trace) -> None:
        """Names the folder, unless there was an error."""
        if kind is not None:
            if self._file:
                self._file.close()
            return
        self.close()
        self.finish(self.entries)

    def close(self) -> None:
        """Ends the shards of this host.

        Raises:
          DataError: there are fewer examples than were announced.
        """
        if self._shard < 0:
            self._begin_shards()
        if self._shard < len(self._sizes):
            if self._file:
                self._file.close()
            raise DataError(
                f"{self._folder}: there are {len(self._ids)} examples, not {sum(self._sizes)}"
            )

    def finish(self, entries: Sequence[dict]) -> None:
        """Writes the manifest, and names the folder.

        Args:
          entries: of all shards, in any order.

        Raises:
          DataError: a shard is missing, or was written twice.
        """
        expected = [self._file_name(shard) for shard in range(len(self._sizes))]
        entries = sorted(entries, key=lambda entry: entry["file"])
        if [entry["file"] for entry in entries] != expected:
            raise DataError(
                f"{self._folder}: {len(entries)} shards were written, not each of "
                f"{len(expected)} once: do all hosts run the same command?"
            )
        manifest = {
            "format": FORMAT,
            "examples": len(self._ids),
            "examples_per_class": self._labels.tolist(),
            "class_names": self._class_names,
            "image_shape": list(*self._shapes) if len(self._shapes) == 1 else None,
            "ids_sha256": self._digest.hexdigest(),
            "shards": entries,
        }
        (self._partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        self._partial.rename(self._folder)

    def _begin_shards(self) -> None:
        """Opens the next shard that is not to be empty, if it is this host's."""
        while self._shard < len(self._sizes):
            self._shard += 1
            self._written = 0
            if self._shard == len(self._sizes):
                return
            if self._shard % self._hosts == self._host:
                path = self._partial / self._file_name(self._shard)
                self._file = tf.io.TFRecordWriter(str(path))
            if self._sizes[self._shard] > 0:
                return
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        path = self._partial / self._file_name(self._shard)
        self.entries.append(
            {"file": path.name, "examples": self._written, "bytes": path.stat().st_size,
             "sha256": _digest_file(path)}
        )  # fmt: skip

    def _file_name(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{len(self._sizes):05d}.tfrecord"


def write(
    folder: Path, examples: Iterable[Example], *, class_names: Sequence[str], shards: int
) -> None:
    """Writes `examples`, all of which fit in memory, as `Writer` does.

    Raises:
      DataError: as `Writer.add`.
    """
    examples = list(examples)
    with Writer(folder, examples=len(examples), class_names=class_names, shards=shards) as writer:
        for example in examples:
            writer.add(example)


def read_manifest(folder: Path) -> dict:
    """Returns the manifest of a folder that `write` made.

    Raises:
      DataError: there is none, or it is not readable.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"]
        missing = [name for name in _FIELDS if not isinstance(manifest.get(name), _FIELDS[name])]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {_way_out(folder)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path} is not a readable manifest: {_way_out(folder)}") from error
    if found != FORMAT:
        raise DataError(
            f"{path} has format {found}, this version reads {FORMAT}: "
            "continue with the version that wrote it"
        )
    if missing:
        raise DataError(f"manifest {path} lacks a usable {', '.join(missing)}: {_way_out(folder)}")
    return manifest


class Shard(NamedTuple):
    """One of a folder's files."""

    path: Path
    examples: int
    image_shape: tuple[int, int, int] | None  # that all images of the folder share


def shards(folder: Path) -> list[Shard]:
    """Returns a folder's files, none of which is missing or cut short.

    Raises:
      DataError: one is; or there is no usable manifest.
    """
    manifest = read_manifest(folder)
    shape = manifest["image_shape"]
    found = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        _check_size(path, entry)
        found.append(Shard(path, entry["examples"], tuple(shape) if shape else None))
    return found


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Id, encoded image and label of a record."""
    kinds = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_single_example(record, kinds)
    return parsed["id"], parsed["image"], parsed["label"]


def read(folder: Path) -> Iterator[Example]:
    """Yields the examples of a folder in the order in which they were written.

    Raises:
      DataError: a shard is missing, truncated, changed, or disagrees with the manifest.
    """
    manifest = read_manifest(folder)
    ids = _IdDigest()
    per_class = [0] * len(manifest["class_names"])
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        _verify(path, entry)
        count = 0
        for name, image, label in tf.data.TFRecordDataset(str(path)).map(parse).as_numpy_iterator():
            example = Example(name.decode(), image, int(label))
            ids.add(example.id)
            if not 0 <= example.label < len(per_class):
                raise DataError(
                    f"{_name(path)}: {example.id} has label {example.label}, but the manifest has "
                    f"{len(per_class)} class_names: {_way_out(folder)}"
                )
            per_class[example.label] += 1
            count += 1
            yield example
        if count != entry["examples"]:
            raise DataError(
                f"{_name(path)} holds {count} examples, its manifest says {entry['examples']}: "
                f"{_way_out(folder)}"
            )
    found = {
        "examples": sum(per_class),
        "examples_per_class": per_class,
        "ids_sha256": ids.hexdigest(),
    }
    for field, value in found.items():
        if manifest[field] != value:
            raise DataError(
                f"{_name(folder)}: the manifest's {field} is {manifest[field]}, but its records "
                f"give {value}: {_way_out(folder)}"
            )


def load(folder: Path, *, image_size: int = 0) -> Images:
    """Reads and decodes a whole folder.

    Args:
      folder: of records.
      image_size: side of the central square that each image becomes; 0 takes images as they are
        stored, which must then all have one shape.

    Raises:
      DataError: as `read`; or images differ in shape, or cannot be decoded.
    """
    examples = list(read(folder))
    shape = image_shape(folder, image_size) if examples else (0, 0, 0)
    images = np.zeros([len(examples), *shape], np.uint8)
    for row, example in enumerate(examples):
        try:
            if image_size:
                image = decode.central(example.image, image_size).numpy()
            else:
                image = decode.stored(example.image).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise DataError(f"{_name(folder)}: image {example.id} cannot be decoded") from error
        if image.shape != images.shape[1:]:
            raise DataError(
                f"{_name(folder)}: image {example.id} has shape {image.shape}, its manifest says "
                f"{images.shape[1:]}: {_way_out(folder)}"
            )
        images[row] = image
    labels = np.array([example.label for example in examples], np.int32)
    return Images([example.id for example in examples], images, labels)


def image_shape(folder: Path, image_size: int) -> tuple[int, int, int]:
    """Height, width and channels of a folder's images, once they are decoded.

    Args:
      folder: of records.
      image_size: side in pixels, or 0 for images as they are stored.

    Raises:
      DataError: they differ, or there are none; or there is no usable manifest.
    """
    if image_size:
        return image_size, image_size, 3
    shape = read_manifest(folder)["image_shape"]
    if shape is None:
        raise DataError(
            f"{_name(folder)}: images differ in shape: set --config.data.image_size to have them "
            "resized"
        )
    height, width, channels = shape
    return height, width, channels


def _serialize(example: Example) -> bytes:
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.id.encode()])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def _stored_shape(example: Example) -> tuple[int, int, int]:
    """Height, width and channels of an image, read from its header."""
    try:
        with Image.open(io.BytesIO(example.image)) as image:
            return image.height, image.width, len(image.getbands())
    except OSError as error:
        raise DataError(f"{example.id} is not an image that can be read") from error


class _IdDigest:
    """SHA-256 of ids, one to a line."""

    def __init__(self):
        self._sha256 = hashlib.sha256()
        self._between = b""

    def add(self, name: str) -> None:
        self._sha256.update(self._between + name.encode())
        self._between = b"\n"

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, entry: dict) -> None:
    _check_size(path, entry)
    if _digest_file(path) != entry["sha256"]:
        raise DataError(f"{_name(path)} has changed since written: {_way_out(path.parent)}")


def _check_size(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise DataError(f"{_name(path)} is missing: {_way_out(path.parent)}")
    size = path.stat().st_size
    if size < entry["bytes"]:
        raise DataError(
            f"{_name(path)} is truncated at byte {size} of {entry['bytes']}: "
            f"{_way_out(path.parent)}"
        )


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _way_out(folder: Path) -> str:
    return f"delete {folder} and run again to make it anew"
