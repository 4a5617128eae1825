"""Define the settings, steps and timers that the benchmarks of training share.

JAX is imported inside functions, so that the rest can be used in a Python that only has PyTorch.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

# The shortest sample in seconds; shorter ones would depend on the clock's resolution.
SHORTEST = 0.1


class Setting(NamedTuple):
    """The model, batch and precision of a step, as the options give them."""

    network: str
    size: str  # depth-width
    dtype: str
    precision: str
    batch: int
    ratio: int
    weak_forward: str
    side: int
    classes: int
    at_once: int  # steps that are sent to the devices together
    channels: int = 3

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """Return the two numbers of `size`."""
        depth, width = self.size.split("-")
        return int(depth), int(width)

    @property
    def images(self) -> int:
        """Count the images in a step: labeled ones, and two views of each unlabeled one."""
        return self.batch * (1 + 2 * self.ratio)

    @property
    def forward_passes(self) -> int:
        """Return the cost of a step in forward passes of an image; a backward pass costs two."""
        forward_only = self.batch * self.ratio if self.weak_forward == "separate" else 0
        return 3 * self.images - 2 * forward_only

    def __str__(self) -> str:
        """Return the first cells of a table's row: model, pixels, dtype and batch."""
        unlabeled = self.batch * self.ratio
        batch = f"{self.batch} + {unlabeled} + {unlabeled}"
        separate = " (separate)" if self.weak_forward == "separate" else ""
        precision = "" if self.precision == "default" else f" ({self.precision})"
        model = f"{self.network}-{self.size}"
        return f"{model} | {self.side} | {self.dtype}{precision} | {batch}{separate}"


# The columns of a table that a setting fills.
SETTING = ("model", "pixels", "dtype", "labeled + weak + strong")


def add_settings(parser: argparse.ArgumentParser, *, sizes: Sequence[str]) -> None:
    """Add the options of what to train; all combinations of their values are measured.

    Args:
      parser: the parser to add them to.
      sizes: the default of --size.
    """
    parser.add_argument(
        "--network", default="wide_resnet", help="a name of crest_jax.models, or module:name"
    )
    parser.add_argument("--size", nargs="+", default=sizes, help="depth-width")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16")
    parser.add_argument("--precision", nargs="+", default=["default"], help="or high, highest")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="labeled images")
    parser.add_argument("--ratio", type=int, nargs="+", default=[7], help="unlabeled per labeled")
    parser.add_argument("--weak-forward", nargs="+", default=["joint"], help="joint, separate")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=8, help="steps sent to the devices together")
    add_samples(parser)


