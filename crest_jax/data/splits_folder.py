"""The names of the splits of a run, and where they are on disk."""

from typing import NamedTuple

from etils.epath import Path

NAMES = ("labeled", "unlabeled", "test", "validation")


class SplitsFolder(NamedTuple):
    """The folder of the splits of a run; each split is a folder of records, named after it."""

    path: Path

    def split(self, name: str) -> Path:
        """Return the folder of the split of a name."""
        assert name in NAMES, name
        return self.path / name

    @property
    def labeled(self) -> Path:
        """The original labeled set."""
        return self.split("labeled")

    @property
    def unlabeled(self) -> Path:
        """The unlabeled images."""
        return self.split("unlabeled")

    @property
    def test(self) -> Path:
        """The test images."""
        return self.split("test")

    def all_splits(self) -> dict[str, Path]:
        """Return the folders of all splits, by name."""
        return {name: self.split(name) for name in NAMES}
