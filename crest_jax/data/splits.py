"""The splits of an experiment: written once from its source, read back for every run.

Sources give images and labels, `long_tail` decides which are what, `records` keeps them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from crest_jax.data import long_tail, records, sources
from crest_jax.data.records import Images


class Splits(NamedTuple):
    """The splits in memory; what a generation trains on is read anew from its own folder."""

    labeled: Images
    unlabeled: Images
    test: Images
    validation: Images
    class_names: tuple[str, ...]

    @property
    def labeled_counts(self) -> Int[np.ndarray, " classes"]:
        """Size of each class in the original labeled set."""
        return np.bincount(self.labeled.labels, minlength=len(self.class_names))

    @property
    def class_distribution(self) -> Float[np.ndarray, " classes"]:
        """p(y), of the original labeled set."""
        return self.labeled_counts / self.labeled_counts.sum()


def prepare(config: ConfigDict, folder: Path) -> None:
    """Writes the labeled, unlabeled, validation and test records that are not there yet.

    Raises:
      DataError: the source is not there, or does not fit the config.
    """
    names = ("labeled", "unlabeled", "validation", "test")
    if all((folder / name).exists() for name in names):
        return
    source = sources.load(
        config.data.name, data_dir=config.data.data_dir, download=config.data.download
    )
    labels = source.labels("train")
    split = long_tail.split(
        labels,
        *_sizes(config.long_tail, len(source.class_names)),
        fold=config.fold,
        validation_fraction=config.data.validation_fraction,
        class_names=source.class_names,
    )
    member_of = {int(row): name for name, rows in split._asdict().items() for row in rows}
    members: dict[str, list[sources.Example]] = {name: [] for name in split._fields}
    for row, example in enumerate(source.examples("train")):
        if row in member_of:
            members[member_of[row]].append(example)
    members["test"] = list(source.examples("test"))
    for name in names:
        if not (folder / name).exists():
            records.write(
                folder / name,
                members[name],
                class_names=source.class_names,
                shards=config.data.shards,
            )


def load(folder: Path) -> Splits:
    """Reads what `prepare` wrote.

    Raises:
      DataError: something is missing or damaged.
    """
    class_names = tuple(records.read_manifest(folder / "labeled")["class_names"])
    names = ("labeled", "unlabeled", "test", "validation")
    return Splits(*(records.load(folder / name) for name in names), class_names)


def _sizes(
    tail: ConfigDict, classes: int
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """How many examples of each class are labeled, and how many are not."""
    sizes = long_tail.class_sizes(tail.n_max, tail.gamma, classes)
    if "unlabeled_n_max" not in tail:
        return long_tail.by_fraction(sizes, tail.beta)
    return sizes, long_tail.unlabeled_sizes(
        tail.unlabeled_n_max, tail.unlabeled_gamma, classes, tail.unlabeled_order
    )
