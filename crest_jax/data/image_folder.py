"""User-provided images, from folders or CSV files.

Labeled images are given as a folder with one folder per class, or as a CSV file with the columns
`path` and `label`; unlabeled images as any folder, or as a CSV file with the column `path`. The
content of a file determines its format. Files that cannot be read are listed and left out. The
others are copied if TensorFlow can decode them as they are, and converted to PNG otherwise.
"""

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from absl import logging
from etils.epath import Path
from jaxtyping import Int
from tqdm import tqdm

from crest_jax import files
from crest_jax.data import decode, pictures, provenance
from crest_jax.data.class_names import check_labeled, check_tested, names_of
from crest_jax.data.listing import Listed, list_files
from crest_jax.data.pictures import Note
from crest_jax.data.provenance import File
from crest_jax.data.sources import UNKNOWN, Example, Folders, Source, train_and_test
from crest_jax.errors import DataError
from crest_jax.wording import some

# Decoders release the GIL, so threads run in parallel. Each may hold a picture of `max_pixels`, so
# their number is limited.
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 64  # the number of files that the threads are given together
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Found(NamedTuple):
    """A picture file that has been read."""

    id: str
    path: Path
    label: int
    sha256: bytes
    plain: bool  # whether its content is copied unchanged
    note: Note


class _Unreadable(NamedTuple):
    """A file that cannot be read as a picture."""

    path: Path
    reason: str
    kind: str | None  # the format that it seems to have; None if it does not look like a picture
    is_damaged: bool  # whether it should have been readable


def image_folder(folders: Folders) -> Source:
    """Open user-provided images as a data set.

    The id of an example is the path of its file, after the name of its set. Every file is read once
    here, and once more when its example is requested.

    Raises:
      DataError: A folder or file does not exist or holds no images; the folders are parts of a data
        set and not classes; a class has no readable image, or occurs only in the test images; or
        too many files are unreadable.
    """
    listed = list_files(folders)
    class_names = names_of(listed["labeled"])
    check_labeled(folders.labeled, listed["labeled"], class_names)
    if folders.test:
        check_tested(folders.test, listed["test"], class_names)

    label_of: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
    label_of[None] = UNKNOWN
    found, seen = _readable(listed, label_of, folders)
    of_class = np.bincount([each.label for each in found["labeled"]], minlength=len(class_names))
    lacking = [name for name, count in zip(class_names, of_class, strict=True) if not count]
    if lacking:
        raise DataError(
            f"data.labeled={folders.labeled!r}: no image of {some(lacking)} can be read; see "
            f"{folders.listing}"
        )
    splits = {**found, "train": found["labeled"]}
    if not folders.test:
        labels = np.array([each.label for each in found["labeled"]])
        for name, chosen in train_and_test(labels, folders.test_fraction).items():
            splits[name] = [found["labeled"][row] for row in np.flatnonzero(chosen)]
    if not splits["test"]:
        why = "none of data.test can be read" if folders.test else "each class has a single one"
        raise DataError(f"there is no image to test on, since {why}: give some as data.test")
    if folders.unlabeled and not splits["unlabeled"]:
        raise DataError(
            f"data.unlabeled={folders.unlabeled!r} has no image that can be read; see "
            f"{folders.listing}"
        )
    _warn(found, splits, class_names)

    def labels_of(split: str) -> Int[np.ndarray, " examples"]:
        return np.array([each.label for each in splits[split]], np.int64)

    def examples(split: str) -> Iterator[Example]:
        def example(each: _Found) -> Example:
            return Example(each.id, _content(each, folders.max_pixels), each.label)

        return _in_parallel(example, splits[split])

    return Source(
        "image_folder",
        class_names,
        labels_of,
        examples,
        divided=bool(folders.unlabeled),
        files=seen,
        test_is_held_out=not folders.test,
    )


