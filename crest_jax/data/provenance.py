"""What one's own files were when a run read them, and whether they still are.

A run keeps the images that it has read, and its results are of these. Files may be added, exchanged
or removed since: the same command then says so, instead of showing results as if they were of what
there is now.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from etils.epath import Path

from crest_jax import files
from crest_jax.data.pictures import some
from crest_jax.errors import DataError

TABLE = "files.csv"


class File(NamedTuple):
    """A file as it was when it was looked into, whether or not it could be read."""

    id: str
    class_name: str  # empty if it has none
    # Bytes and nanoseconds of the last change, on a disk; 0 in a bucket, where to ask takes long.
    size: int
    modified: int
    sha256: str  # of what was read of it; empty if nothing could be


def write(table: Path, seen: Sequence[File]) -> None:
    """Write a table of files.

    Raises:
      WorkdirError: it cannot be written.
    """
    lines = io.StringIO()
    # All are quoted, since a carriage return alone would not be.
    writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([File._fields, *seen])
    files.write_text(table, lines.getvalue())


def read(table: Path) -> dict[str, File]:
    """Return the files of a table by their ids.

    Raises:
      DataError: the table is missing or damaged.
    """
    try:
        text = files.read_bytes(table).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if tuple(header) != File._fields:
            raise ValueError("it has other columns")
        seen = [File(name, of, int(size), int(when), sha) for name, of, size, when, sha in rows]
    except (FileNotFoundError, ValueError, csv.Error) as error:
        raise DataError(
            f"{table} is no table of files ({files.reason(error)}), so that it cannot be told "
            "whether they have changed"
        ) from error
    return {each.id: each for each in seen}


def changes(
    then: Mapping[str, File], now: Iterable[File], digest: Callable[[File], str]
) -> list[str]:
    """Say what is no longer as it was; nothing if everything is.

    Args:
      then: the files by their ids.
      now: the files that there are, whose digests are not known yet.
      digest: gives that of a file. It is asked for where the size or the time has changed.
    """
    ids: dict[str, list[str]] = {name: [] for name in ("new", "gone", "changed", "moved")}
    left = dict(then)
    for file in now:
        before = left.pop(file.id, None)
        if before is None:
            ids["new"].append(file.id)
            continue
        if file.class_name != before.class_name:
            ids["moved"].append(file.id)
        if file.size != before.size or (
            file.modified != before.modified and digest(file) != before.sha256
        ):
            ids["changed"].append(file.id)
    ids["gone"] = list(left)
    words = {
        "new": "new",
        "gone": "there no more",
        "changed": "of other content",
        "moved": "of another class",
    }
    return [f"{len(ids[name])} are {words[name]} ({some(ids[name])})" for name in ids if ids[name]]
