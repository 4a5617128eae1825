"""Writing the splits of an experiment once, from its source.

`catalog` provides images and labels, `long_tail` assigns them to splits, and `writer` stores them.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from absl import logging
from etils.epath import Path
from jaxtyping import Int
from ml_collections import ConfigDict

from crest_jax import files
from crest_jax.data import catalog, image_folder, long_tail, provenance, writer
from crest_jax.data.sources import Folders, Source, is_held_out
from crest_jax.data.splits import Sizes
from crest_jax.errors import ConfigError, DataError, UnavailableError
from crest_jax.layout import NAMES, SplitsFolder
from crest_jax.wording import some

# The file that identifies the data set and the images of which the splits were made.
SOURCE = "source.json"
# The number of images from which the size of all images is estimated.
_FEW = 256


def expected_sizes(config: ConfigDict, listing: Path) -> Sizes:
    """Return the sizes of the splits that `prepare` would write.

    Counts come from the labels; bytes are estimated from a few images.

    Args:
      config: the config of the run.
      listing: the CSV file in which to list user-provided files that cannot be read.

    Raises:
      DataError: The source is missing or does not fit the config; or its images are not resized and
        the few that are read differ in shape.
    """
    source, _, labels = _divided(config, listing)
    classes = len(source.class_names)
    few = list(itertools.islice(source.examples("train"), _FEW))
    mean = np.mean([writer.bytes_of(example) for example in few])
    side = config.data.image_size
    if side:
        shapes = {(side, side, source.channels)}
    else:
        shapes = {writer.stored_shape(example) for example in few}
    if len(shapes) > 1:
        raise DataError(
            f"images of {source.name} differ in shape: set --config.data.image_size to have them "
            "resized"
        )
    return Sizes(
        {name: len(labels[name]) for name in NAMES},
        {
            name: None
            if source.divided and name == "unlabeled"
            else np.bincount(labels[name], minlength=classes)
            for name in NAMES
        },
        {name: round(len(labels[name]) * mean) for name in NAMES},
        source.class_names,
        shapes.pop(),
    )


def are_whole(folder: Path) -> bool:
    """Return whether `prepare` has nothing left to write."""
    return all(map(files.is_whole, SplitsFolder(folder).all_splits().values()))


def prepare(config: ConfigDict, folder: Path, listing: Path, source: Source | None = None) -> None:
    """Write those of the labeled, unlabeled, validation and test records that do not exist yet.

    Args:
      config: the config of the run.
      folder: the folder of the splits.
      listing: the CSV file in which to list user-provided files that cannot be read.
      source: the data set; by default the one that the config names.

    Raises:
      DataError: The source is missing, does not fit the config, or is not the one that existing
        splits were made of.
    """
    missing = {
        name: path
        for name, path in SplitsFolder(folder).all_splits().items()
        if not files.is_whole(path)
    }
    if not missing:
        warn_of_changes(config, folder, listing)
        return
    source, split, labels = _divided(config, listing, source)
    _check_source(source, labels, folder, begun=len(missing) < len(NAMES))
    _warn_of_untested(source.class_names, labels["test"])
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                writer.Writer(
                    path,
                    examples=len(labels[name]),
                    class_names=source.class_names,
                    shards=config.data.shards,
                    classes_known=name != "unlabeled" or not source.divided,
                    channels=source.channels,
                )
            )
            for name, path in missing.items()
        }
        train = len(source.labels("train"))
        member_of = np.full(train, "", dtype=f"<U{max(map(len, split._fields))}")
        for name, rows in split._asdict().items():
            member_of[rows] = name
        for name, example in zip(member_of.tolist(), source.examples("train"), strict=True):
            if name in writers:
                writers[name].add(example)
        for name in ("unlabeled", "test") if source.divided else ("test",):
            if name in writers:
                for example in source.examples(name):
                    writers[name].add(example)


def _check_source(
    source: Source,
    labels: Mapping[str, Int[np.ndarray, " examples"]],
    folder: Path,
    *,
    begun: bool,
) -> None:
    """Record the data that the splits are made of, after comparing it with that of existing splits.

    If some splits were made of other data, an image could end up in two splits.

    Args:
      source: the source of the images.
      labels: the labels of each split, by its name.
      folder: the folder of the splits.
      begun: whether some of the splits exist already.

    Raises:
      DataError: Existing splits were made of other data.
    """
    digest = hashlib.sha256()
    for file in source.files:
        digest.update(f"{file.id}\n{file.sha256}\n".encode())
    for name in NAMES:
        digest.update(f"{name} {len(labels[name])}\n".encode() + labels[name].tobytes())
    made_of = {"source": source.name, "sha256": digest.hexdigest()}
    path = folder / SOURCE
    if begun and path.exists() and files.read_json(path) != made_of:
        raise DataError(
            f"{folder} has splits of other {source.name} data than there is now",
            "restore the former data, or start again with another --workdir",
        )
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, made_of)
    if source.files:
        provenance.write(folder / provenance.TABLE, source.files)


def _warn_of_untested(class_names: Sequence[str], tested: Int[np.ndarray, " examples"]) -> None:
    counts = np.bincount(tested, minlength=len(class_names))
    lacking = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if lacking:
        logging.warning(
            "there is no test image of %s: the accuracy is that of the other classes", some(lacking)
        )


def warn_of_changes(config: ConfigDict, folder: Path, listing: Path) -> None:
    """Warn if user-provided files have changed since these splits were made of them.

    Args:
      config: the config of the run.
      folder: the folder of the splits.
      listing: the CSV file that lists user-provided files that cannot be read.
    """
    if config.data.name != "image_folder":
        return
    try:
        then = provenance.read(folder / provenance.TABLE)
        changed = image_folder.changes(_folders(config, listing), then)
    except (ConfigError, DataError, UnavailableError) as error:
        logging.warning(
            "it is not known whether the images are still those that this run has read: %s. The "
            "run and its results are for the images that it has read",
            error.what,
        )
        return
    if changed:
        logging.warning(
            "the images are no longer those that this run has read: %s. The run and its results "
            "are for the images that it has read; choose another --workdir to train on the present "
            "ones",
            "; ".join(changed),
        )


def _folders(config: ConfigDict, listing: Path) -> Folders:
    given = {name: config.data[name] for name in Folders._fields if name != "listing"}
    return Folders(**given, listing=listing)


def _divided(
    config: ConfigDict, listing: Path, source: Source | None = None
) -> tuple[Source, long_tail.SplitRows, dict[str, Int[np.ndarray, " examples"]]]:
    """Return the source, the rows of its train set by split, and the labels of each split.

    Args:
      config: the config of the run.
      listing: the CSV file in which to list user-provided files that cannot be read.
      source: the data set; by default the one that the config names.

    Raises:
      DataError: The source is missing or does not fit the config.
    """
    source = source or catalog.load(
        config.data.name,
        data_dir=config.data.data_dir,
        download=config.data.download,
        test_split=config.data.test_split,
        test_fraction=config.data.test_fraction,
        class_table=config.data.class_table,
        folders=_folders(config, listing),
    )
    assert source.test_is_held_out == is_held_out(config.data)  # results.json reports the latter
    if source.divided and not config.data.unlabeled:
        raise DataError(
            f"data.name={config.data.name} has unlabeled images of its own: give it to "
            "crest_jax.train as data=, which then labels all other images"
        )
    labels = source.labels("train")
    fold, order = config.fold, None
    if config.long_tail.split == "first":
        if source.order is None:
            raise DataError(
                f"long_tail.split=first takes the first images of {source.name} in its original "
                "order, which is not known: set --config.long_tail.split=random"
            )
        fold, order = None, source.order()
    split = long_tail.split(
        labels,
        *_sizes(config.long_tail, np.bincount(labels, minlength=len(source.class_names))),
        fold=fold,
        order=order,
        validation_fraction=config.data.validation_fraction,
        class_names=source.class_names,
    )
    labels_of = {name: labels[rows] for name, rows in split._asdict().items()}
    labels_of["test"] = source.labels("test")
    if source.divided:
        labels_of["unlabeled"] = source.labels("unlabeled")
    return source, split, labels_of


def _sizes(
    tail: ConfigDict, counts: Int[np.ndarray, " classes"]
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """Return the numbers of labeled and of unlabeled examples of each class.

    Args:
      tail: the `long_tail` of a config.
      counts: the number of training examples of each class in the source.
    """
    if "n_max" not in tail:  # the source is long-tailed by nature
        return long_tail.by_fraction(counts, tail.beta)
    classes = len(counts)
    sizes = long_tail.class_sizes(tail.n_max, tail.gamma, classes)
    if "unlabeled_n_max" not in tail:
        return long_tail.by_fraction(sizes, tail.beta)
    return sizes, long_tail.unlabeled_sizes(
        tail.unlabeled_n_max, tail.unlabeled_gamma, classes, tail.unlabeled_order
    )
