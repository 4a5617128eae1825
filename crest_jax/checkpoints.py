"""Save and restore Orbax checkpoints of a generation's training state."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from logging import LogRecord

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from crest_jax import files, hosts, printing
from crest_jax.errors import CrestError, UnavailableError, WorkdirError
from crest_jax.mesh import data_mesh, replicate
from crest_jax.schedule import KEEP
from crest_jax.train_state import TrainState

# The errors that are about the disk or the memory, and do not mean that a checkpoint is damaged.
_AWAY = (OSError, MemoryError, jax.errors.JaxRuntimeError)
# The name of the folder in which `check` saves; it is long so that paths in it are as long as those
# of a run's checkpoints.
_TRIAL = ".trial_of_a_checkpoint_that_is_read"


@contextmanager
def open_checkpoints(folder: Path, *, lasting: Sequence[int]) -> Iterator[ocp.CheckpointManager]:
    """Open a folder of checkpoints; on leaving, wait for saves in progress.

    The latest two checkpoints are kept, and those of the steps in `lasting`. Unfinished ones that a
    killed process left are removed.

    Raises:
      WorkdirError: A checkpoint could not be saved.
    """
    keep = [preservation_policy.LatestN(KEEP), preservation_policy.CustomSteps(lasting)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
    )
    with ExitStack() as stack:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = stack.enter_context(files.plainly_named(folder))
        with _saving(folder, path):
            manager = ocp.CheckpointManager(path, options=options)
        try:
            yield manager
        finally:
            with _saving(folder, path):
                manager.close()


@contextmanager
def open_to_read(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """Open a folder of checkpoints on this host alone, without waiting for others or writing.

    Raises:
      WorkdirError: Libraries would misread the folder's name, and no link to it can be made.
      UnavailableError: The folder cannot be read at the moment.
    """
    this = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        read_only=True,
        create=False,
        save_interval_steps=0,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=this, active_processes={this}
        ),
    )
    with files.plainly_named(folder) as path:
        with files.reading(folder), _without_news_of_reading():
            manager = ocp.CheckpointManager(path, options=options)
        try:
            yield manager
        finally:
            manager.close()


@contextmanager
def _without_news_of_reading() -> Iterator[None]:
    """Keep back Orbax's warning that checkpoints are opened to be read alone, as was asked for."""

    def is_wanted(record: LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    logger = logging.get_absl_logger()
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def folder_of(manager: ocp.CheckpointManager) -> Path:
    """Return the folder of a manager's checkpoints by its own name, not that of a link to it."""
    directory = Path(manager.directory)
    if not os.path.islink(directory):  # noqa: PTH114
        return directory
    return directory.parent / os.readlink(directory)  # noqa: PTH115


def check(folder: Path) -> None:
    """Check that checkpoints in a folder can be saved and read, by doing so with a small one.

    Raises:
      WorkdirError: The trial checkpoint cannot be saved or read.
      UnavailableError: It cannot be read at the moment.
    """
    trial = folder / _TRIAL
    state = {"trial": replicate(jnp.arange(8), data_mesh())}
    hosts.on_first(files.begin_folder, trial)
    with open_checkpoints(trial, lasting=()) as manager:
        # Step 0, since hosts that SIGTERM stops agree on a step that is after all saved ones.
        _save(manager, 0, state)
        manager.wait_until_finished()
        way_out = "nothing was trained yet: choose another folder with --workdir"
        hosts.on_all(restore, manager, 0, state, way_out=way_out)
    hosts.on_first(trial.rmtree)


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Save a state under its step, in the background; keep the checkpoint of that step if any.

    Raises:
      WorkdirError: This checkpoint, or the one that was still being saved, could not be saved.
    """
    step = int(state.step)
    if step not in manager.all_steps():
        _save(manager, step, state)


def _save(manager: ocp.CheckpointManager, step: int, state: PyTree) -> None:
    with _saving(folder_of(manager), manager.directory):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                digest=ocp.args.JsonSave({"sha256": digest_of(state)}),
            ),
        )


@contextmanager
def _saving(folder: Path, told: Path) -> Iterator[None]:
    """Re-raise errors of Orbax as WorkdirError naming `folder`, instead of the link `told`."""
    try:
        yield
    except Exception as error:  # Orbax and its libraries report a full disk in many ways
        raise WorkdirError(
            f"a checkpoint in {folder} cannot be saved ({_reason(error, folder, told)})",
            "run again when it can, to continue from the one before",
        ) from error


def _reason(error: Exception, folder: Path, told: Path) -> str:
    return files.reason(error).replace(str(told), str(folder))


def restore_latest(
    manager: ocp.CheckpointManager,
    fresh: TrainState,
    *,
    check: Callable[[int], None] = lambda step: None,
) -> TrainState:
    """Return the newest undamaged checkpoint, or `fresh` if there are no checkpoints at all.

    Newer ones, which are damaged, are deleted; training repeats their steps. They are deleted only
    once an undamaged one has been found, so that nothing is deleted because a disk is unavailable.

    Args:
      manager: a manager from `open_checkpoints`.
      fresh: a state of the right shapes and sharding.
      check: a function of the step that raises WorkdirError if something else that belongs to the
        checkpoint of this step is missing.

    Raises:
      WorkdirError: All checkpoints are damaged.
      UnavailableError: A checkpoint cannot be read at the moment.
    """
    wrong: dict[int, CrestError] = {}
    for step in sorted(hosts.from_first(manager.all_steps), reverse=True):
        try:
            hosts.on_all(check, step)
            state = hosts.on_all(restore, manager, step, fresh)
        except WorkdirError as error:
            wrong[step] = error
            continue
        for newer, damage in wrong.items():
            printing.say(f"{damage.what}; continuing from step {step}")
            manager.delete(newer)
        return state
    if wrong:
        folder = folder_of(manager)
        raise WorkdirError(
            f"no checkpoint in {folder} can be used; {next(iter(wrong.values())).what}",
            f"move {folder.parent} elsewhere and run again to train this generation again",
        )
    return fresh


def restore(
    manager: ocp.CheckpointManager, step: int, template: PyTree, *, way_out: str = ""
) -> PyTree:
    """Return the checkpoint of a step.

    Args:
      manager: a manager from `open_checkpoints`.
      step: the step of the checkpoint.
      template: a state of the right shapes and sharding, or only these (ShapeDtypeStruct leaves).
      way_out: what to do if the checkpoint is damaged, for the error message.

    Raises:
      WorkdirError: The checkpoint is damaged.
      UnavailableError: The checkpoint cannot be read at the moment.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    folder = folder_of(manager)
    path = folder / str(step)
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), digest=ocp.args.JsonRestore()
            ),
        )
        saved = restored.digest["sha256"]
    except Exception as error:
        reason = _reason(error, folder, manager.directory)
        said = f"checkpoint {path} cannot be read ({type(error).__name__}: {reason})"
        if isinstance(error, _AWAY) and not isinstance(error, FileNotFoundError):
            raise UnavailableError(said, "run again when it can") from error
        # Orbax has no exception type for a damaged checkpoint, so any other error counts as one.
        raise WorkdirError(said, way_out) from error
    # Orbax restores arrays with flipped bits without an error.
    if digest_of(restored.state) != saved:
        raise WorkdirError(f"checkpoint {path} is not what was saved", way_out)
    return restored.state


def digest_of(state: PyTree) -> str:
    """Return the SHA-256 of all values of a state, in the order of its leaves."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
