"""The runs of the paper's experiments at a scale, and the commands that make them."""

import shlex
from collections.abc import Mapping
from typing import NamedTuple

from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import experiments, workdir
from crest_jax.errors import ConfigError
from crest_jax.paper.scales import SCALES


class PaperRun(NamedTuple):
    """A run that cells of a table, or a curve of a figure, come from."""

    experiment: str
    arguments: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str], ...]  # config fields
    workdir: Path

    @property
    def command(self) -> list[str]:
        """The command that starts or continues the run."""
        arguments = ",".join(f"{key}={value}" for key, value in self.arguments)
        return [
            "python", "-m", "crest_jax.main",
            f"--config={experiments.folder() / self.experiment}.py:{arguments}",
            f"--workdir={self.workdir}",
            *(f"--config.{field}={value}" for field, value in self.fields),
        ]  # fmt: skip

    def config(self) -> ConfigDict:
        """Return the config that the command makes.

        Raises:
          ConfigError: The experiment's file is missing, or its config lacks one of the fields.
        """
        words = [word for word in self.command[2:] if not word.startswith("--workdir=")]
        try:
            return experiments.read(words)
        except ConfigError as error:
            raise ConfigError(f"{error} (in: {shlex.join(self.command)})") from error


class Setting(NamedTuple):
    """The setting of runs: how they differ from the paper's, how many there are, and where."""

    scale: str  # a key of `SCALES`
    folds: int  # the number of folds
    fields: Mapping[str, str]  # config fields from the command line; they overrule the scale's
    folder: Path  # the folder of all runs; it has a subfolder for each scale

    @property
    def note(self) -> str:
        """The remark for outputs of runs that differ from the paper's; empty if none does."""
        changed = [
            f"{field}={value}"
            for field, value in self.fields.items()
            if field not in workdir.INCIDENTAL
        ]
        remarks = list(filter(None, [SCALES[self.scale].note, *changed]))
        return f"NOT THE PAPER'S SETTING: {', '.join(remarks)}" if remarks else ""

    def includes(self, experiment: str) -> bool:
        """Return whether an experiment of the paper is run in this setting."""
        return SCALES[self.scale].includes(experiment)

    def runs(
        self, experiment: str, arguments: Mapping[str, str], own: Mapping[str, str] = {}
    ) -> tuple[PaperRun, ...]:
        """Return the runs of an experiment, one for each fold.

        Args:
          experiment: the name of the experiment's file.
          arguments: the paper's arguments of the experiment. Their order is part of a run's name:
            tables and figures share the runs whose arguments have the same order.
          own: config fields that distinguish the runs; like the arguments, they are part of their
            names.
        """
        return tuple(
            self._run(experiment, {**arguments, "fold": str(fold)}, own)
            for fold in range(self.folds)
        )

    def _run(
        self, experiment: str, arguments: Mapping[str, str], own: Mapping[str, str]
    ) -> PaperRun:
        scale = SCALES[self.scale]
        smaller = scale.arguments_of(experiment, arguments)
        scaled = scale.fields_of(
            experiment, method=arguments["method"], rebalance=arguments["rebalance"]
        )
        # Name the run after the experiment that runs, not after the one that it replaces.
        runs_as = scale.experiment or experiment
        name = "-".join([runs_as, *(f"{key}={value}" for key, value in {**smaller, **own}.items())])
        return PaperRun(
            runs_as,
            tuple(smaller.items()),
            tuple({**own, **scaled, **self.fields}.items()),
            self.folder / self.scale / name,
        )
