"""Listing the files of user-provided images: folders of classes, other folders, and CSV files."""

import csv
import io
import os
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
from etils.epath import Path

from crest_jax import files
from crest_jax.data import pictures
from crest_jax.data.sources import Folders, normal_name
from crest_jax.errors import DataError
from crest_jax.wording import some


class Listed(NamedTuple):
    """A file whose content has not been read yet."""

    id: str
    path: Path
    class_name: str | None
    by_list: bool = False  # whether a CSV file names it, so that it should be a picture


def list_files(folders: Folders) -> dict[str, list[Listed]]:
    """Return the files of each set whose location the config gives."""
    listed = {"labeled": _with_classes("labeled", folders.labeled)}
    if folders.test:
        listed["test"] = _with_classes("test", folders.test)
    if folders.unlabeled:
        listed["unlabeled"] = _without_classes("unlabeled", folders.unlabeled)
    return listed


def _with_classes(field: str, where: str) -> list[Listed]:
    """Return the files that a CSV file names, or those in the folders of the classes, sorted.

    Files beside the folders are included without a class; none of them may be a picture.
    """
    place = _place(field, where)
    if _is_csv(place):
        return _from_csv(field, place, ("path", "label"))
    listed: list[Listed] = []
    beside: list[Listed] = []
    hidden: list[str] = []
    empty: list[str] = []
    with files.reading(place):
        entries = sorted(place.iterdir())
    for each in entries:
        name = pictures.utf8(Path(each.name))
        if not each.is_dir():
            if not name.startswith("."):
                beside.append(Listed(f"{field}/{name}", each, None))
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


def _without_classes(field: str, where: str) -> list[Listed]:
    """Return the files in a folder, or those that a CSV file names, sorted."""
    place = _place(field, where)
    if _is_csv(place):
        return _from_csv(field, place, ("path",))
    listed = _below(field, place, place, None)
    if not listed:
        raise DataError(f"data.{field}={where!r} holds no file")
    return sorted(listed)


def _below(field: str, place: Path, folder: Path, class_name: str | None) -> list[Listed]:
    """Return the files at any depth below a folder, which is that of a set or inside it."""
    return [
        Listed(f"{field}/{pictures.utf8(path.relative_to(place))}", path, class_name)
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


def _from_csv(field: str, table: Path, columns: Sequence[str]) -> list[Listed]:
    """Return the files that a CSV file names, sorted; their paths are relative to its folder.

    Args:
      field: the field of the config's `data` that names the CSV file; also the name of the set.
      table: the CSV file.
      columns: the columns that it must have. If `label` is not among them, it may be present and is
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
        listed: list[Listed] = []
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
                listed.append(Listed(f"{field}/{name}", path, class_name, by_list=True))
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
