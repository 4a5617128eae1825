"""Files of a run that were damaged while nobody looked: each is found, and repaired or named.

The short form damages one of each kind; with FAULTS=long, every file in every way:

    FAULTS=long FAULTS_LOG=damage.txt python -m pytest tests/faults/test_damage.py
"""

import os
import pathlib
import re
import shutil

import pytest
from whole_run import figures

from crest_jax import job, program
from crest_jax.errors import CrestError


def truncate(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path) -> None:
    """Flip a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path) -> None:
    path.unlink()


DAMAGE = {"truncated": truncate, "a bit flipped": flip, "removed": remove}
# What the run does: it names the file and what to do; says that it makes it anew, or continues from
# an older checkpoint; or makes it as it would have anyway, if it needs it at all.
NAMED, REPAIRED, PASSED = "named", "repaired", "passed"
# Of each kind of file, one in the short form.
KINDS = {
    "config.json": ("truncated", NAMED),
    "splits/labeled/shard-00001-of-00002.tfrecord": ("a bit flipped", NAMED),
    "splits/unlabeled/manifest.json": ("a bit flipped", NAMED),
    "splits/test/shard-00000-of-00002.tfrecord": ("removed", NAMED),
    "generation_00/result.json": ("a bit flipped", REPAIRED),
    "generation_00/pseudo_labels/manifest.json": ("truncated", REPAIRED),
    "generation_00/pseudo_labels/shard-00000-of-00001.npz": ("a bit flipped", REPAIRED),
    "generation_01/labeled/manifest.json": ("removed", PASSED),
    "generation_01/labeled/shard-00000-of-00002.tfrecord": ("truncated", REPAIRED),
    "generation_01/checkpoints/8/digest/metadata": ("a bit flipped", REPAIRED),
    "generation_01/metrics.jsonl": ("a bit flipped", NAMED),
    "results.json": ("truncated", PASSED),
}


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def config(tiny_config, patched):
    """The config of a run whose step is compiled once for this module."""
    config = tiny_config()
    build = program.build
    built = []

    def build_once(*arguments):
        if not built:
            built.append(build(*arguments))
        return built[0]

    patched.setattr(program, "build", build_once)
    return config


@pytest.fixture(scope="module")
def whole(config, make_folder):
    """A finished run."""
    workdir = make_folder("whole") / "run"
    job.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def interrupted(whole, make_folder):
    """The run as it was after step 8 of its second generation, with checkpoints of 6 and 8."""
    workdir = make_folder("interrupted") / "run"
    shutil.copytree(whole, workdir)
    here = workdir / "generation_01"
    shutil.rmtree(here / "pseudo_labels")
    shutil.rmtree(here / "checkpoints" / "12")
    (here / "result.json").unlink()
    first, _ = (here / "metrics.jsonl").read_text().splitlines(keepends=True)
    (here / "metrics.jsonl").write_text(first)
    return workdir


def outcome(config, workdir, name, damage, capsys) -> tuple[str, str]:
    """Run, and return the run's reaction to a file and its output."""
    damage(workdir / name)
    capsys.readouterr()
    try:
        job.run(config, workdir)
    except CrestError as error:
        message = str(error)
        # Its name, or its checkpoint's.
        assert any(part in message for part in (name, name.removeprefix("splits/"))), message
        return NAMED, message
    output = capsys.readouterr().out
    said = [line for line in output.splitlines() if re.search("made again|continuing from", line)]
    return (REPAIRED, said[0]) if said else (PASSED, "")


def follow(message, workdir) -> bool:
    """Follow the instructions of an error."""
    advised = re.search(r"(?:delete|move) (\S+) (?:elsewhere )?and run again", message)
    if not advised:
        return False
    path = pathlib.Path(advised.group(1))
    assert path.is_relative_to(workdir)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return True


def check(config, whole, interrupted, workdir, name, damage, capsys) -> str:
    """Damages a file of a run, runs it, and makes sure that it ends as it should."""
    shutil.copytree(interrupted, workdir)
    done, message = outcome(config, workdir, name, damage, capsys)
    if done == NAMED:
        if not follow(message, workdir):
            assert name == "config.json"
            return done
        job.run(config, workdir)
    assert figures(workdir) == figures(whole)
    return done


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_repaired_or_named(config, whole, interrupted, tmp_path, capsys, name):
    way, expected = KINDS[name]
    done = check(config, whole, interrupted, tmp_path / "run", name, DAMAGE[way], capsys)
    assert done == expected


@pytest.mark.long_form
@pytest.mark.parametrize("way", DAMAGE)
def test_any_file_damaged_in_any_way(config, whole, interrupted, tmp_path, capsys, way):
    files = sorted(
        path.relative_to(interrupted).as_posix()
        for path in pathlib.Path(interrupted).rglob("*")
        if path.is_file() and path.stat().st_size
    )
    log = os.environ.get("FAULTS_LOG", os.devnull)
    for number, name in enumerate(files):
        workdir = tmp_path / str(number)
        done = check(config, whole, interrupted, workdir, name, DAMAGE[way], capsys)
        with open(log, "a") as file:  # noqa: PTH123
            file.write(f"{re.sub('[0-9a-f]{32}', '*', name)} | {way} | {done}\n")
        shutil.rmtree(workdir)