def changes(folders: Folders, then: Mapping[str, File]) -> list[str]:
    """Describe what has changed since a run read the files; return an empty list if nothing has.

    Args:
      folders: the locations of the files now.
      then: the files as the run read them, by id, from `provenance.read`.

    Raises:
      DataError: A folder or list does not exist, or is no longer a folder or list of images.
    """
    listed = {each.id: each for each in chain.from_iterable(list_files(folders).values())}

    def digest(file: File) -> str:
        try:
            return hashlib.sha256(pictures.content_of(listed[file.id].path)).hexdigest()
        except files.failures(ValueError):
            return ""

    return provenance.changes(then, (_file(each) for each in listed.values()), digest)


def _file(each: Listed) -> File:
    """Return the state of a file, without the digest of its content."""
    size = modified = 0
    if not files.is_remote(each.path) and os.path.exists(each.path):  # noqa: PTH110
        status = os.stat(each.path)  # noqa: PTH116
        size, modified = status.st_size, status.st_mtime_ns
    return File(each.id, each.class_name or "", size, modified, sha256="")


def _grouped(items: Iterable[_Item], key: Callable[[_Item], _Result]) -> dict[_Result, list[_Item]]:
    """Group items by the value that a function has for them."""
    groups: dict[_Result, list[_Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


# Reading the files


def _readable(
    listed: dict[str, list[Listed]], label_of: dict[str | None, int], folders: Folders
) -> tuple[dict[str, list[_Found]], list[File]]:
    """Read all files, and report those that cannot be read as pictures.

    Args:
      listed: the files of each set.
      label_of: the label of each class; that of None is for images without a class.
      folders: the settings for reading them.

    Returns:
      The readable images of each set, and all files, readable or not.

    Raises:
      DataError: More files than allowed cannot be read although a CSV file, their names or their
        first bytes say that they are pictures.
    """

    def look(each: Listed) -> tuple[File, _Found | _Unreadable]:
        file, content = _file(each), None
        try:
            content = pictures.content_of(each.path)
            image, note = pictures.read(content, max_pixels=folders.max_pixels)
            plain = image is content
            if plain:
                decode.check(content)
        except files.failures(ValueError) as error:
            kind = pictures.kind_by_looks(each.path)
            is_damaged = each.by_list or kind in pictures.FORMATS
            reason = files.reason(error)
            if kind and not is_damaged:
                reason = f"it is {kind}, which is not read: convert it to JPEG or PNG"
            if content is not None:
                file = file._replace(sha256=hashlib.sha256(content).hexdigest())
            return file, _Unreadable(each.path, reason, kind, is_damaged)
        digest = hashlib.sha256(content)
        label = label_of[each.class_name]
        found = _Found(each.id, each.path, label, digest.digest(), plain, note)
        return file._replace(sha256=digest.hexdigest()), found

    everything = list(chain.from_iterable(listed.values()))
    looked = _in_parallel(look, everything)
    found: dict[str, list[_Found]] = {name: [] for name in listed}
    unreadable: list[_Unreadable] = []
    seen: list[File] = []
    progress = tqdm(looked, "images", len(everything), leave=False, disable=None)
    for each, (file, outcome) in zip(everything, progress, strict=True):
        seen.append(file)
        if isinstance(outcome, _Unreadable):
            unreadable.append(outcome)
        else:
            found[each.id.partition("/")[0]].append(outcome)
    _report(unreadable, len(everything), folders)
    return found, seen


def _report(unreadable: Sequence[_Unreadable], total: int, folders: Folders) -> None:
    """List the files that cannot be read, and warn of them.

    Args:
      unreadable: the files that cannot be read.
      total: the number of all files, readable or not.
      folders: the settings, which say where to list the files, and how many are allowed.

    Raises:
      DataError: More files than allowed should have been readable.
    """
    _write_listing(unreadable, folders.listing)
    damaged = [each for each in unreadable if each.is_damaged]
    others = [each for each in unreadable if not each.is_damaged]
    if others:
        others.sort(key=lambda each: each.kind is None)
        seeming_pictures = sum(each.kind is not None for each in others)
        logging.warning(
            "%d files are left out, %d of which seem to be pictures of kinds that are not read: "
            "%s; %s lists all",
            len(others),
            seeming_pictures,
            some([f"{pictures.utf8(each.path)} ({each.reason})" for each in others]),
            folders.listing,
        )
    if damaged:
        images = total - len(others)
        named = some([f"{pictures.utf8(each.path)} ({each.reason})" for each in damaged])
        message = (
            f"{len(damaged)} of {images} pictures cannot be read: {named}; "
            f"{folders.listing} lists all"
        )
        allowed = folders.unreadable
        if len(damaged) > (allowed if allowed >= 1 else allowed * images):
            raise DataError(
                f"{message}. Mend or remove them, or raise data.unreadable={allowed:g}, which is "
                f"{'the number' if allowed >= 1 else 'the fraction'} that may be unreadable"
            )
        logging.warning("%s; they are left out", message)


def _write_listing(unreadable: Sequence[_Unreadable], listing: Path) -> None:
    """Write the CSV file of unreadable files; without any, remove that of an earlier attempt."""
    if not unreadable:
        with files.writing(listing):
            if listing.exists():
                listing.unlink()
        return
    rows = [(pictures.utf8(each.path), each.reason) for each in unreadable]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("file", "reason"), *rows])
    files.write_text(listing, lines.getvalue())


