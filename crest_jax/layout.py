"""The files of a run, and where they are."""

from typing import NamedTuple

from etils.epath import Path


class GenerationFolder(NamedTuple):
    """The files of one generation."""

    path: Path

    @property
    def labeled(self) -> Path:
        """The labeled set that the generation trains on, as TFRecords."""
        return self.path / "labeled"

    @property
    def checkpoints(self) -> Path:
        """Training states, as Orbax saves them."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The evaluations, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def pseudo_labels(self) -> Path:
        """The pseudo-labels of the unlabeled split, and which of them are selected."""
        return self.path / "pseudo_labels"

    @property
    def test_predictions(self) -> Path:
        """The predictions on the test split."""
        return self.path / "test_predictions"

    @property
    def result(self) -> Path:
        """The figures of the generation, written last."""
        return self.path / "result.json"


class RunFolder(NamedTuple):
    """The files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The config that the run belongs to."""
        return self.path / "config.json"

    @property
    def lock(self) -> Path:
        """The file that the process at work holds locked."""
        return self.path / ".lock"

    @property
    def splits(self) -> Path:
        """The folder of the labeled, unlabeled, validation and test splits."""
        return self.path / "splits"

    @property
    def initial_weights(self) -> Path:
        """The weights that generations start from, where they are given."""
        return self.path / "initial_weights.safetensors"

    @property
    def unreadable(self) -> Path:
        """The list of files that cannot be read as images."""
        return self.path / "unreadable.csv"

    @property
    def results(self) -> Path:
        """The figures of all generations."""
        return self.path / "results.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def generation(self, number: int) -> GenerationFolder:
        """Return the files of a generation, which is counted from 0."""
        return GenerationFolder(self.path / f"generation_{number:02d}")
