"""The training step compiles for chips that are not here: `make test-ahead`, half an hour."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    "AHEAD" not in os.environ, reason="only in `make test-ahead`, with the chips' compilers"
)
# Bytes of a chip's memory, by their makers.
MEMORY = {"v5e": 16 << 30, "v5p": 95 << 30, "v6e": 32 << 30, "h100": 80 * 10**9}
MOST_AUGMENTATION = 0.1  # of a step
BATCH_NORMS = 25  # of WRN-28-2


def estimate(chip, devices):
    command = [
        sys.executable, "benchmarks/ahead.py", f"--chip={chip}", f"--devices={devices}",
        "--dtype=bfloat16", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("chip", "devices"), [("h100", 1), ("h100", 8), ("v5e", 1), ("v5e", 8), ("v5p", 1), ("v6e", 1)]
)
def test_the_step_and_scoring_compile(chip, devices):
    found = estimate(chip, devices)
    for program in found.values():
        assert 0 < program["memory"] < MEMORY[chip]
        assert not program["host_calls"]
    step, scoring = found["step"], found["scoring"]
    milliseconds = {name: cost["milliseconds"] for name, cost in step["costs"].items()}
    total = sum(milliseconds.values())
    parts = ", ".join(f"{name} {cost:.2f}" for name, cost in milliseconds.items())
    print(f"{devices} x {chip}: {total:.2f} ms: {parts}; {step['memory'] / 1e9:.2f} GB")
    assert milliseconds["augmentation"] < MOST_AUGMENTATION * total
    # The averaged statistics of batch norm are copies of others, and are not read.
    assert step["donated"] == step["state"] - 2 * BATCH_NORMS
    assert not scoring["collectives"]
    # In each direction one of each norm, the gradients, and the metrics with the rest.
    if devices > 1:
        assert 2 * BATCH_NORMS < sum(step["collectives"].values()) <= 2 * BATCH_NORMS + 4
        assert step["summed"] == ["F32"]
    else:
        assert not step["collectives"]
