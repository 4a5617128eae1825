"""What a generation's model says of the unlabeled split, on disk.

Compressed NumPy archives, read without pickle.
"""

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from crest_jax.errors import DataError


class PseudoLabels(NamedTuple):
    """One entry per unlabeled example, in the order of the unlabeled split."""

    ids: Sequence[str]
    labels: Int[np.ndarray, " unlabeled"]
    # Largest softmax probability of the EMA model without augmentation or alignment, in [0, 1].
    confidence: Float[np.ndarray, " unlabeled"]
    # Whether the next generation trains on it.
    selected: Bool[np.ndarray, " unlabeled"]
    # The class that the source has it in, which nothing but reports look at.
    truth: Int[np.ndarray, " unlabeled"]


def write(folder: Path, pseudo_labels: PseudoLabels) -> None:
    """Writes `folder`, complete or not at all."""
    begin(folder)
    write_shard(folder, pseudo_labels, host=0, hosts=1)
    finish(folder)


def begin(folder: Path) -> None:
    """Prepares for every host to write its shard, on one of them."""
    shutil.rmtree(_partial(folder), ignore_errors=True)
    _partial(folder).mkdir(parents=True)


def write_shard(folder: Path, pseudo_labels: PseudoLabels, *, host: int, hosts: int) -> None:
    """Writes what one host has scored."""
    fields = pseudo_labels._asdict() | {"ids": np.array(pseudo_labels.ids, dtype=np.str_)}
    np.savez_compressed(_partial(folder) / _shard(host, hosts), allow_pickle=False, **fields)


def finish(folder: Path) -> None:
    """Names the folder, once all hosts have written; on one of them."""
    _partial(folder).rename(folder)


def read(folder: Path) -> PseudoLabels:
    """Reads what was written, all hosts' shards in their order.

    Raises:
      DataError: a shard is missing or damaged.
    """
    way_out = f"delete {folder} and run again to score anew"
    files = sorted(folder.glob("shard-*.npz"))
    if [file.name for file in files] != [_shard(host, len(files)) for host in range(len(files))]:
        raise DataError(f"{folder} does not hold each of its shards once: {way_out}")
    parts = []
    for path in files:
        try:
            with np.load(path, allow_pickle=False) as archive:
                parts.append([archive[name] for name in PseudoLabels._fields])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error}): {way_out}") from error
    if not parts:
        raise DataError(f"{folder} is empty: {way_out}")
    ids, *fields = map(np.concatenate, zip(*parts, strict=True))
    return PseudoLabels(ids.tolist(), *fields)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _shard(host: int, hosts: int) -> str:
    return f"shard-{host:05d}-of-{hosts:05d}.npz"
