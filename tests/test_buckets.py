"""Runs on `gs://`, through the clients that reach a real bucket, beside the same run on a disk."""

import io
import json
import os
import re
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from fake_gcs import FakeGcs
from PIL import Image
from whole_run import figures

from crest_jax import files
from crest_jax.errors import WorkdirError


@pytest.fixture(scope="module")
def gcs():
    with FakeGcs("bucket") as store:
        yield store


@pytest.fixture(scope="module")
def start(gcs):
    """Starts Python with this store's buckets."""
    environment = os.environ | gcs.environment

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env={name: value for name, value in environment.items() if name != "XLA_FLAGS"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def end(process, said=""):
    output, errors = process.communicate(said, timeout=240)
    return process.returncode, output, errors


def wait_for(gcs, name, process):
    while ("bucket", name) not in gcs.objects:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def save_to_disk(gcs, folder):
    """Copies what a bucket holds; names that end in a slash stand for empty folders."""
    for (_, name), content in gcs.objects.items():
        if not name.endswith("/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def run(gcs, start, tiny_flags):
    """Killed while the splits were written and in the second generation; then continued."""
    flags = [*tiny_flags, "--workdir=gs://bucket/run"]
    for moment in ("run/splits/unlabeled/", "run/generation_01/checkpoints/4/commit_success.txt"):
        process = start("-m", "crest_jax.main", *flags)
        wait_for(gcs, moment, process)
        process.kill()
        end(process)
    return end(start("-m", "crest_jax.main", *flags))


def test_a_run_in_a_bucket_that_is_killed_is_that_on_a_disk(gcs, run, untouched, tmp_path):
    status, *printed = run
    assert status == 0, printed
    assert "results: gs://bucket/run/results.json" in printed[0]
    save_to_disk(gcs, tmp_path)
    assert figures(tmp_path / "run") == figures(untouched[0])
    assert not [name for _, name in gcs.objects if "partial" in name or "tmp" in name]


# Several commands in one process, since it takes seconds to start one.
READ = """
import runpy, sys
for command in sys.stdin.read().splitlines():
    module, *sys.argv[1:] = command.split()
    try:
        runpy.run_module(f"crest_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        print("exit status", ended.code, file=sys.stderr)
"""
COMMANDS = """\
predict --workdir=gs://bucket/run --images=gs://bucket/pictures --output=gs://bucket/out.csv
export --workdir=gs://bucket/run --output=gs://bucket/model
report --workdir=gs://bucket/run --output=gs://bucket/page.html
adjust --workdir=gs://bucket/run --tau 0 --output=gs://bucket/adjusted.json
report --workdir=gs://bucket/run --output=gs://nobody/page.html
main --config=experiments/digits_lt.py --workdir=gs://bucket/run
"""


def test_what_is_read_from_a_run_can_be_in_a_bucket_too(gcs, run, start):
    for number in range(2):
        picture = io.BytesIO()
        Image.new("L", (9, 9), 100 * number).save(picture, "PNG")
        gcs.put("bucket", f"pictures/{number}.png", picture.getvalue())
    _, _, errors = end(start("-c", READ), COMMANDS)
    no_bucket, another_config = re.findall(r"error: (.*)\n(?:.*\n)*?exit status 1", errors)
    assert no_bucket.startswith("there is no bucket gs://nobody")
    assert another_config.startswith("workdir gs://bucket/run belongs to another config")
    lines = gcs.objects["bucket", "out.csv"].decode().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["file", "0.png", "1.png"]
    model = {name.removeprefix("model/") for _, name in gcs.objects if name.startswith("model/")}
    assert {"model.jax", "model.json"} <= model
    assert gcs.objects["bucket", "page.html"].startswith(b"<!doctype html>")
    adjusted = json.loads(gcs.objects["bucket", "adjusted.json"])["generations"][-1]["adjusted"][0]
    results = json.loads(gcs.objects["bucket", "run/results.json"])
    assert adjusted["accuracy"] == results["accuracy"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("odd\nlines")])
def test_what_went_wrong_is_said_in_a_line(error):
    assert files.reason(error) in ("No space left on device", "odd")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WorkdirError, match=r"nowhere/file cannot be written \(No such file"):
        files.write_text(tmp_path / "nowhere" / "file", "text")
    with pytest.raises(WorkdirError, match=r"nowhere/file cannot be written"):
        files.append_text(tmp_path / "nowhere" / "file", "text")
