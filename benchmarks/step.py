"""Measure the compiled training step, and compare it with the device's peak rate.

python benchmarks/step.py [--size 10-1 16-2] [--dtype float32 bfloat16] [--batch 16] [--ratio 7]
python benchmarks/step.py --size 28-2 --batch 64 --dtype float32 bfloat16     # the paper's

The step is FixMatch's on noise that is already on the device, with and without augmentation. Both
are measured in turns with a large matrix product of the same dtype. Model FLOPs are those of
convolutions and matrix products alone, with a backward pass counted as two forward passes. MFU is
their rate divided by that of the matrix product. The columns "XLA" have XLA's own count of FLOPs
and bytes for one device, if it gives one: it counts all operations, but on some devices not those
of libraries. Times are the median of the samples, and the smallest in brackets.
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure

from crest_jax.mesh import REPLICATED, over_devices, replicate


def product(mesh: jax.sharding.Mesh, side: int, dtype: str) -> Callable[[int], None]:
    """Return a function that multiplies two square matrices on every device of the mesh."""
    matrix = jnp.ones((side, side), dtype)
    matrix = replicate(matrix / side, mesh)
    multiply = over_devices(
        lambda a, b: a @ b,
        mesh,
        in_specs=(REPLICATED, REPLICATED),
        out_specs=REPLICATED,
    )

    def run(calls: int) -> None:
        result = matrix
        for _ in range(calls):
            result = multiply(result, matrix)
        jax.block_until_ready(result)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.add_settings(parser, sizes=["10-1"])
    parser.add_argument("--devices", type=int, nargs="+", default=[jax.device_count()])
    parser.add_argument(
        "--product", type=int, default=1024 if jax.default_backend() == "cpu" else 8192,
        help="side of the matrices",
    )  # fmt: skip
    arguments = parser.parse_args()
    measure.print_heading(
        *measure.SETTING, "devices", "ms (least)", "images/s", "unaugmented: ms", "augmentation",
        "model GFLOPs", "product TFLOP/s", "MFU", "XLA: GFLOPs", "XLA: GB",
    )  # fmt: skip
    for setting in measure.settings_of(arguments):
        for devices in arguments.devices:
            measure_step(setting, devices, arguments.product, arguments.samples)


def measure_step(setting: measure.Setting, devices: int, side: int, samples: int) -> None:
    """Measure a setting, and print its line of the table."""
    steps = measure.compile_steps(setting, devices=devices)
    plain = measure.compile_steps(setting, devices=devices, augmented=False)
    seconds = measure.interleaved(
        {
            "step": steps.repeated(),
            "plain": plain.repeated(),
            "product": product(steps.mesh, side, setting.dtype),
        },
        samples,
    )
    for name in ("step", "plain"):
        seconds[name] = measure.per_step(seconds[name], setting)
    flops = setting.forward_passes * measure.model_flops(steps.model, setting.side)
    peak = devices * 2 * side**3  # FLOPs of one product
    share = flops / peak * measure.ratio(seconds["product"], seconds["step"])
    cost = steps.compiled.cost_analysis() or {}
    measure.print_row(
        setting,
        f"{devices} x {jax.devices()[0].device_kind}",
        measure.spread(seconds["step"]),
        f"{setting.images / statistics.median(seconds['step']):.0f}",
        measure.spread(seconds["plain"]),
        f"{100 * (1 - measure.ratio(seconds['plain'], seconds['step'])):.1f} %",
        f"{flops / 1e9:.1f}",
        f"{peak / min(seconds['product']) / 1e12:.3f}",
        f"{100 * share:.0f} %",
        f"{cost['flops'] / 1e9:.1f}" if "flops" in cost else "",
        f"{cost['bytes accessed'] / 1e9:.2f}" if "bytes accessed" in cost else "",
    )


if __name__ == "__main__":
    main()
