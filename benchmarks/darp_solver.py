"""Compare DARP's solver with the published iteration: time, and error of the column sums.

python benchmarks/darp_solver.py [--examples N ...] [--classes C ...]

The pseudo-labels imitate a model that is often confident and prefers the frequent classes. The
targets are a long tail with gamma = 100. The published iteration consists of 10 rounds of one
Newton solve per class, here in float64 NumPy on all examples at once.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import newton

from crest_jax.rebalancing import darp

DELTA = 2.0
GAMMA = 100.0
ROUNDS = 10


def problem(
    examples: int, classes: int
) -> tuple[Float[np.ndarray, "examples classes"], Float[np.ndarray, " classes"]]:
    """Return random pseudo-labels, and the target count of each class."""
    rng = np.random.default_rng(0)
    shares = GAMMA ** -np.linspace(0, 1, classes)
    shares /= shares.sum()
    labels = rng.choice(classes, size=examples, p=shares)
    logits = rng.normal(size=(examples, classes)) + 1.5 * np.log(shares)
    logits[np.arange(examples), labels] += rng.exponential(5.0, size=examples)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    return probs.astype(np.float32), (examples * shares).astype(np.float32)


def coordinate_ascent(
    probs: Float[np.ndarray, "examples classes"], counts: Float[np.ndarray, " classes"]
) -> Float[np.ndarray, "examples classes"]:
    """Refine by the published iteration: normalise rows, then fit the classes one by one."""
    slack = -(probs * np.log(probs)).sum(axis=1, keepdims=True)
    ratio = np.ones_like(probs)  # exp(nu_k / w_m)
    for _ in range(ROUNDS):
        rows = 1 / (probs * ratio).sum(axis=1)
        for label, count in enumerate(counts):
            mass = probs[:, label] * rows

            def excess(nu, mass=mass, count=count):
                return (mass * np.exp(slack[:, 0] * nu)).sum() - count

            def slope(nu, mass=mass):
                return (slack[:, 0] * mass * np.exp(slack[:, 0] * nu)).sum()

            start = np.log(max(ratio[0, label], 1e-300)) / slack[0, 0]
            with np.errstate(over="ignore", invalid="ignore"):
                nu = newton(excess, start, fprime=slope, maxiter=50, disp=False)
            ratio[:, label] = np.exp(slack[:, 0] * nu)
    refined = probs * ratio
    return refined / refined.sum(axis=1, keepdims=True)


def timed(function: Callable, *arguments) -> tuple[float, np.ndarray]:
    """Return the best of three times in seconds, after a call that may compile, and the result."""
    result = jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds), np.asarray(result)


def column_error(refined: np.ndarray, counts: np.ndarray) -> float:
    """Return the largest relative error of a column's sum, in per cent."""
    return 100 * float(np.abs(refined.astype(np.float64).sum(axis=0) / counts - 1).max())


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args()
    print(f"{jax.device_count()} {jax.devices()[0].device_kind}")
    print(
        "examples  classes | noise removal   refine  column error | 10 rounds  column error | ratio"
    )
    remove_noise = jax.jit(darp.remove_noise, static_argnums=2)
    refine = jax.jit(darp.refine)
    for examples in arguments.examples:
        for classes in arguments.classes:
            probs, counts = problem(examples, classes)
            removal, kept = timed(remove_noise, probs, counts, DELTA)
            ours, refined = timed(refine, kept, counts)
            start = time.perf_counter()
            published = coordinate_ascent(kept.astype(np.float64), counts.astype(np.float64))
            theirs = time.perf_counter() - start
            print(
                f"{examples:8d}  {classes:7d} | {1000 * removal:10.0f} ms  {1000 * ours:4.0f} ms  "
                f"{column_error(refined, counts):10.4f} % | {theirs:7.2f} s  "
                f"{column_error(published, counts):10.3f} % | {theirs / ours:5.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
