"""Measure the seconds of everything in a run that is not a training step.

python benchmarks/generation.py [--size 10-1] [--largest 500] [--eval_batch 256]
python benchmarks/generation.py --size 28-2 --batch 64 --largest 5000 --eval_batch 1024   # paper

Runs CReST+ in a fresh process for two generations of a few steps, as `crest_jax.main` does, on a
long-tailed set of noise images of CIFAR's size: first with an empty compilation cache, and then
with the cache that the first run has filled. Times are counted from the start of the process. Steps
and evaluations are timed until their results are there. A checkpoint has two times: how long the
loop is held up, and how long until it is on disk. If something happens several times, its time is
the median without the first. At the end, scoring of the unlabeled images is measured in turns with
the bare forward passes, which are compiled and get the same batches, already on the devices.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import measure

STEPS = 4
AT_ONCE = STEPS // 2  # steps that are sent to the devices together
TEST = 1000


class Clock:
    """Records the duration and end of functions, and how many programs were compiled by then."""

    def __init__(self):
        import jax

        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.ends: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.compiled = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        jax.monitoring.register_event_listener(self._heard)

    def _heard(self, event: str, *_: Any, **__: Any) -> None:
        # JAX counts what it finds in the cache as compiled, too.
        self.compiled += event == "/jax/core/compile/backend_compile_duration"
        self.compiled -= event == "/jax/compilation_cache/cache_hits"

    def timed(self, name: str, function: Callable) -> Callable:
        """Return the function with a timer that runs until its result is there."""
        import jax

        def wrapped(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = jax.block_until_ready(function(*arguments, **options))
            self.seconds[name].append(time.perf_counter() - began)
            self.ends[name].append((time.time(), self.compiled))
            return result

        return wrapped

    def watch(self, module: Any, **names: str) -> None:
        """Time functions of a module, each under a name, wherever the module calls them."""
        for function, name in names.items():
            setattr(module, function, self.timed(name, getattr(module, function)))

    def usual(self, name: str) -> float:
        """Return the median without the first time, which includes compilation."""
        return statistics.median(self.seconds[name][1:])


def noise(per_class: int) -> Any:
    """Return a data set of noise with the classes and image size of CIFAR10."""
    import numpy as np
    from PIL import Image

    from crest_jax.data.sources import Example, Source

    sizes = {"train": 10 * per_class, "test": TEST}
    rng = np.random.default_rng(0)
    images = []
    for _ in range(10):  # making more of them would take longer than writing the splits does
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        images.append(file.getvalue())

    def examples(split: str) -> Iterator[Example]:
        for number in range(sizes[split]):
            yield Example(f"{split}-{number}", images[number % 10], number % 10)

    names = tuple(str(label) for label in range(10))
    return Source("noise", names, lambda split: np.arange(sizes[split]) % 10, examples)


def config_of(arguments: argparse.Namespace) -> Any:
    """Return a config of two short generations of the paper's CReST+."""
    from crest_jax.config import default_config, parse_arguments

    config = default_config(parse_arguments("rebalance=crest_plus"))
    depth, width = map(int, arguments.size.split("-"))
    config.update_from_flattened_dict(
        {
            "generations": 2,
            "steps": STEPS,
            "eval_every": AT_ONCE,
            "checkpoint_every": AT_ONCE,
            "batch_size": arguments.batch,
            "eval_batch_size": arguments.eval_batch,
            "dtype": arguments.dtype,
            "model.name": arguments.network,
            "model.depth": depth,
            "model.width": width,
            "long_tail.n_max": arguments.largest,
        }
    )
    return config


