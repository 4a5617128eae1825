"""Sources of labeled images, and sources that are derived from others.

A source returns all labels of a split at once, from which the long tail is cut, and then yields its
examples one by one. Images are encoded: they are copied from the data set as they are, except
user-provided files in formats that records must not hold.
"""

import csv
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from etils.epath import Path
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from crest_jax import files, schema
from crest_jax.data import long_tail
from crest_jax.data.provenance import File
from crest_jax.errors import DataError

# The label of an image whose class is not known.
UNKNOWN = -1
# The beginning of the name of images given as arrays, which ends in a digest of them.
ARRAYS = "arrays-"
# The columns of a class table.
_ROW = {"wnid": schema.TEXT, "superclass": schema.TEXT, "superclass_name": schema.TEXT}


class Example(NamedTuple):
    """One image with its id and label."""

    id: str
    image: bytes  # PNG or JPEG
    label: int


# Returns all rows of the train set in the data set's original order.
Order: TypeAlias = Callable[[], Int[np.ndarray, " examples"]]


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
    order: Order | None = None  # None if the original order is not known
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


def is_held_out(data: ConfigDict) -> bool:
    """Return whether the test images are held out from the labeled ones of a config's `data`.

    The source that the config names says the same (`Source.test_is_held_out`). User-provided images
    are tested on with the files of `data.test`, and any other data set with its `data.test_split`.
    """
    return not (data.test if data.name == "image_folder" else data.test_split)


def data_of(config: ConfigDict) -> str:
    """Return the name of the data set, with the paths of user-provided images to tell them apart.

    Args:
      config: the config that the run began with. If the data has been moved since, the run has not
        read it from its new place.
    """
    if config.data.name.startswith(ARRAYS):  # it ends in a digest, which tells arrays apart
        return config.data.name
    folders = [config.data[name] for name in ("labeled", "unlabeled", "test")]
    return " ".join([config.data.name, *filter(None, folders)])


def train_and_test(
    labels: Int[np.ndarray, " examples"], fraction: float
) -> dict[str, Bool[np.ndarray, " examples"]]:
    """Return which labeled examples stay in `train`, and which are held out as `test`.

    Args:
      labels: the class of every labeled example.
      fraction: the fraction of each class to hold out, in (0, 1).
    """
    is_test = long_tail.hold_out(labels, fraction)
    return {"train": ~is_test, "test": is_test}


def held_out(source: Source, fraction: float) -> Source:
    """Return the source with a part of each class of `train` held out as `test`.

    Args:
      source: the source whose `train` split to divide.
      fraction: the fraction of each class to hold out, in (0, 1).

    Raises:
      DataError: Each class has a single image, so none can be held out.
    """
    labels = source.labels("train")
    chosen = train_and_test(labels, fraction)
    if not chosen["test"].any():
        raise DataError(
            f"data set {source.name!r} has no class of more than one image, so that none can be "
            "held out to test on: name one of its splits as data.test_split"
        )

    def examples(split: str) -> Iterator[Example]:
        if split not in chosen:
            yield from source.examples(split)
            return
        for is_chosen, example in zip(chosen[split], source.examples("train"), strict=True):
            if is_chosen:
                yield example

    return source._replace(
        labels=lambda split: labels[chosen[split]] if split in chosen else source.labels(split),
        examples=examples,
        order=_order_without(source.order, chosen["test"]) if source.order else None,
        test_is_held_out=True,
    )


def _order_without(order: Order, removed: Bool[np.ndarray, " examples"]) -> Order:
    """Return the order of the rows that remain, which are numbered again from 0."""

    def remaining() -> Int[np.ndarray, " remaining"]:
        rows = order()
        return (np.cumsum(~removed) - 1)[rows[~removed[rows]]]

    return remaining


def normal_name(name: str) -> str:
    """Return a class name in Unicode's composed form, NFC.

    An é may be one character (NFC, as Linux and Windows write it) or an e followed by an accent
    (NFD, as macOS does).
    """
    return unicodedata.normalize("NFC", name)


def grouped(source: Source, table: Path) -> Source:
    """Return the source with coarser classes, such as ImageNet127 (paper section 4.2).

    Args:
      source: the source whose classes to group.
      table: a tab-separated file with a header and the columns `wnid`, a class of the source, and
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
    except files.failures(ValueError, csv.Error) as error:
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
