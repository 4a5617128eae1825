"""One experiment in this process, from its config to its results."""

import os
from contextlib import nullcontext

import jax
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import (
    backend,
    contracts,
    files,
    generations,
    hosts,
    plan,
    plugins,
    preemption,
    printing,
    saved_run,
    validation,
    versions,
)
from crest_jax import config as config_lib
from crest_jax import workdir as workdir_lib
from crest_jax.cpu import library
from crest_jax.data.arrays import with_arrays
from crest_jax.data.sources import Source
from crest_jax.errors import ConfigError, DataError
from crest_jax.layout import RunFolder
from crest_jax.saved_run import SavedRun
from crest_jax.wording import shown


def train(
    config: ConfigDict,
    folder: str | os.PathLike[str],
    *,
    data: Source | None = None,
    pictures: bool = True,
    quiet: bool = False,
) -> SavedRun:
    """Run an experiment to its end, or continue it, and return its results.

    The same call continues a run that was stopped. It works in a notebook, and on any thread; on
    the main thread SIGTERM stops it with everything saved, as on the command line. JAX's settings
    are changed to those that results are defined with, and stay so.

    It prints a table after each generation, and in a terminal, or in a notebook with ipywidgets,
    shows a progress bar. Evaluations are logged too where there is no terminal, at level INFO of
    absl, which is not shown unless `absl.logging.set_verbosity("info")` is called.

    Args:
      config: from `crest_jax.experiment`.
      folder: the run's folder, which is made if it is not there; on a disk or in a bucket (gs://).
      data: from `crest_jax.arrays`, in place of the data set that the config names. If it has
        unlabeled images, it takes the place of the config's `long_tail` too.
      pictures: whether the run's page shows some of the images.
      quiet: whether to print no tables and show no bar. Warnings are logged all the same.

    Raises:
      ConfigError: A field is not usable, and the message names all such fields; or `config` or
        `folder` is something else.
      DataError: The data set is missing or damaged, or `data` is something else.
      WorkdirError: The folder belongs to another config, cannot be written, or holds damaged files.
      UnavailableError: A file cannot be read at the moment; the same call continues the run later.
      NonFiniteError: Training has diverged.
      DeviceError: JAX cannot use the devices here.
      HostError: Of several hosts, another disagrees with this one or has failed.
      Preempted: SIGTERM arrived. It is no CrestError, and `except Exception` does not catch it.

    Example:
      config = crest_jax.experiment("digits_lt", rebalance="crest")
      run = crest_jax.train(config, "runs/digits")
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"config={shown(config)} must be a ConfigDict, as crest_jax.experiment returns"
        )
    workdir = files.given(folder, "folder")
    if data is not None:
        if not isinstance(data, Source):
            raise DataError(f"data={shown(data)} must be what crest_jax.arrays returns")
        config = with_arrays(config, data)
    validation.validate(config)
    backend.start()
    with printing.quiet() if quiet else nullcontext():
        run(config, workdir, source=data, pictures=pictures)
    return saved_run.load(workdir)


def run(
    config: ConfigDict, workdir: Path, *, source: Source | None = None, pictures: bool = True
) -> None:
    """Run or continue an experiment, on all hosts together.

    Args:
      config: the experiment's config.
      workdir: the run's folder.
      source: the data set; by default the one that the config names.
      pictures: whether the run's page shows some of the images.

    Raises:
      CrestError: As for `train`.
      Preempted: SIGTERM arrived.
    """
    with preemption.raised_on_sigterm():
        _agree(config, workdir, dry=False)
        claimed = hosts.on_first(workdir_lib.claim, workdir, config)
        with claimed or nullcontext():
            printing.say(
                f"{workdir}: {config.method}, rebalance={config.rebalance}, {config.data.name}, "
                f"fold {config.fold}"
            )
            generations.run(config, workdir, source=source, pictures=pictures)
        folder = RunFolder(workdir)
        printing.say(f"results: {folder.results}\npage: {folder.page}")


def dry_run(config: ConfigDict, workdir: Path) -> None:
    """Print what a run would do and need, on all hosts together; write nothing to its folder.

    Args:
      config: the experiment's config.
      workdir: the run's folder.

    Raises:
      CrestError: As for `plan.show`, or as for `train`.
      Preempted: SIGTERM arrived.
    """
    with preemption.raised_on_sigterm():
        _agree(config, workdir, dry=True)
        plan.show(config, workdir)


def _agree(config: ConfigDict, workdir: Path, *, dry: bool) -> None:
    """Check the config, and that all hosts have been started alike."""
    backend.keep_compiled()
    hosts.on_all(validation.validate, config, devices=jax.device_count(), hosts=jax.process_count())
    hosts.on_all(contracts.check, config)
    hosts.check_agreement(
        {"config": config_lib.to_plain(config), "workdir": str(files.absolute(workdir)), "dry": dry}
        | {"versions": versions.installed(), "kernels": library.describe()}
        | {"plugins": plugins.digests(config)}
    )
