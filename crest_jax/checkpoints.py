"""Orbax checkpoints of a generation's training state."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
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
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                digest=ocp.args.JsonSave({"sha256": digest_of(state)}),
            ),
        )


def restore_latest(manager: ocp.CheckpointManager, template: TrainState) -> TrainState:
    """Returns the newest checkpoint, or `template` where there is none.

    Args:
      manager: from `open_checkpoints`.
      template: a state of the right shapes and sharding.

    Raises:
      WorkdirError: the newest checkpoint cannot be read, or is not what was saved.
    """
    step = manager.latest_step()
    if step is None:
        return template
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    path = Path(manager.directory) / str(step)
    way_out = "delete it and run again to continue from the one before"
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), digest=ocp.args.JsonRestore()
            ),
        )
    except Exception as error:  # Orbax has no type of its own for a damaged checkpoint
        raise WorkdirError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): {way_out}"
        ) from error
    # Orbax restores arrays with flipped bits without a word.
    if digest_of(restored.state) != restored.digest["sha256"]:
        raise WorkdirError(f"checkpoint {path} is not what was saved: {way_out}")
    return restored.state


def digest_of(state: TrainState) -> str:
    """SHA-256 of all values of a state, in the order of its leaves."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()
