"""Orbax checkpoints of a generation's training state."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from crest_jax.errors import WorkdirError
from crest_jax.train_state import TrainState

# The one before the last stays until the last is whole, and beyond.
KEEP = 2


@contextmanager
def open_checkpoints(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder of checkpoints; on leaving, waits for saves under way.

    What a killed process left unfinished in it is removed.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, cleanup_tmp_directories=True)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        yield manager


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Saves under the state's own step, in the background; a step already there is left alone."""
    step = int(state.step)
    if step not in manager.all_steps():
        manager.save(step, args=ocp.args.StandardSave(state))


def restore_latest(manager: ocp.CheckpointManager, template: TrainState) -> TrainState:
    """Returns the newest checkpoint, or `template` where there is none.

    Args:
      manager: from `open_checkpoints`.
      template: a state of the right shapes and sharding.

    Raises:
      WorkdirError: the newest checkpoint cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return template
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax has no type of its own for a damaged checkpoint
        path = Path(manager.directory) / str(step)
        raise WorkdirError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it and run again "
            "to continue from the one before"
        ) from error