def _content(each: _Found, max_pixels: int) -> bytes:
    """Return the content of an image as records hold it.

    Raises:
      DataError: The file can no longer be read, or has changed since it was first read.
    """
    try:
        content = each.path.read_bytes()
    except files.failures() as error:
        raise DataError(
            f"{pictures.utf8(each.path)} can no longer be read ({files.reason(error)}): run again"
        ) from error
    if hashlib.sha256(content).digest() != each.sha256:
        raise DataError(f"{pictures.utf8(each.path)} has changed since it was read: run again")
    return content if each.plain else pictures.normalised(content, max_pixels=max_pixels)


def _in_parallel(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Map a function over items with several threads, and yield the results in order."""
    waiting = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while together := list(islice(waiting, _AT_ONCE)):
            yield from pool.map(function, together)


# Warnings


def _warn(
    found: Mapping[str, Sequence[_Found]],
    splits: Mapping[str, Sequence[_Found]],
    class_names: Sequence[str],
) -> None:
    """Warn of anything unusual about the readable images."""
    everything = list(chain.from_iterable(found.values()))
    for remark in pictures.remarks({each.id: each.note for each in everything}):
        logging.warning("%s", remark)
    _warn_of_copies(found, class_names)
    _warn_of_overlap(splits)


def _warn_of_copies(found: Mapping[str, Sequence[_Found]], class_names: Sequence[str]) -> None:
    """Warn of images that occur several times in a set, or belong to several classes."""
    labeled = (each for each in chain.from_iterable(found.values()) if each.label != UNKNOWN)
    ambiguous = []
    for copies in _grouped(labeled, lambda each: each.sha256).values():
        of_label = {each.label: each.id for each in reversed(copies)}  # the first copy
        if len(of_label) > 1:
            names = [f"{name} ({class_names[label]})" for label, name in of_label.items()]
            ambiguous.append(" = ".join(reversed(names)))
    if ambiguous:
        logging.warning(
            "%d images belong to two or more classes, of which at most one is right: %s",
            len(ambiguous),
            some(ambiguous, "; "),
        )
    for name, of_set in found.items():
        pairs = [
            f"{each.id} = {first.id}"
            for first, *others in _grouped(of_set, lambda each: (each.sha256, each.label)).values()
            for each in others
        ]
        if pairs:
            logging.warning("%d %s images are copies of others: %s", len(pairs), name, some(pairs))


def _warn_of_overlap(splits: Mapping[str, Sequence[_Found]]) -> None:
    """Warn of images that are in two splits."""
    of_split = {name: {each.sha256 for each in splits.get(name, ())} for name in (
        "train", "unlabeled", "test"
    )}  # fmt: skip
    twice = {
        ("test", "train"): "also labeled, so that the accuracy is too good",
        ("test", "unlabeled"): "also unlabeled",
        ("unlabeled", "train"): "also labeled",
    }
    for (one, other), what in twice.items():
        shared = [each.id for each in splits.get(one, ()) if each.sha256 in of_split[other]]
        if shared:
            logging.warning("%d %s images are %s: %s", len(shared), one, what, some(shared))
