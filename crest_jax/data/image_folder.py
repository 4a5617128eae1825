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
import re
import unicodedata
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

from crest_jax import files, schema
from crest_jax.data import decode, long_tail, pictures, provenance
from crest_jax.data.pictures import Note, some
from crest_jax.data.provenance import File
from crest_jax.data.sources import UNKNOWN, Example, Folders, Source, normal_name
from crest_jax.errors import DataError

# Decoders release the GIL, so threads run in parallel. Each may hold a picture of `max_pixels`, so
# their number is limited.
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 64  # the number of files that the threads are given together
# Names that people give to the parts of a data set, but hardly ever to classes. The parts that are
# trained on come first.
_PARTS = (
    "train", "training", "labeled", "labelled", "test", "testing", "eval", "holdout", "val",
    "valid", "validation", "dev", "unlabeled", "unlabelled",
)  # fmt: skip

# Words that people combine with these names, as in training_set or seg_train.
_OF_PARTS = (
    "set", "split", "data", "dataset", "images", "image", "img", "pictures", "photos", "seg",
)  # fmt: skip

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Listed(NamedTuple):
    """A file whose content has not been read yet."""

    id: str
    path: Path
    class_name: str | None
    by_list: bool = False  # whether a CSV file names it, so that it should be a picture


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
    listed = _listed(folders)
    class_names = _class_names(listed["labeled"])
    _check_classes(folders.labeled, listed["labeled"], class_names)
    if folders.test:
        _check_tested(folders.test, listed["test"], class_names)

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
    )


def changes(folders: Folders, then: Mapping[str, File]) -> list[str]:
    """Describe what has changed since a run read the files; return an empty list if nothing has.

    Args:
      folders: The locations of the files now.
      then: The files as the run read them, by id, from `provenance.read`.

    Raises:
      DataError: A folder or list does not exist, or is no longer a folder or list of images.
    """
    listed = {each.id: each for each in chain.from_iterable(_listed(folders).values())}

    def digest(file: File) -> str:
        try:
            return hashlib.sha256(pictures.content_of(listed[file.id].path)).hexdigest()
        except files.failures(ValueError):
            return ""

    return provenance.changes(then, (_file(each, "") for each in listed.values()), digest)


# Listing the files


def _listed(folders: Folders) -> dict[str, list[_Listed]]:
    """Return the files of each set whose location the config gives."""
    listed = {"labeled": _with_classes("labeled", folders.labeled)}
    if folders.test:
        listed["test"] = _with_classes("test", folders.test)
    if folders.unlabeled:
        listed["unlabeled"] = _without_classes("unlabeled", folders.unlabeled)
    return listed


def _file(each: _Listed, sha256: str) -> File:
    size = modified = 0
    if not files.is_remote(each.path) and os.path.exists(each.path):  # noqa: PTH110
        status = os.stat(each.path)  # noqa: PTH116
        size, modified = status.st_size, status.st_mtime_ns
    return File(each.id, each.class_name or "", size, modified, sha256)


def _with_classes(field: str, where: str) -> list[_Listed]:
    """Return the files that a CSV file names, or those in the folders of the classes, sorted.

    Files beside the folders are included without a class; none of them may be a picture.
    """
    place = _place(field, where)
    if _is_csv(place):
        return _from_csv(field, place, ("path", "label"))
    listed: list[_Listed] = []
    beside: list[_Listed] = []
    hidden: list[str] = []
    empty: list[str] = []
    with files.reading(place):
        entries = sorted(place.iterdir())
    for each in entries:
        name = pictures.utf8(Path(each.name))
        if not each.is_dir():
            if not name.startswith("."):
                beside.append(_Listed(f"{field}/{name}", each, None))
        elif name.startswith("."):
            hidden.append(name)
        elif inside := _below(field, place, each, normal_name(name)):
            listed += inside
        else:
            empty.append(name)
    astray = [each.id.partition("/")[2] for each in beside if _may_be_of_a_class(each.path)]
    if astray:
        raise DataError(
            f"data.{field}={where!r} holds {some(astray)} beside its folders: move each image "
            "into the folder of its class"
        )
    if empty or not listed:
        raise DataError(
            f"data.{field}={where!r} must have a folder for each class, with images "
            f"({', '.join(pictures.FORMATS)}) in it; there "
            + (f"is none in {some(empty)}: remove the folder, or fill it" if empty else "is none")
        )
    if hidden:
        logging.warning(
            "data.%s=%r: hidden folders are not taken for classes: %s",
            field,
            where,
            some(hidden),
        )
    return sorted(listed + beside)


