"""Writing a split to disk: a folder of TFRecord shards with a manifest, which is written last."""

import io
from collections.abc import Iterable, Sequence
from types import TracebackType

import numpy as np
from etils.epath import Path
from PIL import Image

from crest_jax import files
from crest_jax.data import manifest, pixels
from crest_jax.data.sources import UNKNOWN, Example
from crest_jax.data.tensorflow import tf
from crest_jax.errors import DataError


class Written(manifest.ShardEntry):
    """A shard that has been written, with what the manifest says of all shards together."""

    examples_per_class: list[int]
    image_shapes: list[tuple[int, int, int]]


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
          folder: the folder to write; an existing one is replaced.
          examples: the total number of examples; consecutive ones share a shard.
          class_names: the names of the classes, indexed by label.
          shards: the number of files.
          classes_known: whether the examples have labels; if not, every label is `UNKNOWN`.
          channels: the channels of the images once they are resized, for the manifest.
          host: the index of this host; each host writes consecutive shards.
          hosts: the number of hosts.
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
        self.written: list[Written] = []
        self._to_begin = iter(own)
        self._open: _OpenShard | None = None
        self._added = 0
        self._ids: set[str] = set()

    def __enter__(self) -> "Writer":
        """Begin the folder."""
        self.begin()
        return self

    def begin(self) -> None:
        """Create an empty folder, after removing anything that an earlier attempt left.

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
        labels = manifest.labels_of(len(self._class_names), self._classes_known)
        if example.label not in labels:
            raise DataError(
                f"{self._folder}: {example.id} has label {example.label}, which is not in "
                f"{labels[0]}..{labels[-1]}"
            )
        if self._added == len(self.rows):
            raise DataError(f"{self._folder}: there are more examples than {len(self.rows)}")
        shape = stored_shape(example)
        while self._open is None or self._open.examples == self._open.size:
            self._next_shard()
        self._open.add(example, shape)
        self._ids.add(example.id)
        self._added += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def finish(self, written: Sequence[Written]) -> None:
        """Write the manifest, which completes the folder.

        Args:
          written: the `written` entries of all hosts, in any order.

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
        described: manifest.Manifest = {
            "format": manifest.FORMAT,
            "examples": sum(self._sizes),
            "examples_per_class": per_class,
            "class_names": self._class_names,
            "image_shape": list(*shapes) if len(shapes) == 1 else None,
            "ids_sha256": manifest.digest_of_digests(entry["ids_sha256"] for entry in written),
            "shards": [
                {
                    "file": entry["file"],
                    "examples": entry["examples"],
                    "bytes": entry["bytes"],
                    "sha256": entry["sha256"],
                    "ids_sha256": entry["ids_sha256"],
                }
                for entry in written
            ],
        }
        if self._channels is not None:
            described["channels"] = self._channels
        files.write_json(self._folder / files.MANIFEST, described)

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
        self._ids = manifest.IdDigest()
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

    def close(self) -> Written:
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


def _serialize(example: Example) -> bytes:
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.id.encode()])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def bytes_of(example: Example) -> int:
    """Return the size of an example in a TFRecord file, in bytes."""
    return len(_serialize(example)) + manifest.FRAME


def stored_shape(example: Example) -> tuple[int, int, int]:
    """Return height, width and channels of an image, read from its header.

    Raises:
      DataError: The image is not a readable JPEG or PNG.
    """
    try:
        with Image.open(io.BytesIO(example.image), formats=("JPEG", "PNG")) as image:
            pixels.check_pixels(image.height, image.width)
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
