"""Whole runs of the tiny digits experiment as a user starts them, and their results."""

import json
import subprocess
import time

from crest_jax.data import pseudo_labels

# Times, and the digest over them.
UNTIMED = ("seconds", "images_per_second", "digest")


def figures(workdir):
    """Return results.json without times and environment, and the selections."""

    def untimed(value):
        if isinstance(value, dict):
            return {k: untimed(v) for k, v in value.items() if k not in (*UNTIMED, "environment")}
        return [untimed(v) for v in value] if isinstance(value, list) else value

    selections = []
    # No glob: the folder's own name may be a pattern.
    folders = [path for path in workdir.iterdir() if path.name.startswith("generation_")]
    for generation in sorted(folders):
        entries = pseudo_labels.read(generation / "pseudo_labels")
        selections.append(
            (entries.ids.tolist(), entries.labels.tolist(), entries.confidence.tolist(),
             entries.selected.tolist())
        )  # fmt: skip
    return untimed(json.loads((workdir / "results.json").read_text())), selections


def finish(process: subprocess.Popen) -> str:
    """Waits for the end, which must be a good one, and returns the output."""
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


def wait_for(process: subprocess.Popen, workdir, pattern: str) -> None:
    """Waits until a file appears; fails if the run ends before it does."""
    deadline = time.monotonic() + 240
    while not any(workdir.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern}: {process.stderr.read()}"
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.001)
