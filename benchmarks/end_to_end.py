"""Compare the whole training loop with its compiled step alone.

python benchmarks/end_to_end.py [--size 10-1 16-2] [--batch 16] [--steps 16]
python benchmarks/end_to_end.py --size 28-2 --batch 64 --dtype bfloat16 --steps 500   # the paper's

The loop is `crest_jax.training.train` with everything that happens between two evaluations: batches
from the input pipeline, their transfer to the devices, metrics, the progress bar, and the final
check that all values are finite. The step alone has a batch that is already on the devices. Both
take the same steps in turns. The loop is timed from the end of its first group of steps to the end
of its last one, before it evaluates and saves. The images are noise, as many as in CIFAR10-LT.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import measure
import numpy as np
from etils.epath import Path

from crest_jax.data import pipeline
from crest_jax.data.records import Images
from crest_jax.layout import GenerationFolder
from crest_jax.mesh import split
from crest_jax.schedule import Schedule
from crest_jax.train_step import DeviceBatch
from crest_jax.training import train

# Numbers of images in CIFAR10-LT with gamma = 100 and beta = 10 %.
LABELED = 1237
ALL = 12_406


class Loop(NamedTuple):
    """The times of a training."""

    seconds: float  # per step, on average
    waits: list[float]  # seconds until the batches of the next group of steps arrived


def noise(setting: measure.Setting, count: int) -> Images:
    """Return a set of random images with random labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, setting.side, setting.side, 3), dtype=np.uint8)
    labels = rng.integers(0, setting.classes, count).astype(np.int32)
    return Images([str(number) for number in range(count)], images, labels)


def pipeline_of(
    setting: measure.Setting, everything: Images, *, start: int, stop: int
) -> Iterator[pipeline.Batch]:
    """Return this host's batches of the steps from `start` to `stop`."""
    return pipeline.batches(
        Images(*(field[:LABELED] for field in everything)),
        everything,
        batch_size=setting.batch,
        unlabeled_ratio=setting.ratio,
        seed=0,
        generation=0,
        start=start,
        stop=stop,
    )


def run_loop(
    compiled: measure.Steps, setting: measure.Setting, everything: Images, steps: int
) -> Loop:
    """Train a fresh model for some steps, and return the times."""
    began = ended = 0.0
    waits: list[float] = []

    def batches(start: int) -> Iterator[DeviceBatch]:
        nonlocal began
        source = pipeline_of(setting, everything, start=start, stop=steps)
        while several := list(itertools.islice(source, setting.at_once)):
            stacked = DeviceBatch(*map(np.stack, zip(*several, strict=True)))
            yield split(stacked, compiled.mesh, axis=1)
            began = began or time.perf_counter()  # reached when the first group is done

    def evaluate(state) -> dict:
        nonlocal ended
        ended = time.perf_counter()
        return {"test": {"ema": {"accuracy": 0.0}}}

    with tempfile.TemporaryDirectory() as temporary:
        train(
            compiled.new_state(),
            compiled.compiled,
            lambda start: measure.timed(batches(start), waits),
            lambda evaluated: compiled.constants,
            evaluate,
            folder=GenerationFolder(Path(temporary)),
            schedule=Schedule(steps, eval_every=steps, checkpoint_every=steps),
            title="benchmark",
        )
    return Loop((ended - began) / (steps - setting.at_once), waits[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.add_settings(parser, sizes=["10-1"])
    parser.add_argument(
        "--steps", type=int, default=16, help="steps of a sample; at least twice --at-once"
    )
    arguments = parser.parse_args()
    measure.print_heading(
        *measure.SETTING, f"loop on {measure.on_what()}: ms (least)", "step alone: ms (least)",
        "step alone : loop",
    )  # fmt: skip
    for setting in measure.settings_of(arguments):
        everything = noise(setting, ALL)
        compiled = measure.compile_steps(setting)
        run_loop(compiled, setting, everything, 2 * setting.at_once)  # compiles the loop
        # `interleaved` would also time the loop's start and its saving.
        alone, loop = [], []
        repeated = compiled.repeated()
        calls = arguments.steps // setting.at_once - 1
        for _ in range(arguments.samples):
            loop.append(run_loop(compiled, setting, everything, arguments.steps).seconds)
            began = time.perf_counter()
            repeated(calls)
            alone.append((time.perf_counter() - began) / calls / setting.at_once)
        measure.print_row(
            setting,
            measure.spread(loop),
            measure.spread(alone),
            f"{100 * measure.ratio(alone, loop):.1f} %",
        )


if __name__ == "__main__":
    main()
