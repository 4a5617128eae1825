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

_SHARD = "shard-00000-of-00001.npz"


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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fields = pseudo_labels._asdict() | {"ids": np.array(pseudo_labels.ids, dtype=np.str_)}
    np.savez_compressed(partial / _SHARD, allow_pickle=False, **fields)
    partial.rename(folder)


def read(folder: Path) -> PseudoLabels:
    """Reads what `write` wrote.

    Raises:
      DataError: the archive is missing or damaged.
    """
    path = folder / _SHARD
    try:
        with np.load(path, allow_pickle=False) as archive:
            fields = {name: archive[name] for name in PseudoLabels._fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete {folder} and run again to score anew"
        ) from error
    return PseudoLabels(**fields | {"ids": fields["ids"].tolist()})
