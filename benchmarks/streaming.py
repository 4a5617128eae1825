"""Measure streaming of JPEGs from disk: images per second, and peak memory by size of the set.

python benchmarks/streaming.py [--examples 2000 20000] [--side 224] [--steps 40]

Writes sets of noisy JPEGs of ImageNet's usual size (500 x 375) to a temporary folder, and reads
batches of random resized crops from them. Each set is measured in a fresh process. A set repeats
64 images under different names, which makes no difference to the reader.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from etils.epath import Path
from PIL import Image

from crest_jax.data import stream, writer
from crest_jax.data.sources import Example
from crest_jax.data.views import View

CLASSES = 127


def jpegs(count: int) -> list[bytes]:
    """Return noisy images of about 70 kB; ImageNet's have 110 kB on average."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 16, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


def measure(examples: int, side: int, steps: int, lanes: int, window: int) -> None:
    """Print MB on disk, images per second, and peak MiB above the start."""
    images = jpegs(64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "records"
        names = [str(label) for label in range(CLASSES)]
        with writer.Writer(folder, examples=examples, class_names=names, shards=128) as records:
            for number in range(examples):
                records.add(Example(str(number), images[number % 64], number % CLASSES))
        size = sum(file.stat().length for file in folder.iterdir())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batches = stream.batches(
            [folder],
            [folder],
            stream.Streaming(View(side, "random"), lanes, window),
            batch_size=32, unlabeled_ratio=3, seed=0, generation=0, start=0, stop=steps + 5,
        )  # fmt: skip
        for _ in range(5):
            next(batches)
        began = time.perf_counter()
        seen = sum(len(batch.labeled) + len(batch.unlabeled) for batch in batches)
        seconds = time.perf_counter() - began
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{size / 1e6:.0f} {seen / seconds:.0f} {peak:.0f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--side", type=int, default=224, help="side of the crops in pixels")
    parser.add_argument("--steps", type=int, default=40, help="steps of 128 images")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = (arguments.side, arguments.steps, arguments.lanes, arguments.window)
    if arguments.measure:
        measure(arguments.examples[0], *options)
        return
    cores = len(os.sched_getaffinity(0))
    print(
        "| examples | MB on disk | images/s | images/s a core | peak MiB |\n|---|---|---|---|---|"
    )
    for examples in arguments.examples:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", f"--examples={examples}",
             *(f"--{name}={value}" for name, value in
               zip(("side", "steps", "lanes", "window"), options, strict=True))],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        size, rate, peak = done.stdout.split()
        print(f"| {examples} | {size} | {rate} | {float(rate) / cores:.0f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
