"""Runs of a few steps give the results that were recorded before.

A change of the order of examples, of random numbers, augmentation, losses, the optimiser, selection
or evaluation shows here. Where such a change is meant, record them again:

    python tests/test_recorded.py
"""

import json
import tempfile

import pytest
from conftest import TINY, load_experiment
from etils.epath import Path

from crest_jax import job

RECORDED = Path(__file__).parent / "recorded.json"
# Each has other parts; together they have all algorithms that learn from unlabeled images, and all
# ways of rebalancing.
RUNS = {
    "method=fixmatch,rebalance=crest_plus+rs": {},
    "method=mixmatch,rebalance=darp+crest+cb": {"darp.start": 0.4, "darp.every": 2},
    "method=mean_teacher,rebalance=da+rs,t=0.5": {"generations": 1},
    "method=pseudo_label,rebalance=none,fold=3": {"generations": 1, "threshold": 0.2},
}


def figures(arguments, folder):
    """Return a run's results: counts exactly, and other values approximately."""
    changes = {**TINY, **RUNS[arguments], "steps": 8, "eval_every": 4}
    job.run(load_experiment("digits_lt", arguments, **changes), folder, pictures=False)
    results = json.loads((folder / "results.json").read_text())
    lines = [
        json.loads(line)
        for generation in range(len(results["generations"]))
        for line in (folder / f"generation_{generation:02d}" / "metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    return {
        "losses": [line["train"] for line in lines],
        "test accuracy": [line["test"]["ema"]["accuracy"] for line in lines],
        "labeled": [each["labeled_per_class"] for each in results["generations"]],
        "selected": [each["pseudo_labels"]["selected"] for each in results["generations"]],
    }


@pytest.mark.parametrize("arguments", RUNS)
def test_figures_are_the_recorded_ones(arguments, tmp_path):
    found = figures(arguments, tmp_path / "run")
    expected = json.loads(RECORDED.read_text())[arguments]
    assert len(found["losses"]) == len(expected["losses"])
    for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    # Roundings may change an image here or there, but no more.
    assert found["test accuracy"] == pytest.approx(expected["test accuracy"], abs=1.0)
    for ours, theirs in zip(found["labeled"], expected["labeled"], strict=True):
        assert ours == pytest.approx(theirs, abs=2)
    for ours, theirs in zip(found["selected"], expected["selected"], strict=True):
        assert ours == pytest.approx(theirs, abs=2)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        recorded = {
            arguments: figures(arguments, Path(folder) / str(number))
            for number, arguments in enumerate(RUNS)
        }
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