def run(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Run CReST+ in this process, and return a column of the table."""
    config = config_of(arguments)
    from etils.epath import Path

    from crest_jax import batches, checkpoints, generations, job, program, self_training
    from crest_jax.data import catalog, loading, preparation
    from crest_jax.rebalancing import crest

    imported = time.time()
    clock = Clock()
    catalog.load = lambda *_, **__: noise(arguments.largest)
    select, save, train, build = (
        crest.select,
        checkpoints.save,
        generations.train,
        program.build,
    )
    built: list[Any] = []  # the run, and its last state

    def keep_built(config, splits, initial):
        made = build(config, splits, initial)
        made = made._replace(new_state=clock.timed("fresh state", made.new_state))
        built[:] = [program.Run(None, splits, made), None]
        return made

    def timed_train(state, train_steps, batches, constants, evaluate, **options):
        steps, evaluation = clock.timed("steps", train_steps), clock.timed("evaluation", evaluate)
        built[1] = train(state, steps, batches, constants, evaluation, **options)
        return built[1]

    def save_at_once(manager, state):
        save_held_up(manager, state)
        manager.wait_until_finished()

    save_held_up = clock.timed("held up", save)
    checkpoints.save = clock.timed("checkpoint", save_at_once)
    program.build, generations.train = keep_built, timed_train
    crest.select = clock.timed(
        "select", lambda *inputs, **options: list(select(*inputs, **options))
    )
    clock.watch(preparation, prepare="prepare")
    clock.watch(loading, load="load")
    clock.watch(generations, _write_results="report")
    clock.watch(
        self_training, score_unlabeled="score", write_scores="write", rewrite_labeled="rewrite"
    )
    clock.watch(batches, on_host="read")
    with tempfile.TemporaryDirectory() as temporary:
        job.run(config, Path(temporary) / "run")
    ends, compiled = zip(*clock.ends["steps"], strict=True)
    calls = STEPS // AT_ONCE  # groups of steps in a generation
    seconds = clock.seconds
    column = {
        "start to imported": imported - arguments.began,
        "splits: write": seconds["prepare"][0],
        "splits: read": seconds["load"][0],
        "fresh state, with compilation": seconds["fresh state"][0],
        f"first {AT_ONCE} steps, with compilation": seconds["steps"][0],
        f"**start to first {AT_ONCE} steps**": ends[0] - arguments.began,
        "… which compiles, of programs": compiled[0],
        "a step": clock.usual("steps") / AT_ONCE,
        "first evaluation, with compilation": seconds["evaluation"][0],
        "evaluation, ema and raw": clock.usual("evaluation"),
        "checkpoint: loop held up": clock.usual("held up"),
        "checkpoint: in all": clock.usual("checkpoint"),
        "scoring": seconds["score"][0],
        "… of which selection": seconds["select"][0],
        "writing pseudo-labels": seconds["write"][0],
        "results and report of the first generation": seconds["report"][0],
        "rewriting the labeled set": seconds["rewrite"][1],
        "reading it": seconds["read"][1],
        f"**last step to next generation's first {AT_ONCE}**": ends[calls] - ends[calls - 1],
        "… without evaluation, scoring and steps": ends[calls]
        - ends[calls - 1]
        - clock.usual("evaluation")
        - seconds["score"][0]
        - seconds["steps"][calls],
        "… in which compiles, of programs": compiled[calls] - compiled[calls - 1],
    }
    scoring = measure.interleaved(
        {"score": _scoring(*built), "bare": _bare(config, *built)}, arguments.samples
    )
    column["scoring, without selection"] = statistics.median(scoring["score"])
    column["bare forward passes"] = statistics.median(scoring["bare"])
    column["bare : scoring"] = f"{100 * measure.ratio(scoring['bare'], scoring['score']):.1f} %"
    return column


def _scoring(run: Any, state: Any) -> Callable[[int], None]:
    """Return a function that scores the unlabeled images without selecting any."""
    from crest_jax import self_training

    def score(calls: int) -> None:
        for _ in range(calls):
            self_training.score_unlabeled(run, run.program.generations - 1, state)

    return score


def _bare(config: Any, run: Any, state: Any) -> Callable[[int], None]:
    """Return a function that makes bare forward passes of the same batches, padding included."""
    import jax
    import numpy as np

    from crest_jax import augment, program
    from crest_jax.mesh import REPLICATED, SPLIT, over_devices, split

    model = program.model_of(config, run.classes, axis_name=None)
    forward = over_devices(
        lambda images, variables: model.apply(variables, augment.rescale(images), train=False),
        run.program.local_mesh,
        in_specs=(SPLIT, REPLICATED),
        out_specs=SPLIT,
    )
    images, size = run.splits.unlabeled.images.images, config.eval_batch_size
    images = np.pad(images, [(0, -len(images) % size), (0, 0), (0, 0), (0, 0)])
    batches = [
        split(images[start : start + size], run.program.local_mesh)
        for start in range(0, len(images), size)
    ]
    variables = dict(zip(("params", "batch_stats"), state.ema_weights, strict=True))

    def forward_passes(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready([forward(batch, variables) for batch in batches])

    return forward_passes


def in_a_process(arguments: argparse.Namespace, cache: str) -> dict[str, float | str]:
    """Run CReST+ in a fresh process, and return a column of the table."""
    options = [f"--{name}={value}" for name, value in vars(arguments).items() if name != "began"]
    command = [sys.executable, __file__, *options, f"--began={time.time()}"]
    done = subprocess.run(
        command,
        check=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network", default="wide_resnet", help="a name of crest_jax.models, or module:name"
    )
    parser.add_argument("--size", default="10-1", help="depth-width")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16, help="labeled images")
    parser.add_argument("--eval_batch", type=int, default=256, help="images per evaluation batch")
    parser.add_argument("--largest", type=int, default=500, help="images of the largest class")
    measure.add_samples(parser)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.began:
        print(json.dumps(run(arguments)))
        return
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (in_a_process(arguments, cache) for _ in range(2))
    measure.print_heading("seconds", "empty compilation cache", "filled")
    for name in cold:
        cells = (column[name] for column in (cold, warm))
        measure.print_row(name, *(f"{x:.3g}" if isinstance(x, float) else x for x in cells))


if __name__ == "__main__":
    main()
