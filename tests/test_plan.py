"""Dry runs, compared with the runs that they describe."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import pytest
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import evaluate, job, plan, program, workdir
from crest_jax.data import loading, manifest, preparation, splits
from crest_jax.errors import ConfigError, DataError, WorkdirError
from crest_jax.schedule import Schedule


def tree(folder):
    """Return everything below a folder: paths, times of change and contents."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in pathlib.Path(folder).rglob("*")
    }


def bytes_of(folder):
    return sum(len(content or b"") for _, content in tree(folder).values())


def dry_run(config, folder):
    """Return the output of a dry run."""
    return printed_by(job.dry_run, config, folder)


def printed_by(do, config, folder):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        do(config, folder)
    return printed.getvalue()


class Ran(NamedTuple):
    """A dry run, and the run after it."""

    config: ConfigDict
    folder: Path
    printed: str
    left_behind: list  # by the dry run
    printed_by_run: str
    predicted_batches: int  # by the run


@pytest.fixture(scope="module")
def ran(tiny_config, make_folder):
    config = tiny_config(**{"data.validation_fraction": 0.2, "eval_batch_size": 40})
    folder, scratch = make_folder("planned"), make_folder("scratch")
    batches = []
    make_predict = evaluate.make_predict

    def counting(*arguments, batch_size):
        predict = make_predict(*arguments, batch_size=batch_size)

        def counted(params, batch_stats, images, adjustment):
            batches.append(-(-len(images) // batch_size))
            return predict(params, batch_stats, images, adjustment)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        printed = dry_run(config, folder / "run")
        # TensorFlow keeps files of its own there until the process ends.
        left_behind = [*tree(folder), *scratch.glob("crest_jax*")]
        patch.setattr(evaluate, "make_predict", counting)
        printed_by_run = printed_by(job.run, config, folder / "run")
    return Ran(config, folder / "run", printed, left_behind, printed_by_run, sum(batches))


def test_nothing_is_left_behind(ran):
    assert not ran.left_behind
    assert ran.printed.startswith(f"dry run: nothing is written to {ran.folder}\n")


def test_examples_by_class_are_those_of_the_run(ran):
    names = ("labeled", "unlabeled", "test", "validation")
    manifests = [manifest.read(ran.folder / "splits" / name) for name in names]
    rows = [line.split() for line in ran.printed.splitlines()]
    assert ["class", *names] in rows
    for label in range(10):
        counts = [str(manifest["examples_per_class"][label]) for manifest in manifests]
        assert [str(label), *counts] in rows
    counted = ", ".join(
        f"{each['examples']} {name}" for name, each in zip(names, manifests, strict=True)
    )
    assert f"{counted}; images of 8 x 8 x 1" in ran.printed


def test_who_computes_is_said_as_by_the_run(ran):
    """The line is below that of the model."""
    lines = ran.printed.splitlines()
    (model,) = (number for number, line in enumerate(lines) if line.startswith("model "))
    computing = program.who_computes(ran.config)
    assert lines[model + 1].strip() == computing
    assert computing in ran.printed_by_run.splitlines()[:5]


def test_what_is_written_is_about_as_much_as_planned(ran):
    data = loading.load(ran.config.data, ran.folder / "splits")
    sizes = splits.written_sizes(ran.config.data, ran.folder / "splits")
    built = program.build(ran.config, data)
    disk = plan.disk_of(ran.config, data, sizes, built.new_state(jax.random.key(0)))
    shards = (ran.folder / "splits").glob("*/*.tfrecord")
    assert disk.splits == sum(os.stat(path).st_size for path in shards)  # noqa: PTH116
    saved = [path for path in (ran.folder / "generation_00" / "checkpoints").iterdir()]
    assert disk.kept == len(saved)
    # A third of such a small one, more or less from time to time, is what Orbax writes beside it.
    written = sorted(map(bytes_of, saved))
    assert written[len(written) // 2] == pytest.approx(disk.checkpoint, rel=0.5)
    assert written[-1] < 2 * disk.checkpoint
    assert bytes_of(ran.folder) == pytest.approx(disk.total, rel=0.25)
    assert f"2 x {disk.kept} checkpoints of {disk.checkpoint / 1000:.1f} kB" in ran.printed


@pytest.mark.parametrize("schedule", [Schedule(12, 6, 4), Schedule(60, 5, 7), Schedule(9, 2, 100)])
def test_the_checkpoints_that_stay_are_the_last_two_and_the_reported(schedule):
    """The test goes through the steps as training does."""
    last = [step for step in range(1, schedule.steps + 1)
            if step % schedule.eval_every == 0 or step == schedule.steps][-5:]  # fmt: skip
    saved = []
    for step in range(1, schedule.steps + 1):
        if step % schedule.checkpoint_every == 0 or step in last:
            saved.append(step)
    assert schedule.kept == [s for s in saved if s in last or s in saved[-2:]]


def test_predictions_are_counted_as_they_are_made(ran):
    sizes = splits.written_sizes(ran.config.data, ran.folder / "splits")
    evaluations, scoring = plan.predicted_batches(ran.config, sizes)
    assert ran.predicted_batches == ran.config.generations * (evaluations + scoring)


def test_a_run_that_was_stopped_is_left_alone_and_its_place_is_said(ran, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(ran.folder, folder)
    second = folder / "generation_01"
    for path in ("pseudo_labels", "checkpoints/12"):
        shutil.rmtree(second / path)
    (second / "result.json").unlink()
    before = tree(tmp_path)
    printed = dry_run(ran.config, folder)
    assert tree(tmp_path) == before
    assert "would continue with generation 2 of 2 at step 8 of 12" in printed
    assert f"in {folder}/splits" in printed
    assert re.search(r"\d+ s are left", printed)


def test_a_finished_run_has_nothing_left_to_do(ran):
    before = tree(ran.folder)
    assert "finished: nothing is left to do" in dry_run(ran.config, ran.folder)
    assert tree(ran.folder) == before


def refusals(config, folder):
    """Return the errors of a dry run and of the run after it."""
    said = []
    for do in (job.dry_run, job.run):
        with pytest.raises((ConfigError, DataError, WorkdirError)) as caught:
            do(config, folder)
        said.append((type(caught.value), str(caught.value)))
    return said


def test_what_the_run_refuses_it_refuses_with_the_same_words(ran, tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    another = ran.config.copy_and_resolve_references()
    another.seed = 5
    rates = ran.config.copy_and_resolve_references()
    rates.crest.rates = (1.0, 0.5)
    tail = ran.config.copy_and_resolve_references()
    tail.long_tail.n_max = 4000
    for config, folder, message in (
        (another, ran.folder, "seed: 0 -> 5"),
        (ran.config, tmp_path / "file", "cannot be written (File exists)"),
        (ran.config, tmp_path / "file" / "run", "cannot be written (Not a directory)"),
        (ran.config, tmp_path / "other", "holds thesis.tex but no config.json"),
        (rates, tmp_path / "rates", "crest.rates has 2 entries for 10 classes"),
        (tail, tmp_path / "tail", "lower --config.long_tail.n_max"),
    ):
        first, second = refusals(config, folder)
        assert first == second
        assert message in first[1]


def test_a_folder_that_may_not_be_written_is_refused(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(WorkdirError, match=r"cannot be written \(Permission denied\)"):
        workdir.check(tmp_path / "runs" / "new", ran.config)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused(ran, tmp_path, monkeypatch):
    def usage(path):
        assert str(path) == str(tmp_path)  # the run's folder is not there yet
        return shutil._ntuple_diskusage(10**9, 10**9 - 12_000, 12_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(WorkdirError, match=r"writes \d+\.\d [kM]B to .*, and 12\.0 kB are free"):
        dry_run(ran.config, tmp_path / "runs" / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        # 986 images of 64 bytes, and most of them twice more.
        ("_available_memory", DataError, r"take \d+\.\d kB of memory, and 9\.0 kB .*data\.stream"),
        ("_device_limit", ConfigError, r"takes \d+\.\d kB of .* which has 9\.0 kB: .*accumulation"),
    ],
)
def test_memory_that_is_too_small_is_refused(ran, tmp_path, monkeypatch, what, error, message):
    monkeypatch.setattr(plan, what, lambda: 9_000)
    with pytest.raises(error, match=message):
        dry_run(ran.config, tmp_path / "new")


def test_available_memory_is_part_of_all_there_is():
    page = os.sysconf("SC_PAGE_SIZE")
    free, installed = (page * os.sysconf(f"SC_{kind}PHYS_PAGES") for kind in ("AV", ""))
    assert 0.5 * free < plan._available_memory() < installed


def test_streamed_images_are_not_read(ran, tmp_path, monkeypatch):
    config = ran.config.copy_and_resolve_references()
    config.data.stream = True
    monkeypatch.setattr(preparation, "prepare", lambda *_: pytest.fail("it is read"))
    sizes, data, source = plan._read(config, tmp_path / "new", None)
    assert "the others not" in source
    assert (data.labeled.examples, data.unlabeled.examples) == (47, 432)
    assert data.unlabeled.per_class.tolist() == sizes.per_class["unlabeled"].tolist()
    assert not list(data.unlabeled.chunks)


def test_the_shape_of_resized_images_is_known_before_they_are(ran, tmp_path):
    config = ran.config.copy_and_resolve_references()
    config.data.image_size = 12
    config.data.crop = "random"
    assert preparation.expected_sizes(config, tmp_path / "u.csv").image_shape == (12, 12, 1)


def test_sizes_are_known_before_anything_is_written(ran, tmp_path):
    expected = preparation.expected_sizes(ran.config, tmp_path / "unreadable.csv")
    written = splits.written_sizes(ran.config.data, ran.folder / "splits")
    assert expected.examples == written.examples
    for name, counts in written.per_class.items():
        np.testing.assert_array_equal(expected.per_class[name], counts)
        assert expected.bytes[name] == pytest.approx(written.bytes[name], rel=0.05)
    assert (expected.class_names, expected.image_shape) == (written.class_names, (8, 8, 1))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.0, "59 s"), (600.0, "10 min"), (11_800.0, "3 h 17 min"), (432_000.0, "5 d 0 h")],
)
def test_durations_are_in_units_of_their_size(seconds, words):
    assert plan._duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(999, "999 bytes"), (1000, "1.0 kB"), (938_000, "938.0 kB"), (17_630_952, "17.6 MB"),
     (3 * 10**15, "3000.0 TB")],
)  # fmt: skip
def test_sizes_are_in_units_of_theirs(size, words):
    assert plan._size(size) == words