def _may_be_of_a_class(path: Path) -> bool:
    """Return whether a file beside the class folders is a picture, or a broken link."""
    return bool(pictures.kind_by_looks(path)) or not (files.is_remote(path) or path.exists())


def _without_classes(field: str, where: str) -> list[_Listed]:
    """Return the files in a folder, or those that a CSV file names, sorted."""
    place = _place(field, where)
    if _is_csv(place):
        return _from_csv(field, place, ("path",))
    listed = _below(field, place, place, None)
    if not listed:
        raise DataError(f"data.{field}={where!r} holds no file")
    return sorted(listed)


def _below(field: str, place: Path, folder: Path, class_name: str | None) -> list[_Listed]:
    """Return the files at any depth below a folder, which is that of a set or inside it."""
    return [
        _Listed(f"{field}/{pictures.utf8(path.relative_to(place))}", path, class_name)
        for path in files.below(folder)
    ]


def _place(field: str, where: str) -> Path:
    path = files.given(where, f"data.{field}")
    if files.is_remote(path):
        files.check_bucket(path)
    if not path.is_dir() and not (_is_csv(path) and path.exists()):
        raise DataError(
            f"data.{field}={where!r} is neither a folder nor a CSV file that exists: give the path "
            "of one, from the folder that you run in"
        )
    return path


def _is_csv(place: Path) -> bool:
    return place.suffix.lower() == ".csv" and not place.is_dir()


def _from_csv(field: str, table: Path, columns: Sequence[str]) -> list[_Listed]:
    """Return the files that a CSV file names, sorted; their paths are relative to its folder.

    Args:
      field: The field of the config's `data` that names the CSV file; also the name of the set.
      table: The CSV file.
      columns: The columns that it must have. If `label` is not among them, it may be present and is
        ignored.

    Raises:
      DataError: The file is not such a table; or a line names no existing file, no class, or a file
        that an earlier line has named. The message gives the lines.
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
            path = _named(table.parent, name or "")
            place = str(path) if files.is_remote(path) else os.path.normpath(files.absolute(path))
            if None in row:
                wrong.append(f"line {line} has more cells than the first")
            elif not name:
                wrong.append(f"line {line} has no path")
            elif "label" in columns and not label:
                wrong.append(f"line {line} has no label")
            elif place in line_of:
                wrong.append(f"line {line} names {name} again, as line {line_of[place]}")
            elif "\0" in name or not path.exists() or path.is_dir():
                wrong.append(f"line {line} names {name}, which does not exist")
            else:
                line_of[place] = line
                class_name = normal_name(label) if "label" in columns else None
                listed.append(_Listed(f"{field}/{name}", path, class_name, by_list=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text at byte {error.start}: save it as that") from (
            error
        )
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.reader.line_num}: {error}") from error
    if wrong:
        raise DataError(f"{table}: {some(wrong, '; ')}")
    if not listed:
        raise DataError(f"{table} names no file: it has no line but the first")
    return sorted(listed)


def _named(folder: Path, name: str) -> Path:
    """Return the path of a name, whose accents may be encoded differently on the disk."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    whole = name.startswith(("gs://", "~/"))
    paths = [files.given(each) if whole else folder / each for each in forms]
    if "\0" in name:
        return paths[0]
    return next((path for path in paths if path.exists()), paths[0])


