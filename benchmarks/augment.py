"""Measure images per second of the weak and strong views, on the device and with Pillow.

python benchmarks/augment.py [--images 448] [--side 32] [--processes N]

The strong view is the weak view followed by two layers of RandAugment, with all of crest_jax's
operations, and Cutout. Both views end as float32 in [-1, 1]. On the device, a view is one compiled
call on images that are already there. Pillow processes one image at a time, first in one process
and then in one process for each core. Each process makes its own share of the images, so that none
waits for images to be sent. All ways are measured in turns. Rates are computed from the median
sample.
"""

import argparse
import multiprocessing
import os
import random
import statistics
from collections.abc import Callable

import measure
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)
RESCALE = np.float32(2 / 255)


def affine(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
    """Return a function that maps positions affinely, as `Image.transform` defines it."""
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, fillcolor=GREY
    )


def solarize_add(image: Image.Image, add: int) -> Image.Image:
    """Add to the levels below 128."""
    return image.point([min(x + add, 255) if x < 128 else x for x in range(256)] * 3)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Call `ImageOps.posterize`, or return a black image for 0 bits, which it refuses."""
    return ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * 3)


# Each operation takes an image, a magnitude in [0, 1] and a signed magnitude in [-1, 1].
OPERATIONS: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Brightness": lambda image, m, _: ImageEnhance.Brightness(image).enhance(1.8 * m + 0.1),
    "Color": lambda image, m, _: ImageEnhance.Color(image).enhance(1.8 * m + 0.1),
    "Contrast": lambda image, m, _: ImageEnhance.Contrast(image).enhance(1.8 * m + 0.1),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Identity": lambda image, _, __: image,
    "Invert": lambda image, _, __: ImageOps.invert(image),
    "Posterize": lambda image, m, _: posterize(image, int(4 * m)),
    "Rotate": lambda image, _, s: image.rotate(30 * s, fillcolor=GREY),
    "Sharpness": lambda image, m, _: ImageEnhance.Sharpness(image).enhance(1.8 * m + 0.1),
    "ShearX": lambda image, _, s: affine(1, 0.3 * s, 0, 0, 1, 0)(image),
    "ShearY": lambda image, _, s: affine(1, 0, 0, 0.3 * s, 1, 0)(image),
    "Solarize": lambda image, m, _: ImageOps.solarize(image, int(256 * m)),
    "SolarizeAdd": lambda image, m, _: solarize_add(image, int(110 * m)),
    "TranslateX": lambda image, _, s: affine(1, 0, 0.3 * image.width * s, 0, 1, 0)(image),
    "TranslateY": lambda image, _, s: affine(1, 0, 0, 0, 1, 0.3 * image.height * s)(image),
}
NAMES = tuple(OPERATIONS)


def weak(pixels: np.ndarray) -> np.ndarray:
    """Pad by reflection, crop at random, and flip half of the images."""
    pad = len(pixels) // 8
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    y, x = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
    cropped = padded[y : y + len(pixels), x : x + len(pixels)]
    return cropped[:, ::-1] if random.random() < 0.5 else cropped


def rescaled(pixels: np.ndarray) -> np.ndarray:
    """Rescale grey levels from 0..255 to [-1, 1]."""
    return pixels * RESCALE - 1


def strong(pixels: np.ndarray) -> np.ndarray:
    """Apply two random operations to the weak view, and cut out a square of half the side."""
    image = Image.fromarray(np.ascontiguousarray(weak(pixels)))
    for _ in range(2):
        if random.random() < 0.5:
            magnitude = random.random()
            signed = magnitude if random.random() < 0.5 else -magnitude
            image = OPERATIONS[random.choice(NAMES)](image, magnitude, signed)
    view = rescaled(np.asarray(image))
    side = len(view)
    y, x = (random.randrange(side) - side // 4 for _ in range(2))
    view[max(y, 0) : y + side // 2, max(x, 0) : x + side // 2] = 0
    return view


def pictures(count: int, side: int) -> np.ndarray:
    """Return images of smooth noise, so that operations have something to change."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((side, side), Image.BICUBIC)) for each in coarse]
    )


def with_pillow(view: str, images: np.ndarray) -> Callable[[int], None]:
    """Return a function for `measure.interleaved` that makes a view of one image after another."""

    def run(calls: int) -> None:
        for _ in range(calls):
            for image in images:
                strong(image) if view == "strong" else rescaled(weak(image))

    return run


def serve(connection, count: int, side: int) -> None:
    """Make views of this process's own images, as often as the parent process asks."""
    images = pictures(count, side)
    ways = {view: with_pillow(view, images) for view in ("weak", "strong")}
    while order := connection.recv():
        view, calls = order
        ways[view](calls)
        connection.send(None)


def on_device(view: str, images: np.ndarray) -> Callable[[int], None]:
    """Return a function for `measure.interleaved` that makes all views in one compiled call."""
    import jax

    from crest_jax import augment

    @jax.jit
    def compiled(key, images):
        keys = jax.random.split(key, len(images))
        if view == "strong":
            return augment.strong(images, keys)
        return augment.rescale(augment.weak(images, keys))

    images, key = jax.device_put(images), jax.random.key(0)

    def run(calls: int) -> None:
        for _ in range(calls):
            result = compiled(key, images)
        jax.block_until_ready(result)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=448, help="images per call")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    measure.add_samples(parser, 11)
    arguments = parser.parse_args()
    images = pictures(arguments.images, arguments.side)
    share = -(-arguments.images // arguments.processes)
    # Spawned instead of forked, because JAX has started threads.
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(arguments.processes):
        ours, theirs = context.Pipe()
        workers.append(
            context.Process(target=serve, args=(theirs, share, arguments.side), daemon=True)
        )
        workers[-1].start()
        pipes.append(ours)

    def in_processes(view: str) -> Callable[[int], None]:
        def run(calls: int) -> None:
            for pipe in pipes:
                pipe.send((view, calls))
            for pipe in pipes:
                pipe.recv()

        return run

    measure.print_heading(
        "view", f"images/s on {measure.on_what()}", "Pillow, 1 process",
        f"Pillow, {arguments.processes} processes", "device : all processes",
    )  # fmt: skip
    for view in ("weak", "strong"):
        seconds = measure.interleaved(
            {
                "device": on_device(view, images),
                "one": with_pillow(view, images),
                "all": in_processes(view),
            },
            arguments.samples,
        )
        done = {"device": len(images), "one": len(images), "all": share * len(workers)}
        rates = [done[way] / statistics.median(seconds[way]) for way in done]
        faster = measure.ratio(seconds["all"], seconds["device"]) * done["device"] / done["all"]
        measure.print_row(view, *(f"{rate:,.0f}" for rate in rates), f"{faster:.1f}")
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()


if __name__ == "__main__":
    main()
