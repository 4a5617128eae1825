"""The predictions of a generation on the unlabeled split, on disk.

A folder holds one compressed NumPy archive from each host, which is read without pickle, and a
manifest, which is written last.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from etils.epath import Path
from jaxtyping import Bool, Float, Int, Shaped

from crest_jax import files, schema
from crest_jax.errors import CrestError, DataError

FORMAT = 1
_MANIFEST: Mapping[str, schema.Schema] = {
    "format": schema.Kind(str(FORMAT), lambda value: type(value) is int and value == FORMAT),
    "shards": schema.Each(
        {
            "file": schema.FILE_NAME,
            "examples": schema.COUNT,
            "selected": schema.COUNT,
            "sha256": schema.SHA256,
        }
    ),
}
# The NumPy dtype kinds of the fields of `PseudoLabels`, in their order.
_KINDS = "Sifbi"
# The most bytes that DEFLATE can expand one compressed byte to.
_EXPANSION = 1032


class PseudoLabels(NamedTuple):
    """One entry per unlabeled example, in the order of the unlabeled split."""

    ids: Shaped[np.ndarray, " unlabeled"]  # UTF-8 as dtype S: a quarter of the memory of dtype U
    labels: Int[np.ndarray, " unlabeled"]
    # Largest softmax probability of the EMA model without augmentation or alignment, in [0, 1].
    confidence: Float[np.ndarray, " unlabeled"]
    # Whether the next generation trains on the example.
    selected: Bool[np.ndarray, " unlabeled"]
    # The class according to the source, or `sources.UNKNOWN`; only reports use it.
    truth: Int[np.ndarray, " unlabeled"]


class PseudoLabelShard(TypedDict):
    """A shard as the manifest describes it, with the fields of `_MANIFEST`."""

    file: str
    examples: int
    selected: int
    sha256: str


class Selected(NamedTuple):
    """Examples that the next generation trains on."""

    rows: Int[np.ndarray, " selected"]  # indices into the unlabeled split, in ascending order
    ids: Shaped[np.ndarray, " selected"]
    labels: Int[np.ndarray, " selected"]


def write(folder: Path, pseudo_labels: PseudoLabels) -> None:
    """Write a whole folder from a single host."""
    files.begin_folder(folder)
    finish(folder, [write_shard(folder, pseudo_labels, host=0, hosts=1)])


def write_shard(
    folder: Path, pseudo_labels: PseudoLabels, *, host: int, hosts: int
) -> PseudoLabelShard:
    """Write the pseudo-labels of one host as a shard, and return its manifest entry.

    One host must have created the folder with `files.begin_folder`.

    Raises:
      WorkdirError: The shard cannot be written.
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


def finish(folder: Path, written: Sequence[PseudoLabelShard]) -> None:
    """Write the manifest, which completes the folder.

    Call this on one host, once all hosts have written their shards.

    Args:
      folder: the folder of pseudo-labels.
      written: the manifest entries of all hosts, in any order.

    Raises:
      DataError: A shard is missing, or was written twice.
      WorkdirError: The manifest cannot be written.
    """
    written = sorted(written, key=lambda entry: entry["file"])
    names = [entry["file"] for entry in written]
    if names != [_shard(host, len(names)) for host in range(len(names))]:
        raise DataError(
            f"{folder}: the hosts have written {', '.join(names)}, and not one shard each: do all "
            "hosts run the same command?"
        )
    files.write_json(folder / files.MANIFEST, {"format": FORMAT, "shards": written})


def read(folder: Path) -> PseudoLabels:
    """Read all shards of a folder.

    Raises:
      DataError: As for `read_shards`.
    """
    return PseudoLabels(*map(np.concatenate, zip(*read_shards(folder), strict=True)))


def read_shards(folder: Path, *, host: int = 0, hosts: int = 1) -> Iterator[PseudoLabels]:
    """Yield the pseudo-labels of a folder, with one shard in memory at a time.

    Args:
      folder: the folder of pseudo-labels.
      host: the index of the host whose share of the shards to read; by default, all are read.
      hosts: the number of hosts that share the reading, however many wrote the shards.

    Raises:
      DataError: A shard or the manifest is missing or damaged.
    """
    for entry in _entries(folder)[host::hosts]:
        yield _read_shard(folder, entry)


def check(folder: Path) -> None:
    """Check that the shards of a folder are, byte for byte, what was written.

    Raises:
      DataError: A shard or the manifest is missing or damaged.
    """
    for _ in read_shards(folder):
        pass


def selected_count(folder: Path) -> int:
    """Return the number of selected examples.

    Raises:
      DataError: The manifest is missing or damaged.
    """
    return sum(entry["selected"] for entry in _entries(folder))


def selected(folder: Path, numbers: range) -> Selected:
    """Return a range of the selected examples.

    Only the shards that hold some of them are opened.

    Args:
      folder: the folder of pseudo-labels.
      numbers: the positions of the wanted examples among all selected ones, in their order.

    Raises:
      DataError: A shard or the manifest is missing or damaged.
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


def _entries(folder: Path) -> list[PseudoLabelShard]:
    """Return the manifest's entries for the shards."""
    path = folder / files.MANIFEST
    try:
        manifest = files.parse_json(files.read_bytes(path))
    except (ValueError, FileNotFoundError) as error:
        raise DataError(
            f"{path} is not a readable manifest ({files.reason(error)})", _way_out(folder)
        ) from error
    wrong = next(schema.mismatches(manifest, _MANIFEST), None)
    if wrong is None and not manifest["shards"]:
        wrong = "it lists no shards"
    if wrong is not None:
        raise DataError(f"{path} was not written by this version ({wrong})", _way_out(folder))
    return manifest["shards"]


def _read_shard(folder: Path, entry: PseudoLabelShard) -> PseudoLabels:
    path = folder / entry["file"]
    try:
        content = files.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DataError(f"{path} has changed since it was written", _way_out(folder))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            shard = PseudoLabels(
                *(
                    _array(archive, name, kind, entry["examples"])
                    for name, kind in zip(PseudoLabels._fields, _KINDS, strict=True)
                )
            )
    except CrestError:
        raise
    except Exception as error:  # damaged files make parsers raise all kinds of exceptions
        raise DataError(
            f"{path} cannot be read ({files.reason(error)})", _way_out(folder)
        ) from error
    if shard.selected.sum() != entry["selected"]:
        raise DataError(
            f"{path} holds other pseudo-labels than its manifest says", _way_out(folder)
        )
    return shard


def _array(archive: zipfile.ZipFile, name: str, kind: str, examples: int) -> np.ndarray:
    """Read one field, after checking its header for a plausible size.

    A file of kilobytes may claim to hold terabytes, and NumPy allocates memory before it reads.
    Nothing is unpickled.

    Args:
      archive: the archive of a shard.
      name: the name of the field.
      kind: the expected NumPy dtype kind.
      examples: the expected length.

    Raises:
      ValueError: The field has another type or length, claims more bytes than its compressed data
        can hold, or was not written in the format of `write_shard`.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{name} is not compressed with DEFLATE")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != (examples,) or dtype.kind != kind:
        raise ValueError(f"{name} is {dtype} of shape {shape}, not {examples} of kind {kind!r}")
    if examples * dtype.itemsize > member.compress_size * _EXPANSION:
        raise ValueError(
            f"{name} cannot have {examples * dtype.itemsize} bytes, compressed to "
            f"{member.compress_size}"
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _way_out(folder: Path) -> str:
    return f"delete {folder} and run again to score the images again"


def _shard(host: int, hosts: int) -> str:
    return f"shard-{host:05d}-of-{hosts:05d}.npz"
