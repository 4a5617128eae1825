"""Where images come from: the one place that knows, with `image_folder` for one's own.

A source gives the labels of a split at once, to cut the long tail by, and then its examples one by
one. Images travel as encoded bytes: what a data set stores is copied, never re-encoded, but for
files of one's own in forms that records are not to have.
"""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from etils.epath import Path
from jaxtyping import Int

from crest_jax import files, schema
from crest_jax.data.provenance import File
from crest_jax.errors import CrestError, DataError

# The label of an image whose class nobody knows.
UNKNOWN = -1
# Of a table of classes.
_ROW = {"wnid": schema.TEXT, "superclass": schema.TEXT, "superclass_name": schema.TEXT}


class Example(NamedTuple):
    """One image with its name and class."""

    id: str
    image: bytes  # PNG or JPEG
    label: int


class Source(NamedTuple):
    """A classification data set with the splits `train` and `test`.

    Where it is divided already, `train` is what is labeled, and a third split, `unlabeled`, has
    images of which every label is `UNKNOWN`.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Callable[[str], Int[np.ndarray, " examples"]]
    examples: Callable[[str], Iterator[Example]]
    divided: bool = False
    # One's own files, which may be others another time; those that cannot be read, too.
    files: Sequence[File] = ()
    # All rows of the train set in the data set's original order, as far as their ids say it.
    order: Callable[[], Int[np.ndarray, " examples"]] | None = None


class Folders(NamedTuple):
    """Where one's own images are, for `image_folder`, and what is to be done with them."""

    labeled: str  # a folder of folders, or a CSV file
    unlabeled: str  # likewise, or any folder; or empty
    test: str  # as `labeled`, or empty: then a part of the labeled images is held out
    test_fraction: float  # which part
    max_pixels: int  # of an image
    # How many files may be unreadable: a part of all below 1, a number from 1 on.
    unreadable: float
    listing: Path  # the CSV file to list them in


def load(
    name: str,
    *,
    data_dir: str = "",
    download: bool = False,
    test_split: str = "test",
    class_table: str = "",
    folders: Folders | None = None,
) -> Source:
    """Opens the bundled `digits`, one's own images, or any image-classification data set of TFDS.

    Args:
      name: `digits`, `image_folder`, or a TFDS name such as `cifar10` or `imagenet_resized/64x64`.
      data_dir: where TFDS keeps its prepared data; empty for its default, ~/tensorflow_datasets.
      download: whether TFDS may download and prepare a data set that is not there.
      test_split: which of TFDS' splits to test on.
      class_table: a file for `grouped`; empty leaves the classes as they are.
      folders: what `image_folder` is made of.

    Raises:
      DataError: the data set is unknown, not there, or lacks `image`, `label` or a split; or the
        table does not fit it.
    """
    if name == "digits":
        source = digits()
    elif name == "image_folder":
        from crest_jax.data import image_folder

        source = image_folder.image_folder(folders)
    else:
        source = tfds_source(name, data_dir=data_dir, download=download, test_split=test_split)
    return grouped(source, files.given(class_table, "data.class_table")) if class_table else source


def normal_name(name: str) -> str:
    """Returns a class's name as one text, however it was typed: é is a letter, or e and an accent.

    Linux and Windows write the one, and macOS the other (Unicode's NFC and NFD).
    """
    return unicodedata.normalize("NFC", name)


def grouped(source: Source, table: Path) -> Source:
    """The same images with coarser classes, as ImageNet127 is made of ImageNet (section 4.2).

    Args:
      source: whose classes to group.
      table: tab-separated, with a header and the columns `wnid`, a class of the source, and
        `superclass` and `superclass_name`, where it belongs. Superclasses are in the order of
        their `superclass`.

    Raises:
      DataError: the table is missing or unreadable, or lacks a class of the source.
    """
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    except FileNotFoundError as error:
        raise DataError(
            f"data.class_table={str(table)!r} is not there: name the file, from the folder that "
            "you run in"
        ) from error
    except (ValueError, csv.Error, *files.failures()) as error:
        raise DataError(
            f"data.class_table={str(table)!r} is not a readable table ({files.reason(error)})"
        ) from error
    for wrong in schema.mismatches(rows, schema.Each(_ROW), "row"):
        raise DataError(
            f"data.class_table={str(table)!r} is not a table with the tab-separated columns "
            f"{', '.join(_ROW)}: {wrong}"
        )
    group_of = {
        normal_name(row["wnid"]): (row["superclass"], normal_name(row["superclass_name"]))
        for row in rows
    }
    names = [normal_name(name) for name in source.class_names]
    lacking = [name for name in names if name not in group_of]
    if lacking:
        raise DataError(
            f"data.class_table={str(table)!r} lacks {len(lacking)} classes of {source.name}, "
            f"{', '.join(lacking[:3])} among them"
        )
    groups = sorted({group_of[name] for name in names})
    # The last entry is the group of `UNKNOWN`, which is the last place.
    label_of = np.array([*(groups.index(group_of[name]) for name in names), UNKNOWN])

    def examples(split: str) -> Iterator[Example]:
        for example in source.examples(split):
            yield example._replace(label=int(label_of[example.label]))

    return source._replace(
        class_names=tuple(name for _, name in groups),
        labels=lambda split: label_of[source.labels(split)],
        examples=examples,
    )


