"""What the benchmarks of training share: their settings, a step to time, and how it is timed.

JAX is imported where it is used, so that a process which has PyTorch alone can use the rest.
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

# A sample shorter than this, in seconds, says more of the clock than of what it times.
SHORTEST = 0.1


class Setting(NamedTuple):
    """What is trained, by its options."""

    network: str
    size: str  # depth-width
    dtype: str
    precision: str
    batch: int
    ratio: int
    weak_forward: str
    side: int
    classes: int
    at_once: int  # steps that the devices are sent together
    channels: int = 3

    @property
    def depth_and_width(self) -> tuple[int, int]:
        """The size's numbers."""
        depth, width = self.size.split("-")
        return int(depth), int(width)

    @property
    def images(self) -> int:
        """Which the network sees in a step: labeled ones, and two views of the unlabeled ones."""
        return self.batch * (1 + 2 * self.ratio)

    @property
    def forward_passes(self) -> int:
        """What a step costs, in forward passes of an image; a backward pass is two of them."""
        forward_only = self.batch * self.ratio if self.weak_forward == "separate" else 0
        return 3 * self.images - 2 * forward_only

    def __str__(self) -> str:
        """For a table's first cells: model, dtype and batch."""
        unlabeled = self.batch * self.ratio
        batch = f"{self.batch} + {unlabeled} + {unlabeled}"
        separate = " (separate)" if self.weak_forward == "separate" else ""
        precision = "" if self.precision == "default" else f" ({self.precision})"
        model = f"{self.network}-{self.size}"
        return f"{model} | {self.side} | {self.dtype}{precision} | {batch}{separate}"


# The table's columns that a setting fills.
SETTING = ("model", "pixels", "dtype", "labeled + weak + strong")


def add_settings(parser: argparse.ArgumentParser, *, sizes: Sequence[str]) -> None:
    """Adds the options that say what to train; those that take several are all combined.

    Args:
      parser: to add to.
      sizes: by default.
    """
    parser.add_argument(
        "--network", default="wide_resnet", help="a name of crest_jax.models, or module:name"
    )
    parser.add_argument("--size", nargs="+", default=sizes, help="depth-width")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16")
    parser.add_argument("--precision", nargs="+", default=["default"], help="and high, highest")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="labeled images")
    parser.add_argument("--ratio", type=int, nargs="+", default=[7], help="unlabeled per labeled")
    parser.add_argument("--weak-forward", nargs="+", default=["joint"], help="joint, separate")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=8, help="steps sent to the devices together")
    add_samples(parser)


def add_samples(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """Adds the option of how often to measure."""
    parser.add_argument("--samples", type=int, default=default, help="of each time, interleaved")


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """All combinations that the options ask for."""
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
    """Seconds that each way takes, measured in turns, so that other load falls on all alike.

    Each turn begins with work that does not count, as a loop that goes on and on would have done:
    while the others had their turns, caches were filled anew, and the host of a virtual machine
    took back what memory was free.

    Args:
      ways: each does its work so many times over, and returns when all of it is done.
      samples: how many to take of each.

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
    """What can be done over and over."""

    run: Callable[[int], Any]  # so many times
    about: Any = None  # in JSON's terms


def serve(make: Callable[..., Way]) -> None:
    """Does as a process is asked that `process` has started.

    Args:
      make: makes ways of what is asked for.
    """
    way = None
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            way.run(asked)
            answer = None
        else:
            way = None  # two may not fit into memory
            way = make(*asked)
            answer = way.about
        print(json.dumps(answer), flush=True)


@contextmanager
def process(
    python: str, options: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Callable[..., Way]]:
    """Starts a process that serves, and ends it. It does nothing but what it is asked.

    Args:
      python: with which.
      options: the script's path, and its options.
      environment: what it needs beside this one's.

    Returns:
      What makes a way there of what it is asked for, instead of the one before.
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
    """Seconds of a step, from those of the steps that are sent together."""
    return [each / setting.at_once for each in seconds]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of samples that were taken side by side."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(seconds: Sequence[float]) -> str:
    """Milliseconds: the median, and the smallest, which other load has touched least."""
    median, least = 1000 * statistics.median(seconds), 1000 * min(seconds)
    digits = 1 if median >= 10 else 2
    return f"{median:.{digits}f} ({least:.{digits}f})"


def print_heading(*columns: str) -> None:
    """Prints the first two lines of a table; `spread` fills columns in "ms (least)"."""
    print_row(*columns)
    print("|" + "---|" * len(columns), flush=True)


def print_row(*cells: Any) -> None:
    """Prints a line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def on_what() -> str:
    """The devices, for a table's heading."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


class Steps(NamedTuple):
    """Compiled FixMatch steps in a row, with all they take."""

    compiled: Any
    model: Any
    mesh: Any
    # Makes a state that a call may use up.
    new_state: Callable[[], Any]
    batches: Any
    constants: Any

    def repeated(self) -> Callable[[int], None]:
        """A way to do them over and over on batches that are already there, for `interleaved`."""
        import jax

        state = self.new_state()

        def run(calls: int) -> None:
            nonlocal state
            for _ in range(calls):
                state, _ = self.compiled(state, self.batches, self.constants)
            jax.block_until_ready(state)

        return run


def compile_steps(setting: Setting, *, devices: int | None = None, augmented: bool = True) -> Steps:
    """Compiles crest_jax's FixMatch steps, as `program.build` does but without TensorFlow.

    Args:
      setting: what to train.
      devices: how many to train on; all by default.
      augmented: whether images are augmented, or only rescaled.
    """
    from functools import partial

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType

    from crest_jax import augment, models, program, train_state
    from crest_jax.algorithms import ALGORITHMS
    from crest_jax.config import default_config, parse_arguments
    from crest_jax.mesh import AXIS, replicate, split
    from crest_jax.train_step import Constants, DeviceBatch, in_a_row, make_train_step

    config = default_config(parse_arguments("rebalance=none"))
    count = devices or jax.device_count()
    mesh = jax.make_mesh(
        (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    depth, width = setting.depth_and_width
    model = models.make(
        setting.network,
        classes=setting.classes,
        depth=depth,
        width=width,
        batch_norm_momentum=config.model.batch_norm_momentum,
        dtype=jnp.dtype(setting.dtype),
        precision=jax.lax.Precision(setting.precision),
        axis_name=AXIS,
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
    """FLOPs of an image's forward pass: two for each weight in each place where it is used.

    Those of convolutions and matrix products alone, padding included, as is the custom.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from crest_jax.models.convolution import Conv

    # Batch norm as in evaluation: it knows of no mesh axis here.
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
    """The same, noting how long each item takes to come."""
    while True:
        began = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        seconds.append(time.perf_counter() - began)
        yield item
