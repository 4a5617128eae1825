"""Measure how `dtype` and `precision` change a gradient, compared with float64, on this CPU.

python benchmarks/gradient.py [--size 28-2] [--images 64] [--slope 0.1] [--ways float32 high]

The gradient is that of a Wide ResNet's cross-entropy for images of noise, in training mode and with
fresh weights. Each setting is computed in its own process. XLA computes the float64 gradient, from
a description of the network that shares no code with `crest_jax.models`.

The error of the whole is |g - g64| / |g64| over all weights. The error of a leaf, which is a
layer's kernel, scale or bias, is the same over this leaf alone. Most of the error comes from
activations so close to 0 that rounding changes their sign, and with it their derivative. With
--slope 1, activations are linear, and the error of rounding alone remains.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import measure
import numpy as np

CLASSES = 10


class Way(NamedTuple):
    """The type and precision of a gradient, and whether XLA computes its convolutions and norms."""

    dtype: str = "float32"
    precision: str = "default"
    by_xla: bool = False


WAYS = {
    "float32 of XLA": Way(by_xla=True),
    "float32": Way(),
    "high": Way(precision="high"),
    "bfloat16": Way("bfloat16"),
    "bfloat16 of XLA": Way("bfloat16", by_xla=True),
}
REFERENCE = "float64"


def reference_logits(params: Mapping, images, blocks: int, slope: float):
    """Return the logits of a Wide ResNet in training mode, in the type of the arguments."""
    import jax.numpy as jnp
    from jax import lax

    def conv(x, kernel, stride=1):
        around = [(kernel.shape[0] // 2,) * 2] * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, around, dimension_numbers=layout)

    def activated(x, norm):
        y = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-3)
        y = y * norm["scale"] + norm["bias"]
        return jnp.where(y > 0, y, slope * y)

    x = conv(images, params["Conv_0"]["kernel"])
    for block in range(3 * blocks):
        of_block = params[f"WideResNetBlock_{block}"]
        begins, stride = block % blocks == 0, 2 if block in (blocks, 2 * blocks) else 1
        y = activated(x, of_block["BatchNorm_0"])
        shortcut = y if begins else x
        y = conv(y, of_block["Conv_0"]["kernel"], stride)
        y = conv(activated(y, of_block["BatchNorm_1"]), of_block["Conv_1"]["kernel"])
        if "projection" in of_block:
            shortcut = conv(shortcut, of_block["projection"]["kernel"], stride)
        x = shortcut + y
    x = activated(x, params["BatchNorm_0"]).mean((1, 2))
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def model_of(size: str, way: Way):
    """Return this package's network."""
    import jax
    import jax.numpy as jnp

    from crest_jax.models import WideResNet

    depth, width = map(int, size.split("-"))
    return WideResNet(
        CLASSES, depth, width, dtype=jnp.dtype(way.dtype),
        precision=jax.lax.Precision(way.precision),
    )  # fmt: skip


def begin(folder: Path, size: str, images: int, side: int) -> None:
    """Write the weights and the batch that all gradients are computed from."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (images, side, side, 3)).astype(np.float32)
    init = jax.jit(lambda key: model_of(size, Way()).init(key, jnp.asarray(pictures), train=True))
    params = flatten_dict(init(jax.random.key(0))["params"], sep="/")
    np.savez(folder / "params.npz", **params)
    np.savez(folder / "batch.npz", images=pictures, labels=rng.integers(0, CLASSES, images))


def compute(folder: Path, size: str, slope: float, name: str) -> None:
    """Write the gradient of one setting; this runs in a process that was started for it."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from crest_jax.models import wide_resnet

    wide_resnet.SLOPE = slope
    depth = int(size.partition("-")[0])
    if name == REFERENCE:
        dtype, blocks = jnp.float64, (depth - 4) // 6

        def logits_of(params, images):
            return reference_logits(params, images, blocks, slope)
    else:
        dtype, model = jnp.float32, model_of(size, WAYS[name])

        def logits_of(params, images):
            # Running statistics are not needed: training mode does not read them.
            return model.apply({"params": params}, images, train=True, mutable=["batch_stats"])[0]

    with np.load(folder / "params.npz") as given:
        params = unflatten_dict({name: jnp.asarray(each, dtype) for name, each in given.items()},
                                sep="/")  # fmt: skip
    with np.load(folder / "batch.npz") as given:
        images, labels = jnp.asarray(given["images"], dtype), jnp.asarray(given["labels"])

    def loss(params):
        logits = logits_of(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    np.savez(folder / f"{name}.npz", **flatten_dict(gradient, sep="/"))


def started(folder: Path, options: Sequence[str], name: str) -> dict[str, np.ndarray]:
    """Compute the gradient of one setting in a new process, and return it in float64."""
    by_xla = name == REFERENCE or WAYS[name].by_xla
    settings = {"CXX": "false"} if by_xla else {}
    settings["JAX_ENABLE_X64"] = str(name == REFERENCE)
    command = [sys.executable, __file__, *options, f"--serve={name}", f"--folder={folder}"]
    subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu", **settings}, check=True)
    with np.load(folder / f"{name}.npz") as found:
        return {leaf: value.astype(np.float64) for leaf, value in found.items()}


def errors(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return the error of the whole, and the median of the leaves' errors."""
    away = {name: np.linalg.norm(found[name] - exact[name]) for name in exact}
    sizes = {name: np.linalg.norm(exact[name]) for name in exact}
    whole = np.linalg.norm([*away.values()]) / np.linalg.norm([*sizes.values()])
    return whole, float(np.median([away[name] / sizes[name] for name in exact]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="28-2", help="depth-width")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--slope", type=float, default=0.1, help="slope of the leaky ReLU below 0")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--serve", choices=[REFERENCE, *WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        compute(arguments.folder, arguments.size, arguments.slope, arguments.serve)
        return
    from crest_jax.cpu import library

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        begin(folder, arguments.size, arguments.images, arguments.side)
        options = [f"--size={arguments.size}", f"--slope={arguments.slope}"]
        exact = started(folder, options, REFERENCE)
        measure.print_heading(
            f"gradient ({library.describe()})", "error of the whole", "median leaf"
        )
        for name in arguments.ways:
            whole, median = errors(started(folder, options, name), exact)
            measure.print_row(name, f"{whole:.1e}", f"{median:.1e}")


if __name__ == "__main__":
    main()
