"""Logit adjustment of a finished run with other values of tau, from its checkpoints.

python -m crest_jax.adjust --workdir=DIR [--tau TAU ...] [--output FILE.json]

Nothing is trained: the checkpoints of each generation's last evaluations classify the test set
anew, and `argmax_y f_y(x) - tau log p(y)` (Menon et al., 2021) decides. The mean over these
evaluations is what results.json reports as `accuracy_logit_adjusted` for the run's own tau, and as
`accuracy` for tau = 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from crest_jax import checkpoints, evaluate, generations, workdir
from crest_jax.config import validate
from crest_jax.data import splits as splits_lib
from crest_jax.data.splits import Splits
from crest_jax.distributed import REPLICATED
from crest_jax.errors import ConfigError, CrestError, WorkdirError
from crest_jax.generations import Program
from crest_jax.rebalancing.logit_adjustment import adjustment
from crest_jax.report import text
from crest_jax.train import reported_steps

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)


def adjust(folder: Path, taus: Sequence[float]) -> dict[str, Any]:
    """Adjusts every finished generation of a run.

    Args:
      folder: the run's.
      taus: each at least 0.

    Returns:
      The class names, and for each finished generation and each tau: the class-balanced accuracy
      and the per-class recall and precision, in per cent, pooled over the last evaluations.

    Raises:
      ConfigError: a tau is not usable, or the run's config not on these devices.
      WorkdirError: `folder` is not a run, no generation of it is finished, or a checkpoint is
        missing or damaged.
      DataError: its splits are damaged.
    """
    for tau in taus:
        if not 0 <= tau < np.inf:
            raise ConfigError(f"tau={tau} must be at least 0, and finite")
    config = workdir.read_config(folder)
    try:
        validate(config, devices=jax.device_count())
    except (AttributeError, KeyError) as error:
        raise WorkdirError(
            f"{folder} was made by another version of this program: its config lacks {error}"
        ) from error
    finished = [
        generation
        for generation in range(config.generations)
        if generations.is_finished(folder, generation)
    ]
    if not finished:
        raise WorkdirError(f"{folder} has no finished generation: run it to the end of one first")
    splits = splits_lib.load(folder / "splits")
    program = generations.build(config, splits)
    adjusted = [
        {
            "generation": generation,
            "adjusted": _adjust_generation(config, folder, generation, taus, splits, program),
        }
        for generation in finished
    ]
    return {"class_names": list(splits.class_names), "generations": adjusted}


def _adjust_generation(
    config: ConfigDict,
    folder: Path,
    generation: int,
    taus: Sequence[float],
    splits: Splits,
    program: Program,
) -> list[dict[str, Any]]:
    classes = len(splits.class_names)
    confusions = np.zeros((len(taus), classes, classes), np.int64)
    steps = reported_steps(generations.schedule_of(config))
    path = generations.folder_of(folder, generation) / "checkpoints"
    template = _template(program)
    with checkpoints.open_checkpoints(path, lasting=steps) as manager:
        for step in steps:
            if step not in manager.all_steps():
                raise WorkdirError(
                    f"{path} lacks the checkpoint of step {step}, which is part of the reported "
                    "figure: run the generation again in another workdir"
                )
            way_out = "run the generation again in another workdir"
            state = checkpoints.restore(manager, step, template, way_out=way_out)
            logits = program.logits(state.ema_params, state.batch_stats, splits.test.images)
            for number, tau in enumerate(taus):
                shift = adjustment(splits.class_distribution, tau).astype(np.float32)
                predicted = (logits - shift).argmax(axis=-1)
                confusions[number] += evaluate.confusion_matrix(
                    splits.test.labels, predicted, classes
                )
    return [
        {
            "tau": tau,
            "accuracy": evaluate.class_balanced_accuracy(confusion),
            "per_class_recall": evaluate.per_class_recall(confusion),
            "per_class_precision": evaluate.per_class_precision(confusion),
        }
        for tau, confusion in zip(taus, confusions, strict=True)
    ]


def _template(program: Program) -> PyTree:
    """Shapes of a state, without making one."""
    sharding = NamedSharding(program.mesh, REPLICATED)
    shapes = jax.eval_shape(program.new_state, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def main() -> None:
    """Prints a table for each generation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run's folder")
    parser.add_argument("--tau", type=float, nargs="+", default=TAUS, help="each at least 0")
    parser.add_argument("--output", type=Path, help="also write the figures, as JSON")
    arguments = parser.parse_args()
    try:
        if arguments.output and not arguments.output.parent.is_dir():
            raise WorkdirError(
                f"--output={arguments.output}: there is no such folder; make it first"
            )
        adjusted = adjust(arguments.workdir, arguments.tau)
        for generation in adjusted["generations"]:
            print(text.adjustment_table(generation, adjusted["class_names"]), flush=True)
        if arguments.output:
            workdir.write_json(arguments.output, adjusted)
    except CrestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
