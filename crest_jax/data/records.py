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


def write(
    folder: Path, examples: Iterable[Example], *, class_names: Sequence[str], shards: int
) -> None:
    """Writes `examples` as `folder`, complete or not at all; their order is kept.

    Raises:
      DataError: two examples have the same id, or a label that is not a class.
    """
    examples = list(examples)
    ids = [example.id for example in examples]
    labels = np.array([example.label for example in examples], np.int64)
    if len(set(ids)) != len(ids):
        raise DataError(f"{folder}: two examples have the same id")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise DataError(f"{folder}: a label is not in 0..{len(class_names) - 1}")

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries = []
    for shard, rows in enumerate(np.array_split(np.arange(len(examples)), shards)):
        path = partial / f"shard-{shard:05d}-of-{shards:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in rows:
                writer.write(_serialize(examples[row]))
        content = path.read_bytes()
        entries.append(
            {"file": path.name, "examples": len(rows), "bytes": len(content),
             "sha256": hashlib.sha256(content).hexdigest()}
        )  # fmt: skip
    manifest = {
        "format": FORMAT,
        "examples": len(examples),
        "examples_per_class": np.bincount(labels, minlength=len(class_names)).tolist(),
        "class_names": list(class_names),
        "image_shape": _image_shape(examples),
        "ids_sha256": _digest_ids(ids),
        "shards": entries,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    partial.rename(folder)


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


def read(folder: Path) -> Iterator[Example]:
    """Yields the examples of a folder in the order in which they were written.

    Raises:
      DataError: a shard is missing, truncated, changed, or disagrees with the manifest.
    """
    manifest = read_manifest(folder)
    ids = []
    per_class = [0] * len(manifest["class_names"])
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        _verify(path, entry)
        count = 0
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            example = _parse(record)
            ids.append(example.id)
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
        "examples": len(ids),
        "examples_per_class": per_class,
        "ids_sha256": _digest_ids(ids),
    }
    for field, value in found.items():
        if manifest[field] != value:
            raise DataError(
                f"{_name(folder)}: the manifest's {field} is {manifest[field]}, but its records "
                f"give {value}: {_way_out(folder)}"
            )


def load(folder: Path) -> Images:
    """Reads and decodes a whole folder, whose images must all have one shape.

    Raises:
      DataError: as `read`; or images differ in shape, or cannot be decoded.
    """
    examples = list(read(folder))
    shape = read_manifest(folder)["image_shape"] if examples else (0, 0, 0)
    if shape is None:
        raise DataError(f"{_name(folder)}: images differ in shape, and must be resized to one")
    images = np.zeros([len(examples), *shape], np.uint8)
    for row, example in enumerate(examples):
        try:
            image = tf.io.decode_image(example.image, expand_animations=False).numpy()
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


def _serialize(example: Example) -> bytes:
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.id.encode()])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _parse(record: bytes) -> Example:
    feature = tf.train.Example.FromString(record).features.feature
    return Example(
        feature["id"].bytes_list.value[0].decode(),
        feature["image"].bytes_list.value[0],
        feature["label"].int64_list.value[0],
    )


def _image_shape(examples: Sequence[Example]) -> list[int] | None:
    """Height, width and channels that all images share, read from their headers, or None."""
    shapes = set()
    for example in examples:
        try:
            with Image.open(io.BytesIO(example.image)) as image:
                shapes.add((image.height, image.width, len(image.getbands())))
        except OSError as error:
            raise DataError(f"{example.id} is not an image that can be read") from error
    return list(shapes.pop()) if len(shapes) == 1 else None


def _digest_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _verify(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise DataError(f"{_name(path)} is missing: {_way_out(path.parent)}")
    content = path.read_bytes()
    if len(content) < entry["bytes"]:
        raise DataError(
            f"{_name(path)} is truncated at byte {len(content)} of {entry['bytes']}: "
            f"{_way_out(path.parent)}"
        )
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DataError(f"{_name(path)} has changed since written: {_way_out(path.parent)}")


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _way_out(folder: Path) -> str:
    return f"delete {folder} and run again to make it anew"
