"""Orbax checkpoints of a generation's training state."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import Path
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy

from crest_jax import files
from crest_jax.errors import WorkdirError
from crest_jax.train_state import TrainState

# The one before the last stays until the last is whole, and beyond.
KEEP = 2


@contextmanager
def open_checkpoints(folder: Path, *, lasting: Sequence[int]) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder of checkpoints; on leaving, waits for saves under way.

    The latest two stay, and those of the steps in `lasting`. What a killed process left unfinished
    is removed.
    """
    keep = [preservation_policy.LatestN(KEEP), preservation_policy.CustomSteps(lasting)]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
    )
    with ocp.CheckpointManager(files.absolute(folder), options=options) as manager:
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


def restore_latest(manager: ocp.CheckpointManager, fresh: TrainState) -> TrainState:
    """Returns the newest checkpoint, or `fresh` where there is none.

    Raises:
      WorkdirError: the newest checkpoint cannot be read, or is not what was saved.
    """
    step = manager.latest_step()
    if step is None:
        return fresh
    way_out = "delete it and run again to continue from the one before"
    return restore(manager, step, fresh, way_out=way_out)


def restore(
    manager: ocp.CheckpointManager, step: int, template: PyTree, *, way_out: str
) -> TrainState:
    """Returns the checkpoint of a step.

    Args:
      manager: from `open_checkpoints`.
      step: whose.
      template: a state of the right shapes and sharding, or only these.
      way_out: what to do where it is damaged, for the message.

    Raises:
      WorkdirError: the checkpoint cannot be read, or is not what was saved.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    path = Path(manager.directory) / str(step)
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
