"""Compare layers and training steps on this CPU: ours, XLA's, TensorFlow's and PyTorch's.

python benchmarks/cpu.py [--only layers|steps] [--samples 7] [--python PYTORCHS_PYTHON]

Each of the four has its own process with the same cores (`taskset` before the command chooses
them), and takes its samples while the others wait. Times are in ms: the median, and the smallest
sample in brackets. The last column compares ours with the faster of TensorFlow and PyTorch, as the
median of the ratios of samples that were taken side by side. Only ours has `precision=high`; the
others compute in float32 there.

Layers are convolutions of arrays that are already in memory: the forward pass and both gradients.
Steps are FixMatch's without augmentation; PyTorch's is the one in peer_pytorch.py. As in runs, ours
sends 8 steps together, and XLA's sends one at a time. For bfloat16, PyTorch uses autocast, and
TensorFlow gets images and kernels that are cast. Both use oneDNN. TensorFlow's strided convolutions
pad on a different side than the others'. The amount of work is the same, and its kernels for
explicit padding are many times slower.
"""

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import measure
import numpy as np
import peer_pytorch


class Layer(NamedTuple):
    """The sizes of a convolution with centred windows; the images have `side` x `side` pixels."""

    images: int
    side: int
    channels: int
    features: int
    size: int
    stride: int

    def arrays(self) -> list[np.ndarray]:
        """Return random images, a kernel, and a gradient with respect to the output."""
        out = (self.side - 1) // self.stride + 1
        shapes = (
            (self.images, self.side, self.side, self.channels),
            (self.size, self.size, self.channels, self.features),
            (self.images, out, out, self.features),
        )
        rng = np.random.default_rng(0)
        return [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def __str__(self) -> str:
        """Return the layer as a table's cell."""
        window = f"{self.size} x {self.size}" + (f" / {self.stride}" if self.stride > 1 else "")
        return (
            f"{self.images} x {self.side} x {self.side}, {self.channels} -> {self.features}, "
            f"{window}"
        )


LAYERS = [
    # The layers in which WRN-28-2 spends its time.
    Layer(240, 32, 3, 16, 3, 1),
    Layer(240, 32, 32, 32, 3, 1),
    Layer(240, 32, 32, 64, 3, 2),
    Layer(240, 32, 32, 64, 1, 2),
    Layer(240, 16, 64, 64, 3, 1),
    Layer(240, 16, 64, 128, 3, 2),
    Layer(240, 8, 128, 128, 3, 1),
    # Those of WRN-10-1 on small images.
    Layer(144, 14, 16, 16, 3, 1),
    Layer(144, 14, 16, 32, 3, 2),
    Layer(144, 7, 32, 32, 3, 1),
    Layer(144, 7, 32, 64, 3, 2),
    Layer(144, 7, 64, 64, 3, 1),
]
DIRECTIONS = ("forward", "input gradient", "kernel gradient")
ARITHMETIC = [("float32", "default"), ("float32", "high"), ("bfloat16", "default")]
# Size, unlabeled ratio, side and channels: WRN-28-2, and the networks of the demo and of MNIST.
STEPS = [("28-2", 7, 32, 3), ("10-1", 7, 8, 1), ("10-1", 4, 14, 1)]
BATCH, AT_ONCE = 16, 8
WEAK_FORWARD = ("joint", "separate")
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, EMA_DECAY, THRESHOLD = 0.03, 0.9, 5e-4, 0.999, 0.95
# The environment variables that each needs; CXX=false turns our kernels off.
WAYS: Mapping[str, Mapping[str, str]] = {
    "ours": {},
    "XLA": {"CXX": "false"},
    "TensorFlow": {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    "PyTorch": {},
}
PEERS = ("TensorFlow", "PyTorch")


# Layers


def jax_layer(layer: Layer, direction: str, dtype: str, precision: str) -> measure.Way:
    """Return a way to compute a layer with this package's convolution."""
    import jax
    import jax.numpy as jnp

    from crest_jax.models.convolution import convolve

    inputs = [jnp.asarray(each, dtype) for each in layer.arrays()]
    convolve = partial(
        convolve,
        stride=layer.stride,
        padding=((layer.size // 2,) * 2,) * 2,
        precision=jax.lax.Precision(precision),
    )
    functions = {
        "forward": lambda x, kernel, dy: convolve(x, kernel),
        "input gradient": lambda x, kernel, dy: jax.vjp(lambda x: convolve(x, kernel), x)[1](dy),
        "kernel gradient": lambda x, kernel, dy: jax.vjp(partial(convolve, x), kernel)[1](dy),
    }
    function = jax.jit(functions[direction])
    return repeated(lambda: jax.block_until_ready(function(*inputs)))


def tensorflow_layer(layer: Layer, direction: str, dtype: str, _: str) -> measure.Way:
    """Return a way to compute a layer with TensorFlow; it has no precision to set."""
    import tensorflow as tf

    x, kernel, dy = (tf.cast(each, dtype) for each in layer.arrays())
    settings = {"strides": [1, layer.stride, layer.stride, 1], "padding": "SAME"}
    functions = {
        "forward": partial(tf.raw_ops.Conv2D, input=x, filter=kernel),
        "input gradient": partial(
            tf.raw_ops.Conv2DBackpropInput, input_sizes=x.shape, filter=kernel, out_backprop=dy
        ),
        "kernel gradient": partial(
            tf.raw_ops.Conv2DBackpropFilter, input=x, filter_sizes=kernel.shape, out_backprop=dy
        ),
    }
    return repeated(partial(functions[direction], **settings))


def pytorch_layer(layer: Layer, direction: str, dtype: str, _: str) -> measure.Way:
    """Return a way to compute a layer with PyTorch, in the channels-last format."""
    import torch

    torch.set_num_threads(cores())
    x, kernel, dy = map(torch.from_numpy, layer.arrays())
    x, kernel, dy = (
        each.to(getattr(torch, dtype), memory_format=torch.channels_last)
        for each in (x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), dy.permute(0, 3, 1, 2))
    )
    stride, around = [layer.stride] * 2, [layer.size // 2] * 2

    def gradient(mask):
        return torch.ops.aten.convolution_backward(
            dy, x, kernel, None, stride, around, [1, 1], False, [0, 0], 1, mask
        )

    functions = {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, None, stride, around),
        "input gradient": lambda: gradient([True, False, False]),
        "kernel gradient": lambda: gradient([False, True, False]),
    }
    return repeated(functions[direction])


def repeated(function: Callable[[], object]) -> measure.Way:
    """Return a way that calls a function repeatedly."""

    def run(calls: int) -> None:
        for _ in range(calls):
            function()

    return measure.Way(run)


# Steps


def tensorflow_step(setting: measure.Setting) -> measure.Way:
    """Return a way to take training steps in TensorFlow, the same as those of peer_pytorch.py."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    depth, width = setting.depth_and_width
    blocks = (depth - 4) // 6
    variables: dict[str, tf.Variable] = {}

    def variable(name, value):
        if name not in variables:
            variables[name] = tf.Variable(np.asarray(value(), np.float32))
        return variables[name]

    def conv(x, name, features, size=3, stride=1):
        shape = (size, size, x.shape[-1], features)
        scale = np.sqrt(2 / (size * size * features))
        kernel = variable(f"{name}/kernel", lambda: scale * rng.normal(size=shape))
        return tf.nn.conv2d(x, tf.cast(kernel, setting.dtype), stride, "SAME")

    def norm_and_activation(x, name):
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=variable(f"{name}/scale", lambda: np.ones(x.shape[-1])),
            offset=variable(f"{name}/bias", lambda: np.zeros(x.shape[-1])),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=1e-3,
            is_training=True,
        )
        for kind, now in (("mean", mean), ("variance", variance)):
            running = variable(f"{name}/running {kind}", lambda: np.ones(x.shape[-1]))
            running.assign_add(0.001 * (now - running))
        return tf.nn.leaky_relu(y, 0.1)

    def logits_of(*views):
        x = tf.cast(tf.concat(views, 0), tf.float32) * (2 / 255) - 1
        x = conv(tf.cast(x, setting.dtype), "first", 16)
        for group, block in itertools.product(range(3), range(blocks)):
            features, stride = 16 * width * 2**group, 2 if group and not block else 1
            name = f"{group}.{block}"
            activated = norm_and_activation(x, f"{name}/norm 0")
            y = conv(activated, f"{name}.0", features, stride=stride)
            y = conv(norm_and_activation(y, f"{name}/norm 1"), f"{name}.1", features)
            shortcut = x if block else activated
            if shortcut.shape[-1] != features:
                shortcut = conv(shortcut, f"{name}.projection", features, 1, stride)
            x = shortcut + y
        x = tf.reduce_mean(tf.cast(norm_and_activation(x, "last/norm"), tf.float32), axis=(1, 2))
        shape = (x.shape[-1], setting.classes)
        kernel = variable("dense/kernel", lambda: rng.normal(size=shape) / 10)
        logits = x @ kernel + variable("dense/bias", lambda: np.zeros(setting.classes))
        return tf.split(logits, [len(view) for view in views])

    def loss_of(labeled, weak, strong, labels):
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
        if setting.weak_forward == "joint":
            of_labeled, of_weak, of_strong = logits_of(labeled, weak, strong)
        else:
            (of_weak,) = logits_of(weak)
            of_labeled, of_strong = logits_of(labeled, strong)
        probs = tf.stop_gradient(tf.nn.softmax(of_weak))
        sure = tf.cast(tf.reduce_max(probs, -1) >= THRESHOLD, tf.float32)
        unlabeled = cross_entropy(tf.argmax(probs, -1), of_strong) * sure
        return tf.reduce_mean(cross_entropy(labels, of_labeled)) + tf.reduce_mean(unlabeled)

    def pictures(count):
        shape = (count, setting.side, setting.side, setting.channels)
        return tf.constant(rng.integers(0, 256, shape, dtype=np.uint8))

    unlabeled = setting.batch * setting.ratio
    views = [pictures(setting.batch), pictures(unlabeled), pictures(unlabeled)]
    labels = tf.constant(rng.integers(0, setting.classes, setting.batch).astype(np.int32))
    logits_of(views[0][:1])  # creates the variables
    params = {name: value for name, value in variables.items() if "running" not in name}
    momenta = {name: tf.Variable(tf.zeros_like(value)) for name, value in params.items()}
    averages = {name: tf.Variable(value) for name, value in params.items()}

    @tf.function
    def step(learning_rate, views, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(*views, labels)
        for name, gradient in tape.gradient(loss, params).items():
            value, momentum, average = params[name], momenta[name], averages[name]
            if "norm" not in name:
                gradient += WEIGHT_DECAY * value
            momentum.assign(MOMENTUM * momentum + gradient)
            value.assign_sub(learning_rate * (gradient + MOMENTUM * momentum))
            average.assign_add((1 - EMA_DECAY) * (value - average))
        return loss

    done = itertools.count()

    def run(calls: int) -> None:
        for _ in range(calls):
            rate = LEARNING_RATE * math.cos(math.pi * next(done) / 2**16 / 16)
            float(step(tf.constant(rate, tf.float32), views, labels))

    return measure.Way(run, [sum(math.prod(value.shape) for value in params.values())])


# Turns


def make(way: str, kind: str, asked: list) -> measure.Way:
    """Return the way that a process is asked for: `kind` is layer or step."""
    what, *rest = asked
    if kind == "layer":
        layers = {"TensorFlow": tensorflow_layer, "PyTorch": pytorch_layer}
        return layers.get(way, jax_layer)(Layer(*what), *rest)
    setting = measure.Setting(*what)
    match way:
        case "TensorFlow":
            return tensorflow_step(setting)
        case "PyTorch":
            return peer_pytorch.pytorch_way(setting, "none")
    return peer_pytorch.crest_jax_way(setting)


def print_layers(ways: Mapping[str, Callable[..., measure.Way]], samples: int) -> None:
    """Print the table of layers."""
    heading("layer", "direction")
    for layer, direction, (dtype, precision) in itertools.product(LAYERS, DIRECTIONS, ARITHMETIC):
        made = {
            name: way("layer", [layer, direction, dtype, precision]) for name, way in ways.items()
        }
        taken = measure.interleaved({name: way.run for name, way in made.items()}, samples)
        print_row([layer, direction, dtype, precision], taken)


def print_steps(ways: Mapping[str, Callable[..., measure.Way]], samples: int) -> None:
    """Print the table of steps.

    Raises:
      SystemExit: the models do not have the same number of weights.
    """
    heading("model", "pixels", "labeled + weak + strong", after=["weak_forward"])
    for (size, ratio, side, channels), (dtype, precision), weak_forward in itertools.product(
        STEPS, ARITHMETIC, WEAK_FORWARD
    ):
        setting = measure.Setting(
            "wide_resnet", size, dtype, precision, BATCH, ratio, weak_forward, side, 10, 1, channels
        )
        settings = dict.fromkeys(ways, setting) | {"ours": setting._replace(at_once=AT_ONCE)}
        made = {name: way("step", [settings[name]]) for name, way in ways.items()}
        weights = {name: way.about[0] for name, way in made.items()}
        if len(set(weights.values())) > 1:
            raise SystemExit(f"the models have not as many weights: {weights}")
        taken = measure.interleaved({name: way.run for name, way in made.items()}, samples)
        seconds = {name: measure.per_step(each, settings[name]) for name, each in taken.items()}
        batch = f"{BATCH} + {BATCH * ratio} + {BATCH * ratio}"
        pixels = f"{side} x {side} x {channels}"
        print_row([f"WRN-{size}", pixels, batch, dtype, precision, weak_forward], seconds)


def heading(*before: str, after: Sequence[str] = ()) -> None:
    """Print the heading of a table."""
    measure.print_heading(*before, "dtype", "precision", *after, *WAYS, "ours : best peer")


def print_row(cells: Sequence[object], seconds: Mapping[str, Sequence[float]]) -> None:
    """Print a line of a table, with a dash for a peer that was not measured."""
    times = [measure.spread(seconds[name]) if name in seconds else "-" for name in WAYS]
    peers = [seconds[name] for name in PEERS if name in seconds]
    ratio = measure.ratio(seconds["ours"], min(peers, key=statistics.median))
    measure.print_row(*cells, *times, f"{ratio:.2f}")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("layers", "steps"))
    measure.add_samples(parser)
    parser.add_argument("--python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve(partial(make, arguments.serve))
        return
    from crest_jax.cpu import library

    print(f"Cores: {cores()}. {library.describe()}.")
    pythons = dict.fromkeys(WAYS, sys.executable) | {"PyTorch": arguments.python}
    if subprocess.run([arguments.python, "-c", "import torch"], capture_output=True).returncode:
        print(f"{arguments.python} has no PyTorch, which is left out: --python names one that has.")
        del pythons["PyTorch"]
    with ExitStack() as stack:
        ways = {
            name: stack.enter_context(
                measure.process(python, [__file__, f"--serve={name}"], WAYS[name])
            )
            for name, python in pythons.items()
        }
        if arguments.only != "steps":
            print()
            print_layers(ways, arguments.samples)
        if arguments.only != "layers":
            print()
            print_steps(ways, arguments.samples)


if __name__ == "__main__":
    main()
