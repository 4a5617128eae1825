"""What a generation's model says of the unlabeled split, on disk.

Compressed NumPy archives, one from each host, read without pickle; and a manifest, written last.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils.epath import Path
from jaxtyping import Bool, Float, Int, Shaped

from crest_jax import files
from crest_jax.errors import DataError

FORMAT = 1


class PseudoLabels(NamedTuple):
    """One entry per unlabeled example, in the order of the unlabeled split."""

    ids: Shaped[np.ndarray, " unlabeled"]  # UTF-8, dtype S: a quarter of what text takes
    labels: Int[np.ndarray, " unlabeled"]
    # Largest softmax probability of the EMA model without augmentation or alignment, in [0, 1].
    confidence: Float[np.ndarray, " unlabeled"]
    # Whether the next generation trains on it.
    selected: Bool[np.ndarray, " unlabeled"]
    # The class that the source has it in, or `sources.UNKNOWN`; nothing but reports look at it.
    truth: Int[np.ndarray, " unlabeled"]


class Selected(NamedTuple):
    """Examples that the next generation trains on."""

    rows: Int[np.ndarray, " selected"]  # in the unlabeled split, rising
    ids: Shaped[np.ndarray, " selected"]
    labels: Int[np.ndarray, " selected"]


def write(folder: Path, pseudo_labels: PseudoLabels) -> None:
    """Writes a folder, on one host."""
    files.begin_folder(folder)
    finish(folder, [write_shard(folder, pseudo_labels, host=0, hosts=1)])


def write_shard(folder: Path, pseudo_labels: PseudoLabels, *, host: int, hosts: int) -> dict:
    """Writes what one host has scored into a folder begun by one, and returns the manifest's entry.

    Raises:
      WorkdirError: it cannot be written.
    """
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **pseudo_labels._asdict())
    content = archive.getvalue()
    path = folder / _shard(host, hosts)
    files.write_bytes(path, content)
    return {
        "file": path.name,
        "examples": len(pseudo_labels.ids),
        "selected": int(pseudo_labels.selected.sum()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def finish(folder: Path, written: Sequence[dict]) -> None:
    """Writes the manifest, which makes the folder whole, once all hosts have written; on one.

    Raises:
      DataError: a shard is missing, or was written twice.
      WorkdirError: the manifest cannot be written.
    """
    written = sorted(written, key=lambda entry: entry["file"])
    names = [entry["file"] for entry in written]
    if names != [_shard(host, len(names)) for host in range(len(names))]:
        raise DataError(f"{folder}: the hosts have written {', '.join(names)}, not a shard each")
    files.write_json(folder / files.MANIFEST, {"format": FORMAT, "shards": written})


def read(folder: Path) -> PseudoLabels:
    """Reads everything that was written.

    Raises:
      DataError: as `parts`.
    """
    return PseudoLabels(*map(np.concatenate, zip(*parts(folder), strict=True)))


def parts(folder: Path, *, host: int = 0, hosts: int = 1) -> Iterator[PseudoLabels]:
    """Reads what was written, a shard in memory at a time.

    Args:
      folder: of pseudo-labels.
      host: whose part of the shards to read; all by default.
      hosts: how many share them, whoever wrote them.

    Raises:
      DataError: a shard or the manifest is missing or damaged.
    """
    for entry in _entries(folder)[host::hosts]:
        yield _read_shard(folder, entry)


def check(folder: Path) -> None:
    """Makes sure that a folder's files are those that were written, to the last byte.

    Raises:
      DataError: a shard or the manifest is missing or damaged.
    """
    for _ in parts(folder):
        pass


def selected_count(folder: Path) -> int:
    """How many examples were selected.

    Raises:
      DataError: the manifest is missing or damaged.
    """
    return sum(entry["selected"] for entry in _entries(folder))


def selected(folder: Path, numbers: range) -> Selected:
    """The selected examples of these numbers, counted among the selected ones in their order.

    Only the shards that hold some are opened.

    Raises:
      DataError: a shard or the manifest is missing or damaged.
    """
    found = [Selected(np.zeros(0, np.int64), np.zeros(0, "S1"), np.zeros(0, np.int64))]
    first_row = first_number = 0
    for entry in _entries(folder):
        inside = slice(max(numbers.start - first_number, 0), max(numbers.stop - first_number, 0))
        if range(entry["selected"])[inside]:
            shard = _read_shard(folder, entry)
            rows = np.flatnonzero(shard.selected)[inside]
            found.append(Selected(first_row + rows, shard.ids[rows], shard.labels[rows]))
        first_row += entry["examples"]
        first_number += entry["selected"]
    return Selected(*map(np.concatenate, zip(*found, strict=True)))


def _entries(folder: Path) -> list[dict]:
    """What the manifest says of the shards."""
    path = folder / files.MANIFEST
    try:
        manifest = files.parse_json(files.read_bytes(path))
        known = manifest["format"] == FORMAT
        entries = manifest["shards"]
        sound = all(
            isinstance(entry[name], kind)
            for entry in entries
            for name, kind in (("file", str), ("examples", int), ("selected", int), ("sha256", str))
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise DataError(
            f"{path} is not a readable manifest ({files.reason(error)})", _way_out(folder)
        ) from error
    if not known or not sound or not entries:
        raise DataError(f"{path} was not written by this version", _way_out(folder))
    return entries


def _read_shard(folder: Path, entry: dict) -> PseudoLabels:
    path = folder / entry["file"]
    try:
        content = files.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DataError(f"{path} has changed since written", _way_out(folder))
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            shard = PseudoLabels(*(archive[name] for name in PseudoLabels._fields))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, FileNotFoundError) as error:
        raise DataError(
            f"{path} cannot be read ({files.reason(error)})", _way_out(folder)
        ) from error
    if (len(shard.ids), shard.selected.sum()) != (entry["examples"], entry["selected"]):
        raise DataError(f"{path} holds others than its manifest says", _way_out(folder))
    return shard


def _way_out(folder: Path) -> str:
    return f"delete {folder} and run again to score anew"


def _shard(host: int, hosts: int) -> str:
    return f"shard-{host:05d}-of-{hosts:05d}.npz"