def add_samples(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """Add the option of how many samples to take."""
    parser.add_argument("--samples", type=int, default=default, help="number of samples")


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """Return all combinations of the options' values."""
    return [
        Setting(arguments.network, *several, arguments.side, arguments.classes, arguments.at_once)
        for several in itertools.product(
            arguments.size,
            arguments.dtype,
            arguments.precision,
            arguments.batch,
            arguments.ratio,
            arguments.weak_forward,
        )
    ]


def interleaved(ways: Mapping[str, Callable[[int], None]], samples: int) -> dict[str, list[float]]:
    """Time several ways in turns, so that other load on the machine affects all of them alike.

    Each turn begins with one call that is not timed, so that a sample is like the middle of a long
    loop: during the turns of the others, the caches were overwritten, and the host of a virtual
    machine may have taken back free memory.

    Args:
      ways: functions that do their work as often as asked, and return when all of it is done.
      samples: the number of samples of each way.

    Returns:
      The samples of each way, in seconds for doing its work once.
    """
    calls = {}
    for name, way in ways.items():
        way(1)
        began = time.perf_counter()
        way(1)
        calls[name] = max(1, math.ceil(SHORTEST / (time.perf_counter() - began)))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(samples):
        for name, way in ways.items():
            way(1)
            began = time.perf_counter()
            way(calls[name])
            seconds[name].append((time.perf_counter() - began) / calls[name])
    return seconds


class Way(NamedTuple):
    """Work that can be repeated and timed."""

    run: Callable[[int], Any]  # does the work as often as asked
    about: Any = None  # a description that JSON can hold


def serve(make: Callable[..., Way]) -> None:
    """Answer the requests of `process`, in a process that it has started.

    Args:
      make: makes a way from the arguments of a request.
    """
    way = None
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            way.run(asked)
            answer = None
        else:
            way = None  # two ways may not fit into memory
            way = make(*asked)
            answer = way.about
        print(json.dumps(answer), flush=True)


@contextmanager
def process(
    python: str, options: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Callable[..., Way]]:
    """Start a process that calls `serve`, and end it after use; it is idle between requests.

    Args:
      python: the Python to run.
      options: the script's path, and its options.
      environment: variables to add to this process's environment.

    Returns:
      A function that makes a way in the other process, in place of the previous one.
    """
    started = subprocess.Popen(
        [python, *options],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(asked: Any) -> Any:
        print(json.dumps(asked), file=started.stdin, flush=True)
        line = started.stdout.readline()
        if not line:
            raise SystemExit(f"{python} {' '.join(options)} has failed at {asked}")
        return json.loads(line)

    with started:
        yield lambda *asked: Way(ask, ask(asked))
        started.stdin.close()


def per_step(seconds: Sequence[float], setting: Setting) -> list[float]:
    """Convert the seconds of groups of steps to seconds per step."""
    return [each / setting.at_once for each in seconds]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of samples that were taken side by side."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(seconds: Sequence[float]) -> str:
    """Format the median and the smallest sample, which other load affects least, in ms."""
    median, least = 1000 * statistics.median(seconds), 1000 * min(seconds)
    digits = 1 if median >= 10 else 2
    return f"{median:.{digits}f} ({least:.{digits}f})"


def print_heading(*columns: str) -> None:
    """Print the first two lines of a table; `spread` formats the columns "ms (least)"."""
    print_row(*columns)
    print("|" + "---|" * len(columns), flush=True)


def print_row(*cells: Any) -> None:
    """Print a line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def on_what() -> str:
    """Name the devices, for a table's heading."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


class Steps(NamedTuple):
    """A compiled group of FixMatch steps, with all of its inputs."""

    compiled: Any
    model: Any
    mesh: Any
    # Makes a state; a call donates its state, so each needs a new one.
    new_state: Callable[[], Any]
    batches: Any
    constants: Any

    def repeated(self) -> Callable[[int], None]:
        """Return a function for `interleaved` that repeats the steps on batches that are there."""
        import jax

        state = self.new_state()

        def run(calls: int) -> None:
            nonlocal state
            for _ in range(calls):
                state, _ = self.compiled(state, self.batches, self.constants)
            jax.block_until_ready(state)

        return run


def compile_steps(setting: Setting, *, devices: int | None = None, augmented: bool = True) -> Steps:
    """Compile crest_jax's FixMatch steps, as `program.build` does but without TensorFlow.

    Args:
      setting: the model, batch and precision.
      devices: the number of devices to train on; all by default.
      augmented: whether images are augmented, or only rescaled.
    """
    from functools import partial

    import jax
    import jax.numpy as jnp
    import numpy as np

    from crest_jax import augment, models, program, train_state
    from crest_jax.algorithms import ALGORITHMS
    from crest_jax.config import default_config, parse_arguments
    from crest_jax.mesh import AXES, mesh_of, replicate, split
    from crest_jax.train_step import Constants, DeviceBatch, in_a_row, make_train_step

    config = default_config(parse_arguments("rebalance=none"))
    count = devices or jax.device_count()
    mesh = mesh_of(jax.devices()[:count])
    depth, width = setting.depth_and_width
    model = models.make(
        setting.network,
        classes=setting.classes,
        depth=depth,
        width=width,
        batch_norm_momentum=config.model.batch_norm_momentum,
        dtype=jnp.dtype(setting.dtype),
        precision=jax.lax.Precision(setting.precision),
        axis_name=AXES,
    )
    loss = partial(
        ALGORITHMS["fixmatch"].loss,
        threshold=config.threshold,
        unlabeled_weight=config.unlabeled_weight,
        weak_forward=setting.weak_forward,
    )

    def only_rescaled(inputs):
        def view(images, *keys):
            return augment.rescale(images)

        return loss(inputs._replace(weak=view, strong=view))

    step = make_train_step(
        loss if augmented else only_rescaled,
        model,
        program.optimizer_of(config),
        mesh,
        steps=config.steps,
        alignment_target=config.alignment.target,
        align=program.alignment_of(config),
        refinement=None,
        ema_decay=config.ema_decay,
        ema_batch_norm=config.ema_batch_norm,
        augmentation=augment.Augmentation(**config.augment),
    )
    shape = (setting.side, setting.side, setting.channels)
    create = jax.jit(
        partial(
            train_state.create,
            model=model,
            optimizer=program.optimizer_of(config),
            image_shape=shape,
            classes=setting.classes,
        )
    )
    rng = np.random.default_rng(0)
    labeled = (setting.at_once, setting.batch)
    unlabeled = (setting.at_once, setting.batch * setting.ratio)
    batches = DeviceBatch(
        rng.integers(0, 256, (*labeled, *shape), dtype=np.uint8),
        rng.integers(0, setting.classes, labeled).astype(np.int32),
        rng.integers(0, 256, (*unlabeled, *shape), dtype=np.uint8),
        np.zeros(unlabeled, np.int32),
    )
    constants = Constants(
        jax.random.key(0),
        jnp.float32(1),
        jnp.full(setting.classes, 1 / setting.classes),
        jnp.ones(setting.classes),
    )

    def new_state():
        return replicate(create(jax.random.key(0)), mesh)

    batches = split(batches, mesh, axis=1)
    constants = replicate(constants, mesh)
    compiled = in_a_row(step).lower(new_state(), batches, constants).compile()
    return Steps(compiled, model, mesh, new_state, batches, constants)


def model_flops(model: Any, side: int) -> float:
    """Count the FLOPs of an image's forward pass: two for each use of a weight.

    As is usual, only convolutions and matrix products count, and padding is included.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from crest_jax.models.convolution import Conv

    # Batch norm runs as in evaluation, because there is no mesh axis here.
    seen = jax.eval_shape(
        lambda images: model.clone(axis_name=None).init_with_output(
            jax.random.key(0), images, train=False, mutable=True,
            capture_intermediates=lambda module, _: isinstance(module, Conv | nn.Conv | nn.Dense),
        )[1],
        jnp.zeros((1, side, side, 3)),
    )  # fmt: skip
    kernels = flatten_dict(seen["params"])
    return sum(
        2.0 * math.prod(output.shape[:-1]) * math.prod(kernels[*path[:-1], "kernel"].shape)
        for path, (output,) in flatten_dict(seen["intermediates"]).items()
    )


def timed(iterator: Iterator, seconds: list[float]) -> Iterator:
    """Yield the same items, and append the seconds that each took to arrive to `seconds`."""
    while True:
        began = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        seconds.append(time.perf_counter() - began)
        yield item
