"""Measure the selection among very many pseudo-labels: time, memory, and what hosts exchange.

python benchmarks/selection.py [--examples 1e6 1e7 1e8] [--classes 127] [--part 1e6]

There are only scores, no images. Each part of them is drawn from a seed whenever it is needed, as a
host would read it from its files. Each size is measured in a fresh process, and another process
sorts all examples at once. Both must select the same examples.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from crest_jax.rebalancing import crest
from crest_jax.rebalancing.crest import Scores

MIB = 2**20


class Drawn:
    """Parts of a long-tailed set of scores, with many ties near 1."""

    def __init__(self, examples: int, classes: int, part: int):
        self.sizes = [min(part, examples - start) for start in range(0, examples, part)]
        self.classes = classes
        frequencies = 286.0 ** -np.linspace(0, 1, classes)
        self.cumulative = np.cumsum(frequencies / frequencies.sum())

    def __iter__(self) -> Iterator[Scores]:
        for number, size in enumerate(self.sizes):
            rng = np.random.default_rng(number)
            labels = self.cumulative.searchsorted(rng.random(size, np.float32))
            labels = np.minimum(labels, self.classes - 1).astype(np.int32)
            # Like a softmax of float32 logits: mostly confident, with many equal values.
            confidence = 1 / (1 + np.exp(-rng.normal(6, 4, size).astype(np.float32)))
            yield Scores(labels, confidence)


def sorted_at_once(scored: Drawn, rates: np.ndarray) -> Iterator[np.ndarray]:
    """Select in the direct way: sort all scores in memory by class and confidence."""
    parts = list(scored)
    labels = np.concatenate([part.labels for part in parts])
    confidence = np.concatenate([part.confidence for part in parts])
    selected = np.zeros(len(labels), bool)
    order = np.lexsort((-confidence, labels))  # stable
    counts = np.bincount(labels, minlength=len(rates))
    for start, count, rate in zip(np.cumsum(counts) - counts, counts, rates, strict=True):
        selected[order[start : start + int(count * rate)]] = True
    yield selected


def measure(way: str, examples: int, classes: int, part: int) -> None:
    """Print seconds, peak MiB above the start, MiB exchanged, and the count and digest selected."""
    scored = Drawn(examples, classes, part)
    sizes = np.geomspace(277601, 969, classes).astype(int)
    rates = crest.sampling_rates(sizes, 0.7)
    exchanged = 0

    def all_gather(array: np.ndarray) -> np.ndarray:
        nonlocal exchanged
        exchanged += array.nbytes
        return array[None]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if way == "parts":
        found = crest.select(scored, rates, all_gather=all_gather)
    else:
        found = sorted_at_once(scored, rates)
    digest, count = hashlib.sha256(), 0
    for selected in found:
        digest.update(selected.tobytes())
        count += int(selected.sum())
    seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{seconds:.1f} {peak:.0f} {exchanged / MIB:.1f} {count} {digest.hexdigest()}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--classes", type=int, default=127)
    parser.add_argument("--part", type=float, default=1e6, help="examples processed at a time")
    parser.add_argument("--measure", choices=["parts", "sort"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        (examples,) = arguments.examples
        measure(arguments.measure, int(examples), arguments.classes, int(arguments.part))
        return
    shared = [f"--classes={arguments.classes}", f"--part={arguments.part}"]
    print("| examples | in parts of | s | peak MiB | exchanged MiB a host | sorted: s | peak MiB "
          "| selected | the same |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for examples in arguments.examples:
        ran = {}
        for way in ("parts", "sort"):
            command = [sys.executable, __file__, f"--measure={way}", f"--examples={examples}"]
            done = subprocess.run(
                [*command, *shared], check=True, stdout=subprocess.PIPE, text=True
            )
            ran[way] = done.stdout.split()
        seconds, peak, exchanged, selected, digest = ran["parts"]
        print(
            f"| {examples:.0e} | {arguments.part:.0e} | {seconds} | {peak} | {exchanged} "
            f"| {ran['sort'][0]} | {ran['sort'][1]} | {int(selected):,} "
            f"| {'yes' if digest == ran['sort'][4] else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
