"""One's own images, from folders or lists of files.

Labeled images are a folder for each class, or a CSV file with the columns `path` and `label`;
unlabeled ones any folder, or a CSV file with the column `path`. What cannot be read is listed and
left out. The others are copied if TensorFlow decodes them as they are, or made into PNG.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from absl import logging
from etils.epath import Path
from jaxtyping import Int
from tqdm import tqdm

from crest_jax import files, schema
from crest_jax.data import long_tail, pictures
from crest_jax.data.sources import UNKNOWN, Example, Folders, Source
from crest_jax.errors import DataError

# Decoders give way to each other. Each may hold a picture of `max_pixels`, so not more than that.
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 64  # files that are read before the first of them is handed on
_NAMED = 3  # of a number of like things, in a message

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Listed(NamedTuple):
    """A file by its name."""

    id: str
    path: Path
    class_name: str | None


class _Found(NamedTuple):
    """A file that has been looked into."""

    id: str
    path: Path
    label: int
    sha256: bytes
    plain: bool  # whether its content is copied


def image_folder(folders: Folders) -> Source:
    """Opens one's own images; ids are the files' paths, after the name of their set.

    Every file is read once here, and once more when its example is.

    Raises:
      DataError: a folder or file is not there, or holds no images; a class has none that can be
        read, or is one of the test images' only; or too many files are unreadable.
    """
    listed = {"labeled": _with_classes("labeled", folders.labeled)}
    class_names = tuple(sorted({str(each.class_name) for each in listed["labeled"]}))
    if len(class_names) < 2:
        raise DataError(
            f"data.labeled={folders.labeled!r} has the class {class_names[0]} alone: give two or "
            "more, each a folder, or a label of the CSV file"
        )
    if folders.test:
        listed["test"] = _with_classes("test", folders.test)
        strange = {str(each.class_name) for each in listed["test"]} - set(class_names)
        if strange:
            raise DataError(
                f"data.test={folders.test!r} has classes that the labeled images have not: "
                f"{_some(sorted(strange))}; there are {', '.join(class_names)}"
            )
    if folders.unlabeled:
        listed["unlabeled"] = _without_classes("unlabeled", folders.unlabeled)

    for name in class_names:
        if not schema.TEXT.fits(name):
            raise DataError(
                f"data.labeled={folders.labeled!r}: the class {name!r} must have a name that is "
                f"{schema.TEXT.words}: rename it"
            )
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(class_names)}
    label_of[None] = UNKNOWN
    found = _readable(listed, label_of, folders)
    of_class = np.bincount([each.label for each in found["labeled"]], minlength=len(class_names))
    lacking = [name for name, count in zip(class_names, of_class, strict=True) if not count]
    if lacking:
        raise DataError(
            f"data.labeled={folders.labeled!r}: no image of {_some(lacking)} can be read; see "
            f"{folders.listing}"
        )
    splits = {**found, "train": found["labeled"]}
    if not folders.test:
        labels = np.array([each.label for each in found["labeled"]])
        held_out = long_tail.hold_out(labels, folders.test_fraction)
        for name, chosen in (("train", ~held_out), ("test", held_out)):
            splits[name] = [found["labeled"][row] for row in np.flatnonzero(chosen)]
    if not splits["test"]:
        why = "none of data.test can be read" if folders.test else "each class has a single one"
        raise DataError(f"there is no image to test on, since {why}: give some as data.test")
    if folders.unlabeled and not splits["unlabeled"]:
        raise DataError(
            f"data.unlabeled={folders.unlabeled!r} has no image that can be read; see "
            f"{folders.listing}"
        )
    _warn(splits, class_names)

    def labels_of(split: str) -> Int[np.ndarray, " examples"]:
        return np.array([each.label for each in splits[split]], np.int64)

    def examples(split: str) -> Iterator[Example]:
        def example(each: _Found) -> Example:
            return Example(each.id, _content(each, folders.max_pixels), each.label)

        return _in_parallel(example, splits[split])

    contents = hashlib.sha256()
    for each in chain.from_iterable(found.values()):
        contents.update(f"{each.id}\n".encode() + each.sha256)
    return Source(
        "image_folder",
        class_names,
        labels_of,
        examples,
        divided=bool(folders.unlabeled),
        contents=contents.hexdigest(),
    )


# What there is


def _with_classes(field: str, where: str) -> list[_Listed]:
    """The labeled files of a folder or CSV file, sorted."""
    place = _place(field, where)
    if _is_csv(place):
        return _of_csv(field, place, ("path", "label"))
    listed = []
    outside = []
    for path in pictures.below(place):
        name = pictures.utf8(path.relative_to(place))
        class_name, inside, _ = name.partition("/")
        if inside:
            listed.append(_Listed(f"{field}/{name}", path, class_name))
        else:
            outside.append(name)
    if outside:
        raise DataError(
            f"data.{field}={where!r} holds {_some(outside)} beside its folders: move each image "
            "into the folder of its class"
        )
    names = {pictures.utf8(Path(each.name)) for each in place.iterdir() if _is_class(each)}
    empty = sorted(names - {str(each.class_name) for each in listed})
    if empty or not listed:
        raise DataError(
            f"data.{field}={where!r} wants a folder for each class, with images "
            f"({', '.join(pictures.FORMATS)}) in it; there "
            + (f"is none in {_some(empty)}: remove the folder, or fill it" if empty else "is none")
        )
    return listed


def _without_classes(field: str, where: str) -> list[_Listed]:
    """The files of a folder or CSV file, sorted."""
    place = _place(field, where)
    if _is_csv(place):
        return _of_csv(field, place, ("path",))
    listed = [
        _Listed(f"{field}/{pictures.utf8(path.relative_to(place))}", path, None)
        for path in pictures.below(place)
    ]
    if not listed:
        raise DataError(
            f"data.{field}={where!r} holds no image file of {', '.join(pictures.FORMATS)}"
        )
    return listed


def _place(field: str, where: str) -> Path:
    if not files.is_supported(where):
        raise DataError(f"data.{field}={where!r} is neither on a disk nor in a bucket (gs://)")
    path = Path(where).expanduser()
    if files.is_remote(path):
        files.check_bucket(path)
    if not path.is_dir() and not (_is_csv(path) and path.exists()):
        raise DataError(
            f"data.{field}={where!r} is neither a folder nor a CSV file that is there: name one, "
            "from the folder that you run in"
        )
    return path


def _is_csv(place: Path) -> bool:
    return place.suffix.lower() == ".csv" and not place.is_dir()


def _is_class(folder: Path) -> bool:
    return not folder.name.startswith(".") and folder.is_dir()


def _of_csv(field: str, table: Path, columns: Sequence[str]) -> list[_Listed]:
    """The files of a CSV file, sorted; their paths are relative to its folder.

    Args:
      field: of the config.
      table: the file.
      columns: that it must have. Where `label` is none of them it may be there, and is not read.

    Raises:
      DataError: it is no such table; or a line of it names no file, or no class, or one that an
        earlier line has named. The message has the lines.
    """
    try:
        text = files.read_bytes(table).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        header = list(rows.fieldnames or ())
        if set(header) - {"path", "label"} or set(columns) - set(header) or len(header) > 2:
            raise DataError(
                f"{table}, line 1: the columns are {','.join(header) or 'none'}, and must be "
                f"{','.join(columns)}"
            )
        listed: list[_Listed] = []
        wrong: list[str] = []
        line_of: dict[str, int] = {}
        for row in rows:
            line, name, label = rows.line_num, row["path"], (row.get("label") or "").strip()
            if name and not files.is_supported(name):
                wrong.append(f"line {line} names {name}, neither on a disk nor in a bucket (gs://)")
                continue
            path = Path(name) if "://" in (name or "") else table.parent / (name or "")
            if None in row:
                wrong.append(f"line {line} has more cells than the first")
            elif not name:
                wrong.append(f"line {line} has no path")
            elif "label" in columns and not label:
                wrong.append(f"line {line} has no label")
            elif str(path) in line_of:
                wrong.append(f"line {line} names {name} again, as line {line_of[str(path)]}")
            elif "\0" in name or not path.exists() or path.is_dir():
                wrong.append(f"line {line} names {name}, which is not there")
            else:
                line_of[str(path)] = line
                class_name = label if "label" in columns else None
                listed.append(_Listed(f"{field}/{name}", path, class_name))
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text at byte {error.start}: save it as that") from (
            error
        )
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.reader.line_num}: {error}") from error
    if wrong:
        raise DataError(f"{table}: {_some(wrong, '; ')}")
    if not listed:
        raise DataError(f"{table} names no file: it has no line but the first")
    return sorted(listed)


# What can be read


def _readable(
    listed: dict[str, list[_Listed]], label_of: dict[str | None, int], folders: Folders
) -> dict[str, list[_Found]]:
    """Looks into all files, and lists those that cannot be read.

    Raises:
      DataError: they are more than may be.
    """

    def look(each: _Listed) -> _Found | str:
        try:
            content = each.path.read_bytes()
            image = pictures.normalised(content, max_pixels=folders.max_pixels)
            plain = image is content
            if plain:
                pictures.check_decodes(content)
        except (ValueError, *files.failures()) as error:
            return files.reason(error)
        digest = hashlib.sha256(content).digest()
        return _Found(each.id, each.path, label_of[each.class_name], digest, plain)

    everything = list(chain.from_iterable(listed.values()))
    looked = _in_parallel(look, everything)
    found: dict[str, list[_Found]] = {name: [] for name in listed}
    unreadable: list[tuple[str, str]] = []
    progress = tqdm(looked, "images", len(everything), leave=False, disable=None)
    for each, what in zip(everything, progress, strict=True):
        if isinstance(what, str):
            unreadable.append((pictures.utf8(each.path), what))
        else:
            found[each.id.partition("/")[0]].append(what)
    if not unreadable:
        with files.writing(folders.listing):
            if folders.listing.exists():  # of an earlier attempt
                folders.listing.unlink()
        return found
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("file", "reason"), *unreadable])
    files.write_text(folders.listing, lines.getvalue())
    said = (
        f"{len(unreadable)} of {len(everything)} files cannot be read: "
        f"{_some([f'{name} ({reason})' for name, reason in unreadable])}; {folders.listing} has all"
    )
    share = folders.unreadable
    if len(unreadable) > (share if share >= 1 else share * len(everything)):
        raise DataError(
            f"{said}. Mend or remove them, or allow for them: data.unreadable={share:g} is "
            + ("their most" if share >= 1 else "their largest part of all")
        )
    logging.warning("%s; they are left out", said)
    return found


def _content(each: _Found, max_pixels: int) -> bytes:
    """What records hold of a file.

    Raises:
      DataError: it is not as it was when it was looked into.
    """
    try:
        content = each.path.read_bytes()
    except files.failures() as error:
        raise DataError(
            f"{pictures.utf8(each.path)} cannot be read any more ({files.reason(error)}): run again"
        ) from error
    if hashlib.sha256(content).digest() != each.sha256:
        raise DataError(f"{pictures.utf8(each.path)} has changed while it was read: run again")
    return content if each.plain else pictures.normalised(content, max_pixels=max_pixels)


def _in_parallel(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Maps a function over items by some threads, a few results ahead."""
    waiting = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(waiting, _AT_ONCE)):
            yield from pool.map(function, some)


# What is worth knowing of it


def _warn(splits: dict[str, list[_Found]], class_names: Sequence[str]) -> None:
    """Says which images are in two splits, and which classes are not tested."""
    of_split = {name: {each.sha256 for each in splits.get(name, ())} for name in (
        "train", "unlabeled", "test"
    )}  # fmt: skip
    twice = {
        ("test", "train"): "labeled too, so that the accuracy is too good",
        ("test", "unlabeled"): "unlabeled ones too",
        ("unlabeled", "train"): "labeled too",
    }
    for (one, other), what in twice.items():
        shared = [each.id for each in splits.get(one, ()) if each.sha256 in of_split[other]]
        if shared:
            logging.warning("%d %s images are %s: %s", len(shared), one, what, _some(shared))
    tested = {each.label for each in splits["test"]}
    untested = [name for label, name in enumerate(class_names) if label not in tested]
    if untested:
        logging.warning(
            "no test image is of %s: the accuracy is that of the other classes", _some(untested)
        )


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _NAMED
    shown = between.join(names[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
