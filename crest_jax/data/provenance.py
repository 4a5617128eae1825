"""Record the user-provided files that a run has read, and find out whether they have changed.

A run keeps the images that it has read, and its results are for these. If files are added, replaced
or removed later, the same command says so, instead of showing the results as if they were for the
present files.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from etils.epath import Path

from crest_jax import files
from crest_jax.errors import DataError
from crest_jax.wording import some

TABLE = "files.csv"


class File(NamedTuple):
    """The state of a file when a run looked at it, whether or not it could be read."""

    id: str
    class_name: str  # empty if it has none
    # The size in bytes and the time of the last change in nanoseconds, on a disk; both are 0 in a
    # bucket, where asking for them takes long.
    size: int
    modified: int
    sha256: str  # of the content that was read; empty if nothing could be read


def write(table: Path, seen: Sequence[File]) -> None:
    """Write a table of files.

    Raises:
      WorkdirError: The table cannot be written.
    """
    lines = io.StringIO()
    # Quote all values, since the writer would not quote one with only a carriage return in it.
    writer = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([File._fields, *seen])
    files.write_text(table, lines.getvalue())


def read(table: Path) -> dict[str, File]:
    """Return the files that `write` wrote to a table, by their ids.

    Raises:
      DataError: The table is missing or damaged.
    """
    try:
        text = files.read_bytes(table).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if tuple(header) != File._fields:
            raise ValueError("it has other columns")
        seen = [File(name, of, int(size), int(when), sha) for name, of, size, when, sha in rows]
    except (FileNotFoundError, ValueError, csv.Error) as error:
        raise DataError(
            f"{table} is not a table of files ({files.reason(error)}), so changes of the files "
            "cannot be found"
        ) from error
    return {each.id: each for each in seen}


def changes(
    then: Mapping[str, File], now: Iterable[File], digest: Callable[[File], str]
) -> list[str]:
    """Return descriptions of how files have changed; an empty list if none has.

    Args:
      then: the files that the run has read, by their ids.
      now: the present files, whose digests are not known yet.
      digest: returns the digest of a file. It is only called if the time of the last change differs
        and the size does not.
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
        "new": "are new",
        "gone": "are gone",
        "changed": "have other content",
        "moved": "have another class",
    }
    return [f"{len(ids[name])} {words[name]} ({some(ids[name])})" for name in ids if ids[name]]