def digits(test_per_class: int = 50) -> Source:
    """The 1797 handwritten digits (8 x 8, grey) that come with scikit-learn.

    The last `test_per_class` of each class are the test set: other writers than the first ones.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[-test_per_class:]] = True
    rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def examples(split: str) -> Iterator[Example]:
        for row in rows[split]:
            image = tf.io.encode_png(images[row]).numpy()
            yield Example(f"digits-{row:04d}", image, int(labels[row]))

    return Source(
        "digits",
        tuple(str(digit) for digit in range(10)),
        lambda split: labels[rows[split]],
        examples,
        order=lambda: np.arange(len(rows["train"])),
    )


def tfds_source(name: str, *, data_dir: str, download: bool, test_split: str) -> Source:
    """A data set of TensorFlow Datasets; ids are TFDS' own, a shard and a position in it."""
    import tensorflow_datasets as tfds

    # TFDS' own begins with `~` where there is no home.
    where = files.given(data_dir or tfds.core.constants.DATA_DIR, "data.data_dir")
    try:
        builder = tfds.builder(name, data_dir=str(where) if data_dir else None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise DataError(
            f"data.name={name!r}: TFDS knows no such data set or version, and {where} holds none; "
            "see https://www.tensorflow.org/datasets/catalog for the names"
        ) from error
    if not builder.is_prepared():
        if not download:
            raise DataError(
                f"data set {name!r} is not in {where}: set --config.data.data_dir to the folder "
                "that holds it, or --config.data.download=True to fetch it"
            )
        try:
            builder.download_and_prepare()
        except CrestError:  # SIGTERM
            raise
        except Exception as error:  # whatever a download may raise: network, disk, checksum
            raise DataError(
                f"data set {name!r} is not in {where} and could not be downloaded "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "prepare it where there is a network and set --config.data.data_dir"
            ) from error
    missing = {"image", "label"} - set(builder.info.features)
    missing |= {"train", test_split} - set(builder.info.splits)
    if missing:
        raise DataError(
            f"data set {name!r} has no {', '.join(sorted(missing))}; data.test_split names the "
            f"split to test on, and there are {', '.join(builder.info.splits)}"
        )
    if not isinstance(builder.info.features["label"], tfds.features.ClassLabel):
        raise DataError(f"data set {name!r} is not of images that belong to one class each")

    def read(split: str, features: set, decoders: dict | None = None) -> tf.data.Dataset:
        return builder.as_dataset(
            split={"train": "train", "test": test_split}[split],
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(features, decoders=decoders),
            read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        )

    def labels(split: str) -> Int[np.ndarray, " examples"]:
        chunks = read(split, {"label"}).batch(1000).as_numpy_iterator()
        return np.concatenate([chunk["label"] for chunk in chunks])

    def examples(split: str) -> Iterator[Example]:
        skip = {"image": tfds.decode.SkipDecoding()}
        for row in read(split, {"image", "label"}, skip).as_numpy_iterator():
            yield Example(row["tfds_id"].decode(), row["image"], int(row["label"]))

    def order() -> Int[np.ndarray, " examples"]:
        """Return the rows by the number at the end of their ids, such as train_00042."""
        ids = [row["id"].decode() for row in read("train", {"id"}).as_numpy_iterator()]
        numbered = [re.fullmatch(r"(.*?)(\d+)", each) for each in ids]
        # Images of one class are numbered together, whether or not all classes are.
        prefixes = {
            (label, each and each[1])
            for label, each in zip(labels("train").tolist(), numbered, strict=True)
        }
        if None in numbered or len(prefixes) > builder.info.features["label"].num_classes:
            raise DataError(
                f"the ids of data set {name!r}, such as {ids[0]!r}, do not number the images of a "
                "class, so that their original order is not known: set "
                "--config.long_tail.split=random"
            )
        return np.argsort([int(each[2]) for each in numbered], kind="stable")

    return Source(
        name,
        tuple(builder.info.features["label"].names),
        labels,
        examples,
        order=order if "id" in builder.info.features else None,
    )