# Checking the names of classes


def _class_names(listed: Iterable[_Listed]) -> tuple[str, ...]:
    return tuple(sorted({each.class_name for each in listed if each.class_name is not None}))


def _appearance(name: str) -> str:
    """Return a key that is the same for names that look alike.

    It does not depend on case, white space, leading zeros of a whole number, invisible characters,
    and the Unicode form of a letter.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = re.sub(r"(?<![\d.,])0+(?=\d)", "", text)
    return "".join(
        letter
        for letter in text
        if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )


def _check_classes(where: str, labeled: Sequence[_Listed], class_names: Sequence[str]) -> None:
    """Check the classes of the labeled images, and warn of those that may be a mistake.

    Args:
      where: The location of the labeled images, as the config gives it.
      labeled: The files of the labeled images.
      class_names: The names of their classes.

    Raises:
      DataError: There is only one class, the classes are parts of a data set, or a name is not
        valid text.
    """
    inner = _inner_folders(labeled)
    if len(class_names) < 2:
        raise DataError(
            f"data.labeled={where!r} has only the class {class_names[0]}: give two or more, each "
            f"as a folder, or as a label of the CSV file{_one_too_high('labeled', where, inner)}"
        )
    for name in class_names:
        if not schema.TEXT.fits(name):
            raise DataError(
                f"data.labeled={where!r}: the class {name!r} must have a name that is "
                f"{schema.TEXT.words}: rename it"
            )
    part_of = {name: part for name in class_names if (part := _part(name))}
    parts = sorted(part_of, key=lambda name: _PARTS.index(part_of[name]))
    if len(parts) > 1 and any(inner[name] and not _has_pictures(labeled, name) for name in parts):
        one, other = parts[:2]
        field = "unlabeled" if part_of[other].startswith("un") else "test"
        raise DataError(
            f"data.labeled={where!r} has the folders {some(parts)}, which are parts of a data set "
            f"and not classes: give labeled={_inside(where, one)},{field}={_inside(where, other)}, "
            "or rename them if they are classes"
        )
    if len(parts) > 1:
        logging.warning(
            "data.labeled=%r has the classes %s, which have names of parts of a data set; if they "
            "are such parts, give one of them as labeled, and another as test",
            where,
            some(parts),
        )
    _warn_of_shared_folders(where, inner)
    alike = [
        " and ".join(map(repr, names))
        for names in _grouped(class_names, _appearance).values()
        if len(names) > 1
    ]
    if alike:
        logging.warning(
            "data.labeled=%r has classes whose names look alike: %s; give them the same name if "
            "they are one class",
            where,
            some(alike, "; "),
        )


def _part(name: str) -> str | None:
    """Return which of `_PARTS` a folder's name means; None if the folder may be a class."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    parts = [word for word in words if word in _PARTS]
    if len(parts) != 1 or set(words) - {*parts, *_OF_PARTS}:
        return None
    return parts[0]


def _check_tested(where: str, test: Sequence[_Listed], class_names: Sequence[str]) -> None:
    """Check that the test images have no class that the labeled images lack.

    Raises:
      DataError: The test images have such a class.
    """
    strange = sorted(set(_class_names(test)) - set(class_names))
    if not strange:
        return
    of_appearance = {_appearance(name): name for name in class_names}
    named = []
    for name in strange:
        alike = of_appearance.get(_appearance(name))
        named.append(f"{name!r} (is it {alike!r}?)" if alike else name)
    inner = {name: found & set(class_names) for name, found in _inner_folders(test).items()}
    raise DataError(
        f"data.test={where!r} has classes that the labeled images do not have: {some(named)}; "
        f"these have {', '.join(class_names)}{_one_too_high('test', where, inner)}"
    )


