"""The paths of the files of a run, and the version of their format."""

from typing import NamedTuple

from etils.epath import Path

from crest_jax.errors import WorkdirError

# The version of everything besides the config that a run depends on: networks, class distributions
# and random numbers. The weights and figures of a run of another format come from another version
# of this program, and must not be mistaken for those of this one.
FORMAT = 2


# The splits of a run.
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


class GenerationFolder(NamedTuple):
    """The files of one generation."""

    path: Path

    @property
    def labeled(self) -> Path:
        """The labeled set that the generation trains on, as TFRecords."""
        return self.path / "labeled"

    @property
    def checkpoints(self) -> Path:
        """The training states, as Orbax saves them."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The evaluations, one per line."""
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
    def plugins(self) -> Path:
        """The digests of the source files that the config names, if it names any."""
        return self.path / "plugins.json"

    @property
    def lock(self) -> Path:
        """The file that the process at work holds locked."""
        return self.path / ".lock"

    @property
    def splits(self) -> SplitsFolder:
        """The labeled, unlabeled, validation and test splits."""
        return SplitsFolder(self.path / "splits")

    @property
    def initial_weights(self) -> Path:
        """The weights that every generation starts from, if the config gives any."""
        return self.path / "initial_weights.safetensors"

    @property
    def unreadable(self) -> Path:
        """The table of files that cannot be read as images."""
        return self.path / "unreadable.csv"

    @property
    def results(self) -> Path:
        """The figures of all generations."""
        return self.path / "results.json"

    @property
    def page(self) -> Path:
        """The report as a web page."""
        return self.path / "report.html"

    def is_archive(self) -> bool:
        """Return whether there are results alone, as `crest_jax.report.archive` keeps them."""
        has_more = self.splits.path.exists() or self.generation(0).path.exists()
        return self.results.exists() and not has_more

    def check_whole(self) -> None:
        """Check that the run's images, pseudo-labels and models may be there.

        Raises:
          WorkdirError: The folder is an archive.
        """
        if self.is_archive():
            raise WorkdirError(
                f"{self.path} has the results of a run alone, as archives have: its models, "
                "pseudo-labels and images are in the folder that it was trained in"
            )

    def generation(self, number: int) -> GenerationFolder:
        """Return the files of a generation, which is counted from 0."""
        return GenerationFolder(self.path / f"generation_{number:02d}")
