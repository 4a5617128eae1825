"""The manifest of a folder of records, which describes its shards so that they can be checked.

The manifest is written last, so a folder that has one is complete. It lists the size, digest and
number of examples of every shard, because a TFRecord reader does not notice a file that was cut
between two records.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from etils.epath import Path
from jaxtyping import Int

from crest_jax import files, schema, wording
from crest_jax.data.sources import UNKNOWN
from crest_jax.errors import DataError

FORMAT = 2
FRAME = 16  # bytes of length and checksums that a TFRecord file adds to each record
FIELDS: Mapping[str, schema.Schema | schema.Maybe] = {
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


class ShardEntry(TypedDict):
    """A shard as a manifest describes it, with the fields of `FIELDS`."""

    file: str
    examples: int
    bytes: int
    sha256: str
    ids_sha256: str


class Manifest(TypedDict):
    """A manifest, with the fields of `FIELDS`."""

    format: int
    examples: int
    examples_per_class: list[int] | None
    class_names: list[str]
    image_shape: list[int] | None
    channels: NotRequired[int]
    ids_sha256: str
    shards: list[ShardEntry]


def read(folder: Path) -> Manifest:
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
        raise DataError(f"{path} is missing", way_out(folder)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a readable manifest", way_out(folder)) from error
    if found != FORMAT:
        raise DataError(
            f"{path} has format {wording.shown(found)}, and this version reads {FORMAT}: continue "
            "with the version that wrote it"
        )
    for wrong in schema.mismatches(manifest, FIELDS):
        raise DataError(f"manifest {path} is not usable ({wrong})", way_out(folder))
    per_class = manifest["examples_per_class"]
    if per_class is not None and len(per_class) != len(manifest["class_names"]):
        raise DataError(
            f"manifest {path} has {len(per_class)} counts for "
            f"{len(manifest['class_names'])} classes",
            way_out(folder),
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
    manifest = read(folder)
    labels = labels_of(len(manifest["class_names"]), manifest["examples_per_class"] is not None)
    found = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        _check_size(path, entry)
        found.append(Shard(path, entry["examples"], labels, _shape_of(manifest)))
    listed = sum(shard.examples for shard in found)
    if listed != manifest["examples"]:
        raise DataError(
            f"{name_of(folder)}: the manifest's examples is {manifest['examples']}, but its shards "
            f"have {listed}",
            way_out(folder),
        )
    return found


def check(folder: Path) -> None:
    """Check that the shards of a folder are, byte for byte, what was written.

    Raises:
      DataError: A shard is missing or damaged, or the folder has no usable manifest.
    """
    for entry in read(folder)["shards"]:
        verify(folder / entry["file"], entry)


def check_labels(labels: Int[np.ndarray, " examples"], valid: range, where: str) -> None:
    """Check that all labels are in the valid range.

    Args:
      labels: the labels to check.
      valid: the labels that are allowed.
      where: the name of the data, for the error message.

    Raises:
      DataError: A label is outside the range.
    """
    wrong = labels[(labels < valid.start) | (labels >= valid.stop)]
    if len(wrong):
        raise DataError(
            f"{where}: an example has label {wrong[0]}, which is not in {valid[0]}..{valid[-1]}",
            "delete it and run again to recreate it",
        )


def channels_of(folder: Path) -> int:
    """Return the number of channels that the images of one of a run's splits have when resized.

    Raises:
      DataError: The folder has no usable manifest.
    """
    return read(folder).get("channels", 3)


def image_shape(folder: Path, image_size: int) -> tuple[int, int, int]:
    """Return height, width and channels of the decoded images of one of a run's splits.

    Args:
      folder: the folder of records.
      image_size: the side in pixels to which images are resized, or 0 to keep them as stored.

    Raises:
      DataError: `image_size` is 0 and the images differ in shape or there are none; or the folder
        has no usable manifest.
    """
    if image_size:
        return image_size, image_size, channels_of(folder)
    shape = _shape_of(read(folder))
    if shape is None:
        raise DataError(
            f"{name_of(folder)}: images differ in shape: set --config.data.image_size to have them "
            "resized"
        )
    return shape


def _shape_of(manifest: Manifest) -> tuple[int, int, int] | None:
    if manifest["image_shape"] is None:
        return None
    height, width, channels = manifest["image_shape"]
    return height, width, channels


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(schema.COUNT.fits(side) and side for side in value)
    )


def labels_of(classes: int, known: bool) -> range:
    """Return the range of valid labels: the classes, or only `UNKNOWN`."""
    return range(classes) if known else range(UNKNOWN, UNKNOWN + 1)


class IdDigest:
    """The SHA-256 of ids, one per line."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._between = b""

    def add(self, name: str) -> None:
        """Add the next id."""
        self._sha256.update(self._between + name.encode())
        self._between = b"\n"

    def hexdigest(self) -> str:
        """Return the digest of the ids so far."""
        return self._sha256.hexdigest()


def digest_of_digests(digests: Iterable[str]) -> str:
    """Return the SHA-256 of the digests of the shards' ids, one per line."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def verify(path: Path, entry: ShardEntry) -> None:
    """Check that a shard is, byte for byte, what its entry in a manifest describes.

    Raises:
      DataError: The shard is missing or damaged.
    """
    _check_size(path, entry)
    digest, fits = _digest_of_records(path)
    if digest != entry["sha256"]:
        raise DataError(f"{name_of(path)} has changed since it was written", way_out(path.parent))
    if not fits:
        raise DataError(
            f"{name_of(path)} has a record whose header gives a length beyond the end of the file",
            way_out(path.parent),
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
            rest = int.from_bytes(head, "little") + FRAME - 8
            fits = fits and rest <= left
            left -= (rest := min(rest, left))
            while rest:
                piece = file.read(min(rest, 1 << 20))
                digest.update(piece)
                rest -= len(piece)
    return digest.hexdigest(), fits


def _check_size(path: Path, entry: ShardEntry) -> None:
    try:
        size = files.size(path)
    except FileNotFoundError as error:
        raise DataError(f"{name_of(path)} is missing", way_out(path.parent)) from error
    if size < entry["bytes"]:
        raise DataError(
            f"{name_of(path)} is truncated at byte {size} of {entry['bytes']}", way_out(path.parent)
        )


def name_of(path: Path) -> str:
    """Return the end of a path inside a run, for error messages."""
    return "/".join(path.parts[-3:])


def way_out(folder: Path) -> str:
    """Return what to do about a damaged folder of records, for error messages."""
    return f"delete {folder} and run again to recreate it"
