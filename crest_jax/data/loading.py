"""Reading the splits of an experiment from disk, into memory or a chunk at a time."""

from functools import partial

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import files
from crest_jax.data import decode, manifest, records
from crest_jax.data.records import Images
from crest_jax.data.splits import Split, Splits, counts_of
from crest_jax.data.stream import StreamedChunks
from crest_jax.data.tensorflow import tf, without_autograph
from crest_jax.data.views import AS_STORED, View, view_of
from crest_jax.errors import DataError
from crest_jax.layout import SplitsFolder

# The number of images that evaluation and scoring load at a time from a split that is streamed.
CHUNK = 4096


def load(data: ConfigDict, folder: Path) -> Splits:
    """Read the splits that `prepare` wrote.

    Args:
      data: the `data` of a config.
      folder: the folder of the splits.

    Raises:
      DataError: As for `load_split`; or images of one split differ in shape from those of another.
    """
    of_splits = SplitsFolder(folder)
    shapes = {
        name: manifest.image_shape(path, data.image_size)
        for name, path in of_splits.all_splits().items()
        if manifest.read(path)["examples"]
    }
    if len(set(shapes.values())) > 1:
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(
            f"images of one split differ in shape from those of another ({described}): set "
            "--config.data.image_size to have them resized"
        )
    return Splits(
        class_names=tuple(manifest.read(of_splits.labeled)["class_names"]),
        image_shape=shapes["labeled"],
        **{name: load_split(data, path) for name, path in of_splits.all_splits().items()},
    )


def load_split(data: ConfigDict, folder: Path) -> Split:
    """Read one split into memory, or prepare to read it a chunk at a time.

    Args:
      data: the `data` of a config.
      folder: the folder of the split.

    Raises:
      DataError: A file is missing or damaged, or images differ in shape.
    """
    described = manifest.read(folder)
    view = view_of(data, manifest.channels_of(folder))
    if data.stream:
        manifest.shards(folder)  # checks that no shard is missing or truncated
        chunks: StreamedChunks | list[Images] = StreamedChunks(folder, view=view, size=CHUNK)
    else:
        chunks = [load_images(folder, view)]
    return Split(described["examples"], counts_of(described["examples_per_class"]), chunks)


@without_autograph
def load_images(folder: Path, view: View = AS_STORED) -> Images:
    """Read and decode all images of a folder.

    Args:
      folder: the folder of records.
      view: the view of an image that evaluations use. If it keeps images as they are stored, they
        must all have the same shape.

    Raises:
      DataError: As for `read`; or images differ in shape, or cannot be decoded.
    """
    examples = list(records.read(folder))
    if not examples:
        return Images([], np.zeros([0, 0, 0, 0], np.uint8), np.zeros(0, np.int32))
    side = view.size
    shape = (side, side, view.channels) if side else manifest.image_shape(folder, 0)
    encoded = tf.constant([example.image for example in examples], tf.string)
    decoded = (
        tf.data.Dataset.from_tensor_slices(encoded)
        .map(
            partial(decode.decode_for_evaluation, view=view),
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
                f"{manifest.name_of(folder)}: image {example.id} cannot be decoded "
                f"({files.reason(error)})"
            ) from error
        if image.shape != shape:
            raise DataError(
                f"{manifest.name_of(folder)}: image {example.id} has shape {image.shape}, but "
                f"by the manifest it is {shape}",
                manifest.way_out(folder),
            )
        if row == 0:  # allocate memory only once an image has been found to have this shape
            images = np.zeros([len(examples), *shape], np.uint8)
        images[row] = image
    labels = np.array([example.label for example in examples], np.int32)
    return Images([example.id for example in examples], images, labels)
