"""The splits of an experiment, and how large they are on disk."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils.epath import Path
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from crest_jax.data import manifest
from crest_jax.data.records import Images, joined
from crest_jax.layout import NAMES, SplitsFolder


@runtime_checkable
class Streamed(Protocol):
    """The chunks of a split that are read again on every iteration."""

    def __iter__(self) -> Iterator[Images]:
        """Yield the chunks."""

    def share(self, host: int, hosts: int) -> "Streamed":
        """Return the chunks of a host's share."""


class Split(NamedTuple):
    """One split of an experiment."""

    examples: int
    per_class: Int[np.ndarray, " classes"] | None  # None if the classes are not known
    # Either the whole split in memory, or chunks that are read again on every iteration.
    chunks: Sequence[Images] | Streamed

    @property
    def images(self) -> Images:
        """The whole split, in memory."""
        return joined(list(self.chunks))

    def share(self, host: int, hosts: int) -> Sequence[Images] | Streamed:
        """Return a host's contiguous share; the shares in the order of hosts make up the split."""
        if not isinstance(self.chunks, Sequence):
            return self.chunks.share(host, hosts)
        if hosts == 1:
            return self.chunks
        rows = slice(self.examples * host // hosts, self.examples * (host + 1) // hosts)
        ids, images, labels = self.images
        return [Images(ids[rows], images[rows], labels[rows])]


class Splits(NamedTuple):
    """The splits of a run; a generation reads its own labeled set from its own folder."""

    labeled: Split
    unlabeled: Split
    test: Split
    validation: Split
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def labeled_distribution(self) -> Float[np.ndarray, " classes"]:
        """The fraction of the original labeled set that each class makes up, by its counts."""
        counts = self.labeled.per_class
        assert counts is not None  # the classes of labeled examples are known
        return counts / self.labeled.examples


class Sizes(NamedTuple):
    """The sizes of existing or planned splits, without their images."""

    # These three are by the name of the split.
    examples: dict[str, int]
    per_class: dict[str, Int[np.ndarray, " classes"] | None]
    bytes: dict[str, int]  # the size of the records
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def without_images(self) -> Splits:
        """Return splits of these sizes that hold no images."""
        return Splits(
            class_names=self.class_names,
            image_shape=self.image_shape,
            **{name: Split(self.examples[name], self.per_class[name], ()) for name in NAMES},
        )


def written_sizes(data: ConfigDict, folder: Path) -> Sizes:
    """Return the sizes of the splits that `prepare` wrote.

    Args:
      data: the `data` of a config.
      folder: the folder of the splits.

    Raises:
      DataError: A manifest is missing or damaged; or the labeled images are not resized and differ
        in shape.
    """
    of_splits = SplitsFolder(folder)
    manifests = {name: manifest.read(path) for name, path in of_splits.all_splits().items()}
    return Sizes(
        {name: each["examples"] for name, each in manifests.items()},
        {name: counts_of(each["examples_per_class"]) for name, each in manifests.items()},
        {name: sum(s["bytes"] for s in each["shards"]) for name, each in manifests.items()},
        tuple(manifests["labeled"]["class_names"]),
        manifest.image_shape(of_splits.labeled, data.image_size),
    )


def counts_of(per_class: list[int] | None) -> Int[np.ndarray, " classes"] | None:
    """Return a manifest's counts by class as an array; None if the classes are not known."""
    return None if per_class is None else np.array(per_class)
