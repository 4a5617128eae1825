"""The examples of a split on disk, read from its TFRecord shards without TensorFlow."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from etils.epath import Path
from jaxtyping import Int, UInt8

from crest_jax import files
from crest_jax.data import manifest, pixels
from crest_jax.data.sources import Example
from crest_jax.data.views import View
from crest_jax.errors import DataError

# The types of members of a protocol buffer that an example has.
_VARINT, _BYTES = 0, 2


class Images(NamedTuple):
    """A decoded split in memory."""

    ids: list[str]
    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int[np.ndarray, " examples"]


class Encoded(NamedTuple):
    """Splits in memory, whose images are decoded each time a training step uses them."""

    ids: list[str]
    images: list[bytes]
    labels: Int[np.ndarray, " examples"]
    view: View


def joined(chunks: Sequence[Images]) -> Images:
    """Return the examples of one or more chunks as one, in their order."""
    # An empty chunk has no image shape to agree on.
    first, *others = [chunk for chunk in chunks if chunk.ids] or chunks[:1]
    if not others:
        return first
    return Images(
        list(chain.from_iterable(chunk.ids for chunk in (first, *others))),
        np.concatenate([first.images, *(chunk.images for chunk in others)]),
        np.concatenate([first.labels, *(chunk.labels for chunk in others)]),
    )


def read(folder: Path, rows: range | None = None) -> Iterator[Example]:
    """Yield the examples of a folder in the order in which they were written.

    Args:
      folder: the folder of records.
      rows: the consecutive examples to yield; all by default. With a range, only the shards that
        hold some of it are opened, and the manifest's totals are not checked.

    Raises:
      DataError: A shard is missing, truncated, changed, or disagrees with the manifest.
    """
    described = manifest.read(folder)
    known = described["examples_per_class"] is not None
    labels = manifest.labels_of(len(described["class_names"]), known)
    per_class = np.zeros(len(described["class_names"]), np.int64)
    digests = []
    count = end = 0
    for entry in described["shards"]:
        begin, end = end, end + entry["examples"]
        if rows is None:
            wanted = range(begin, end)
        else:
            wanted = range(max(begin, rows.start), min(end, rows.stop))
            if not wanted:
                continue
        ids = manifest.IdDigest()
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
    counts = per_class.tolist() if known else None
    for field, said, found in (
        ("examples", described["examples"], count),
        ("examples_per_class", described["examples_per_class"], counts),
        ("ids_sha256", described["ids_sha256"], manifest.digest_of_digests(digests)),
    ):
        if said != found:
            raise DataError(
                f"{manifest.name_of(folder)}: the manifest's {field} is {said}, but its records "
                f"give {found}",
                manifest.way_out(folder),
            )


def load_encoded(folders: Sequence[Path], view: View) -> Encoded:
    """Read whole folders, one after the other, without decoding the images.

    Args:
      folders: the folders of records.
      view: the view of an image that training steps use.

    Raises:
      DataError: As for `read`.
    """
    examples = [example for folder in folders for example in read(folder)]
    labels = np.array([example.label for example in examples], np.int32)
    return Encoded(
        [example.id for example in examples], [example.image for example in examples], labels, view
    )


class ImageChunks:
    """A split in its original order, read and decoded a chunk at a time on every iteration.

    Images are decoded one by one, without TensorFlow; `stream.StreamedChunks` is for many images.
    """

    def __init__(self, folder: Path, *, view: View, size: int):
        """Prepare to read; nothing is read before iteration.

        Args:
          folder: the folder of records.
          view: the view of an image that evaluations use.
          size: the number of images in a chunk.
        """
        self._folder, self._view, self._size = folder, view, size

    def __iter__(self) -> Iterator[Images]:
        """Yield the chunks.

        Raises:
          DataError: As for `read`; or images differ in shape, or cannot be decoded.
        """
        remaining = read(self._folder)
        while examples := list(islice(remaining, self._size)):
            images = [_decoded(example, self._view, self._folder) for example in examples]
            shapes = {image.shape for image in images}
            if len(shapes) > 1:
                raise DataError(
                    f"{manifest.name_of(self._folder)}: images differ in shape: "
                    f"{' and '.join(map(str, sorted(shapes)))}",
                    manifest.way_out(self._folder),
                )
            labels = np.array([example.label for example in examples], np.int32)
            yield Images([example.id for example in examples], np.stack(images), labels)


def _decoded(
    example: Example, view: View, folder: Path
) -> UInt8[np.ndarray, "height width channels"]:
    try:
        return pixels.decode_for_evaluation(example.image, view)
    except Exception as error:  # damaged images make decoders raise all kinds of exceptions
        raise DataError(
            f"{manifest.name_of(folder)}: image {example.id} cannot be decoded "
            f"({files.reason(error)})"
        ) from error


def _read_shard(folder: Path, entry: manifest.ShardEntry, labels: range) -> Iterator[Example]:
    path = folder / entry["file"]
    manifest.verify(path, entry)
    count = 0
    for record in _contents(path):
        try:
            example = _deserialize(record)
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"{manifest.name_of(path)}: record {count} is not an example",
                manifest.way_out(folder),
            ) from error
        if example.label not in labels:
            raise DataError(
                f"{manifest.name_of(path)}: {example.id} has label {example.label}, but by the "
                f"manifest a label is in {labels[0]}..{labels[-1]}",
                manifest.way_out(folder),
            )
        count += 1
        yield example
    if count != entry["examples"]:
        raise DataError(
            f"{manifest.name_of(path)} holds {count} examples, but by its manifest "
            f"{entry['examples']}",
            manifest.way_out(folder),
        )


def _contents(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file whose digest has been verified.

    A record is framed by its length in 8 bytes and the length's checksum in 4, and by its own
    checksum in 4. The digest of the file covers what the checksums do.
    """
    with files.reading(path), path.open("rb") as file:
        while head := file.read(12):
            yield file.read(int.from_bytes(head[:8], "little"))
            file.read(4)


# Protocol buffers


def _deserialize(record: bytes) -> Example:
    """Parse a `tf.train.Example`.

    Raises:
      ValueError, IndexError, KeyError: The record is not an example, or lacks a feature.
    """
    features = {}
    for entry in _members(_only(record, 1), 1):
        features[_only(entry, 1)] = _only(entry, 2)
    name, image = (_only(_only(features[key], 1), 1) for key in (b"id", b"image"))
    label, _ = _varint(_only(_only(features[b"label"], 3), 1), 0)
    return Example(name.decode(), image, label - (label >> 63 << 64))


def _only(message: bytes, number: int) -> bytes:
    """Return the first member of a message that has this number.

    Raises:
      KeyError: There is none.
    """
    for member in _members(message, number):
        return member
    raise KeyError(number)


def _members(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the members of a message that have this number.

    Raises:
      ValueError: The message has a member whose type no `tf.train.Example` has.
      IndexError: The message is cut short.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == _VARINT:
            _, end = _varint(message, place)
        elif tag & 7 == _BYTES:
            length, place = _varint(message, place)
            end = place + length
        else:
            raise ValueError(f"a member is of type {tag & 7}")
        if end > len(message):
            raise IndexError("a member is cut short")
        if tag >> 3 == number:
            yield message[place:end]
        place = end


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the integer at a place in a message, in groups of 7 bits, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
