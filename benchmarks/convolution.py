"""Convolutions and a whole training step on this CPU: XLA's, ours, and TensorFlow's.

python benchmarks/convolution.py [--samples 15] [--only convolutions|steps]

Each is measured in turn, in one process, and the best of the samples counts, as other processes may
be running. `cpu` is the processor time of all threads, which suffers less from those. The step is
FixMatch's on a WRN-28-2 without augmentation: 16 labeled, 112 weak and 112 strong images, forward
in training mode, gradient, Nesterov SGD and EMA. XLA takes its memory anew whenever it is called,
which is for 8 steps in a row, as training does by default, or for each by itself:
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves it most of the page faults.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # before the package turns it off

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf

from crest_jax import train_state
from crest_jax.models import WideResNet, convolution

LABELED, UNLABELED = 16, 112
IMAGES = LABELED + 2 * UNLABELED
# Height and width, channels, features, kernel, stride: what WRN-28-2 spends its time on.
SHAPES = [
    (32, 3, 16, 3, 1),
    (32, 32, 32, 3, 1),
    (32, 32, 64, 3, 2),
    (16, 64, 64, 3, 1),
    (16, 64, 128, 3, 2),
    (8, 128, 128, 3, 1),
    (32, 32, 64, 1, 2),
]
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, EMA_DECAY, THRESHOLD = 0.03, 0.9, 5e-4, 0.999, 0.95
IN_A_ROW = 8


def measure(runs: dict[str, Callable[[], object]], samples: int) -> dict[str, tuple[float, float]]:
    """The best elapsed and processor time of each, in ms."""
    times = {name: [] for name in runs}
    for _ in range(samples + 1):
        for name, run in runs.items():
            start, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {name: tuple(1e3 * np.min(each[1:], axis=0)) for name, each in times.items()}


def convolutions(samples: int) -> None:
    """Prints ms of XLA, ours and TensorFlow for every shape and direction."""
    print(f"{IMAGES} images, ms (cpu)".ljust(31), *(f"{way:>16}" for way in ("XLA", "ours", "TF")))
    for length, channels, features, size, stride in SHAPES:
        print(f"{length} x {length} x {channels} -> {features}, {size} x {size} / {stride}")
        rng = np.random.default_rng(0)
        out = length // stride
        arrays = [
            rng.normal(size=shape).astype(np.float32)
            for shape in (
                (IMAGES, length, length, channels),
                (size, size, channels, features),
                (IMAGES, out, out, features),
            )
        ]
        around = ((size // 2, size // 2),) * 2
        by_xla = partial(convolution._by_xla, strides=(stride, stride), padding=around)
        ours = partial(convolution.convolve, stride=stride, padding=around)
        ways = {
            "XLA": jax_directions(by_xla, arrays),
            "ours": jax_directions(ours, arrays),
            "TF": tf_directions(stride, around, arrays),
        }
        for direction in ("forward", "gradient of input", "gradient of kernel"):
            best = measure({way: runs[direction] for way, runs in ways.items()}, samples)
            print(f"    {direction:27}", *(f"{t:8.1f} ({c:5.1f})" for t, c in best.values()))


def jax_directions(convolve: Callable, arrays: list[np.ndarray]) -> dict[str, Callable]:
    """The convolution of arrays x, kernel and dy, and its gradients, compiled."""

    def dx(x, kernel, dy):
        return jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)

    def dkernel(x, kernel, dy):
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)

    def bound(function):
        function, inputs = jax.jit(function), list(map(jnp.asarray, arrays))
        return lambda: jax.block_until_ready(function(*inputs))

    return {
        "forward": bound(lambda x, kernel, dy: convolve(x, kernel)),
        "gradient of input": bound(dx),
        "gradient of kernel": bound(dkernel),
    }


def tf_directions(stride: int, around: tuple, arrays: list[np.ndarray]) -> dict[str, Callable]:
    """The same in TensorFlow."""
    x, kernel, dy = map(tf.constant, arrays)
    settings = {
        "strides": [1, stride, stride, 1],
        "padding": "EXPLICIT",
        "explicit_paddings": [0, 0, *around[0], *around[1], 0, 0],
    }

    def forward():
        return tf.raw_ops.Conv2D(input=x, filter=kernel, **settings)

    def dx():
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=x.shape, filter=kernel, out_backprop=dy, **settings
        )

    def dkernel():
        return tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=kernel.shape, out_backprop=dy, **settings
        )

    return {"forward": forward, "gradient of input": dx, "gradient of kernel": dkernel}


def jax_steps(count: int) -> Callable[[], float]:
    """Steps of ours in a row, with the convolutions that `convolution` takes now."""
    model = WideResNet(classes=10)
    optimizer = train_state.make_optimizer(
        lambda _: LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    variables = jax.jit(partial(model.init, train=True))(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    params = variables["params"]
    state = [(params, variables["batch_stats"], optimizer.init(params), params)]

    def loss_of(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        labeled, weak, strong = jnp.split(logits, [LABELED, LABELED + UNLABELED])
        probs = jax.lax.stop_gradient(jax.nn.softmax(weak))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        unlabeled = cross_entropy(strong, probs.argmax(-1)) * (probs.max(-1) >= THRESHOLD)
        return cross_entropy(labeled, labels).mean() + unlabeled.mean(), updates["batch_stats"]

    images, labels = map(jnp.asarray, batch())

    def step(state, images):
        params, batch_stats, opt_state, ema = state
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, batch_stats), gradients = gradient(params, batch_stats, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = optax.incremental_update(params, ema, 1 - EMA_DECAY)
        return (params, batch_stats, opt_state, ema), loss

    # A single one not in a loop, where XLA's convolutions take ten times as long.
    steps = jax.jit(partial(jax.lax.scan, step) if count > 1 else step)
    repeated = jnp.stack([images] * count) if count > 1 else images

    def run():
        state[0], losses = steps(state[0], repeated)
        return float(losses.ravel()[-1])

    run()  # compiles, with the convolutions of now
    return run


def tf_step() -> Callable[[], float]:
    """The same in TensorFlow."""
    rng = np.random.default_rng(0)
    variables: dict[str, tf.Variable] = {}

    def variable(name, value):
        if name not in variables:
            variables[name] = tf.Variable(np.asarray(value(), np.float32))
        return variables[name]

    def conv(x, name, features, size, stride=1):
        shape = (size, size, x.shape[-1], features)
        scale = np.sqrt(2 / (size * size * features))
        kernel = variable(f"{name}/kernel", lambda: scale * rng.normal(size=shape))
        around = [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]]
        return tf.nn.conv2d(x, kernel, stride, around)

    def norm_and_activation(x, name):
        width = x.shape[-1]
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=variable(f"{name}/scale", lambda: np.ones(width)),
            offset=variable(f"{name}/bias", lambda: np.zeros(width)),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=1e-3,
            is_training=True,
        )
        for kind, now in (("mean", mean), ("variance", variance)):
            running = variable(f"{name}/running {kind}", lambda: np.ones(width))
            running.assign_add(0.001 * (now - running))
        return tf.nn.leaky_relu(y, 0.1)

    def forward(x):
        x = conv(x, "first", 16, 3)
        for group in range(3):
            for block in range(4):
                features, stride = 32 * 2**group, 2 if group and not block else 1
                name = f"{group}.{block}"
                activated = norm_and_activation(x, f"{name}/norm 0")
                y = conv(activated, f"{name}.0", features, 3, stride)
                y = conv(norm_and_activation(y, f"{name}/norm 1"), f"{name}.1", features, 3)
                shortcut = x if block else activated
                if shortcut.shape[-1] != features:
                    shortcut = conv(shortcut, f"{name}.projection", features, 1, stride)
                x = shortcut + y
        x = tf.reduce_mean(norm_and_activation(x, "last/norm"), axis=(1, 2))
        kernel = variable("dense/kernel", lambda: rng.normal(size=(128, 10)) / 10)
        return x @ kernel + variable("dense/bias", lambda: np.zeros(10))

    images, labels = map(tf.constant, batch())
    forward(images[:1])  # makes the variables
    params = {name: value for name, value in variables.items() if "running" not in name}
    momenta = {name: tf.Variable(tf.zeros_like(value)) for name, value in params.items()}
    emas = {name: tf.Variable(value) for name, value in params.items()}

    @tf.function
    def step(images, labels):
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
        with tf.GradientTape() as tape:
            logits = forward(images)
            labeled, weak, strong = tf.split(logits, [LABELED, UNLABELED, UNLABELED])
            probs = tf.stop_gradient(tf.nn.softmax(weak))
            sure = tf.cast(tf.reduce_max(probs, -1) >= THRESHOLD, tf.float32)
            unlabeled = cross_entropy(tf.argmax(probs, -1), strong) * sure
            loss = tf.reduce_mean(cross_entropy(labels, labeled)) + tf.reduce_mean(unlabeled)
        for name, gradient in tape.gradient(loss, params).items():
            value, momentum, ema = params[name], momenta[name], emas[name]
            if "norm" not in name:
                gradient += WEIGHT_DECAY * value
            momentum.assign(MOMENTUM * momentum + gradient)
            value.assign_sub(LEARNING_RATE * (gradient + MOMENTUM * momentum))
            ema.assign_add((1 - EMA_DECAY) * (value - ema))
        return loss

    return lambda: float(step(images, labels))


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Noise and labels."""
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (IMAGES, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(0, 10, LABELED).astype(np.int32)


def steps(samples: int) -> None:
    """Prints ms of a whole step, and by how much it is longer than TensorFlow's."""
    ways = {
        "TF": tf_step(),
        "ours, by itself": jax_steps(1),
        f"ours, {IN_A_ROW} in a row": jax_steps(IN_A_ROW),
    }
    compiled = convolution._compiled
    convolution._compiled = lambda: False
    ways["XLA, by itself"] = jax_steps(1)
    convolution._compiled = compiled
    best = measure(ways, samples)
    for name, times in best.items():
        elapsed, cpu = np.divide(times, IN_A_ROW if "in a row" in name else 1)
        ratios = np.divide((elapsed, cpu), best["TF"])
        print(f"step, {name:16} {elapsed:8.0f} ms, {ratios[0]:.2f} x TF;", end=" ")
        print(f"cpu {cpu:8.0f} ms, {ratios[1]:.2f} x TF")


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--only", choices=("convolutions", "steps"))
    arguments = parser.parse_args()
    if not convolution._compiled():
        raise SystemExit("there is no C++ compiler: ours are XLA's")
    if arguments.only != "steps":
        convolutions(arguments.samples)
    if arguments.only != "convolutions":
        steps(arguments.samples)


if __name__ == "__main__":
    main()