def _inner_folders(listed: Sequence[_Listed]) -> dict[str, set[str]]:
    """Return the names of the folders inside each class's folder; none for a CSV file."""
    inner: dict[str, set[str]] = defaultdict(set)
    for each in listed:
        if each.class_name is not None and not each.by_list:
            _, _, *between, _ = each.id.split("/")
            inner[each.class_name].update(map(normal_name, between[:1]))
    return inner


def _has_pictures(listed: Sequence[_Listed], class_name: str) -> bool:
    """Return whether the folder of a class holds pictures directly, not only in inner folders."""
    return any(
        each.class_name == class_name
        and each.id.count("/") == 2
        and pictures.kind_by_looks(each.path)
        for each in listed
    )


def _one_too_high(field: str, where: str, inner: Mapping[str, set[str]]) -> str:
    """Return advice for the case that the classes are the folders inside a supposed class."""
    for name, found in inner.items():
        if found:
            return (
                f". If {some(sorted(found))} in {name} are the classes, give "
                f"{field}={_inside(where, name)}"
            )
    return ""


def _warn_of_shared_folders(where: str, inner: Mapping[str, set[str]]) -> None:
    """Warn of inner folders that occur in several classes, and may themselves be the classes."""
    above = defaultdict(list)
    for name, found in inner.items():
        for folder in found:
            above[folder].append(name)
    shared = sorted(folder for folder, names in above.items() if len(names) > 1)
    if shared:
        names = sorted({name for folder in shared for name in above[folder]})
        logging.warning(
            "data.labeled=%r: the classes %s all have folders called %s; each class is an outer "
            "folder with everything below it. If the inner ones are the classes, give labeled=%s",
            where,
            some(names),
            some(shared),
            _inside(where, names[0]),
        )


def _inside(where: str, name: str) -> str:
    return f"{where.rstrip('/')}/{name}"


def _grouped(items: Iterable[_Item], key: Callable[[_Item], _Result]) -> dict[_Result, list[_Item]]:
    """Group items by the value that a function has for them."""
    groups: dict[_Result, list[_Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


# Reading the files


def _readable(
    listed: dict[str, list[_Listed]], label_of: dict[str | None, int], folders: Folders
) -> tuple[dict[str, list[_Found]], list[File]]:
    """Read all files, and list those that cannot be read as pictures.

    Returns:
      The readable images of each set, and all files, readable or not.

    Raises:
      DataError: More files than allowed cannot be read although a CSV file, their names or their
        first bytes say that they are pictures.
    """

    def look(each: _Listed) -> tuple[File, _Found | _Unreadable]:
        file, content = _file(each, ""), None
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
    _list(unreadable, folders.listing)
    lost = [each for each in unreadable if each.is_damaged]
    others = [each for each in unreadable if not each.is_damaged]
    if others:
        others.sort(key=lambda each: each.kind is None)
        of_pictures = sum(each.kind is not None for each in others)
        logging.warning(
            "%d files are left out, %d of which seem to be pictures of kinds that are not read: "
            "%s; %s lists all",
            len(others),
            of_pictures,
            some([f"{pictures.utf8(each.path)} ({each.reason})" for each in others]),
            folders.listing,
        )
    if lost:
        images = len(everything) - len(others)
        named = some([f"{pictures.utf8(each.path)} ({each.reason})" for each in lost])
        message = (
            f"{len(lost)} of {images} pictures cannot be read: {named}; {folders.listing} lists all"
        )
        share = folders.unreadable
        if len(lost) > (share if share >= 1 else share * images):
            raise DataError(
                f"{message}. Mend or remove them, or raise data.unreadable={share:g}, which is "
                f"{'the number' if share >= 1 else 'the fraction'} that may be unreadable"
            )
        logging.warning("%s; they are left out", message)
    return found, seen


def _list(unreadable: Sequence[_Unreadable], listing: Path) -> None:
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
        while some := list(islice(waiting, _AT_ONCE)):
            yield from pool.map(function, some)


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
