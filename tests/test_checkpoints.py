import contextlib
import errno
import logging
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from etils.epath import Path

from crest_jax import checkpoints, files
from crest_jax.errors import UnavailableError, WorkdirError
from crest_jax.mesh import data_mesh, replicate
from crest_jax.train_state import TrainState


def state_at(step, size=1 << 20):
    """A state of which every leaf is known from its step."""
    values = jnp.arange(size, dtype=jnp.float32) + step
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"w": values},
        batch_stats={"mean": values[:8]},
        opt_state=({"trace": -values}, ()),
        ema_params={"w": values / 2},
        ema_batch_stats={"mean": values[:8] / 3},
        labeled_distribution=jnp.full((4,), 0.25, jnp.float32),
        predictions=jnp.full((128, 4), 1 / (step + 1), jnp.float32),
    )
    return replicate(state, data_mesh())


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_everything_comes_back_on_all_devices(tmp_path):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager:
        checkpoints.save(manager, state_at(3))
    with checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager:
        restored = checkpoints.restore_latest(manager, state_at(0))
    assert isinstance(restored, TrainState)
    assert_equal(restored, state_at(3))
    assert len(restored.params["w"].sharding.device_set) == jax.device_count()


def test_opening_to_read_is_no_news(tmp_path, caplog):
    folder = Path(tmp_path / "checkpoints")
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        checkpoints.save(manager, state_at(3))
    with caplog.at_level(logging.WARNING, "absl"), checkpoints.open_to_read(folder) as manager:
        assert manager.all_steps() == [3]
        absl_logging.warning("Given directory is read only=%s", "another")
    assert [record.getMessage() for record in caplog.records] == [
        "Given directory is read only=another"
    ]


def test_a_save_under_way_does_not_see_the_steps_after_it(tmp_path):
    overwrite = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0
    )
    with checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager:
        for step in (1, 2, 3):
            state = state_at(step)
            checkpoints.save(manager, state)
            for _ in range(3):  # as the loop does: the saved buffers are donated at once
                state = overwrite(state)
            jax.block_until_ready(state)
            manager.wait_until_finished()
            assert_equal(checkpoints.restore_latest(manager, state_at(0)), state_at(step))


def test_without_a_checkpoint_the_fresh_state_is_returned(tmp_path):
    fresh = state_at(0)
    with checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager:
        assert checkpoints.restore_latest(manager, fresh) is fresh


def test_the_last_two_are_kept_and_unfinished_ones_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2, 3):
            checkpoints.save(manager, state_at(step, size=8))
    (folder / "4.orbax-checkpoint-tmp").mkdir()
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert sorted(manager.all_steps()) == [2, 3]
        assert manager.latest_step() == 3
        checkpoints.save(manager, state_at(3, size=8))  # there already: left alone
        assert sorted(manager.all_steps()) == [2, 3]
        checkpoints.save(manager, state_at(4, size=8))
    assert {path.name for path in folder.iterdir()} == {"3", "4"}


def test_lasting_checkpoints_stay_beside_the_last_two(tmp_path):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=(1, 3)) as manager:
        for step in range(1, 7):
            checkpoints.save(manager, state_at(step, size=8))
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [1, 3, 5, 6]
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            state_at(0, size=8),
        )
        restored = checkpoints.restore(manager, 3, shapes, way_out="start anew")
    assert_equal(restored, state_at(3, size=8))


def test_behind_a_damaged_checkpoint_is_the_one_before(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2):
            checkpoints.save(manager, state_at(step, size=8))
    (folder / "2" / "state" / "_METADATA").unlink()
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert_equal(checkpoints.restore_latest(manager, state_at(0, size=8)), state_at(1, size=8))
        assert "checkpoints/2 cannot be read" in (said := capsys.readouterr().out)
        assert said.endswith("continuing from step 1\n")
        # Training comes by again.
        checkpoints.save(manager, state_at(2, size=8))
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert_equal(checkpoints.restore_latest(manager, state_at(0, size=8)), state_at(2, size=8))


def test_nothing_is_deleted_where_no_checkpoint_can_be_read(tmp_path):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2):
            checkpoints.save(manager, state_at(step, size=8))
    for step in ("1", "2"):
        (folder / step / "state" / "_METADATA").rename(tmp_path / step)
    with (
        checkpoints.open_checkpoints(folder, lasting=()) as manager,
        pytest.raises(
            WorkdirError, match=r"no checkpoint .*; .*/2 cannot be read .*: move .* elsew"
        ),
    ):
        checkpoints.restore_latest(manager, state_at(0, size=8))
    for step in ("1", "2"):
        (tmp_path / step).rename(folder / step / "state" / "_METADATA")
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert int(checkpoints.restore_latest(manager, state_at(0, size=8)).step) == 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_cannot_be_read_at_the_moment_is_not_taken_for_damaged(tmp_path, monkeypatch, error):
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2):
            checkpoints.save(manager, state_at(step, size=8))
        manager.wait_until_finished()

        def restore(*_, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(manager, "restore", restore)
            with pytest.raises(UnavailableError, match=r"checkpoints/2 cannot be read .*: run ag"):
                checkpoints.restore_latest(manager, state_at(0, size=8))
        assert int(checkpoints.restore_latest(manager, state_at(0, size=8)).step) == 2


def test_a_checkpoint_without_what_else_belongs_to_its_step_is_passed_over(tmp_path):
    folder = tmp_path / "checkpoints"

    def check(step):
        if step == 2:
            raise WorkdirError("an evaluation is missing")

    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2):
            checkpoints.save(manager, state_at(step, size=8))
        manager.wait_until_finished()
        restored = checkpoints.restore_latest(manager, state_at(0, size=8), check=check)
        assert int(restored.step) == 1
        assert manager.all_steps() == [1]


@pytest.mark.parametrize("when", ["save", "wait_until_finished"])
def test_a_checkpoint_that_cannot_be_saved_is_an_error_that_says_so(tmp_path, monkeypatch, when):
    """It fails at once or in the background. The tests of faults fill the disk of a whole run."""
    folder = tmp_path / "checkpoints"

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def save_on_a_full_disk():
        with checkpoints.open_checkpoints(folder, lasting=()) as manager:
            checkpoints.save(manager, state_at(1, size=8))
            manager.wait_until_finished()
            monkeypatch.setattr(manager, when, fail)
            checkpoints.save(manager, state_at(2, size=8))

    with pytest.raises(
        WorkdirError, match=r"in .*checkpoints cannot be saved \(No space left on device\): run ag"
    ):
        save_on_a_full_disk()


def test_a_flipped_bit_is_found(tmp_path):
    """Orbax restores such a checkpoint without an error."""
    folder = tmp_path / "checkpoints"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        checkpoints.save(manager, state_at(1))
    largest = max(
        (p for p in pathlib.Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with (
        checkpoints.open_checkpoints(folder, lasting=()) as manager,
        pytest.raises(WorkdirError, match=r"checkpoints/1 (is not what was saved|cannot be read)"),
    ):
        checkpoints.restore_latest(manager, state_at(0))


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": ["0"]}', "nothing"])
def test_a_digest_that_is_none_is_damage(tmp_path, content):
    with checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager:
        checkpoints.save(manager, state_at(3))
    (tmp_path / "checkpoints" / "3" / "digest" / "metadata").write_text(content)
    with (
        checkpoints.open_checkpoints(tmp_path / "checkpoints", lasting=()) as manager,
        pytest.raises(
            WorkdirError, match=r"checkpoint .*/3 (cannot be read|is not what was saved)"
        ),
    ):
        checkpoints.restore_latest(manager, state_at(0))


# Folders whose names libraries take for something else


UNUSUAL = (
    "My project [1]", "a*", "**", "?", "{a,b}", "back\\slash", "\\", "gs:", "%41 # ~", "$HOME 'x'",
    "two\nlines", "-dash", "\u65e5\u672c", "\udcff", "x" * 255,
)  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL, ids=ascii)
def test_what_is_saved_is_there_whatever_the_folder_is_called(tmp_path, monkeypatch, name):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    folder = tmp_path / "runs" / name / "checkpoints"
    for step in (1, 2):
        with checkpoints.open_checkpoints(folder, lasting=()) as manager:
            fresh = state_at(0, size=8)
            assert int(checkpoints.restore_latest(manager, fresh).step) == step - 1
            checkpoints.save(manager, state_at(step, size=8))
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert_equal(checkpoints.restore_latest(manager, fresh), state_at(2, size=8))
        assert checkpoints.folder_of(manager) == folder
    there = [path.name for path in pathlib.Path(tmp_path / "runs").iterdir()]
    assert there == [name], "nothing is written elsewhere"
    assert {path.name for path in folder.iterdir()} == {"1", "2"}
    assert not list(scratch.iterdir())


def test_a_pattern_does_not_match_the_checkpoints_of_another_run(tmp_path):
    """While both save, `run*` must not take the files of `run1` for its own."""
    with (
        checkpoints.open_checkpoints(tmp_path / "run1", lasting=()) as other,
        checkpoints.open_checkpoints(tmp_path / "run*", lasting=()) as manager,
    ):
        checkpoints.save(other, state_at(5, size=8))
        checkpoints.save(manager, state_at(3, size=8))
    with checkpoints.open_checkpoints(tmp_path / "run*", lasting=()) as manager:
        assert_equal(checkpoints.restore_latest(manager, state_at(0, size=8)), state_at(3, size=8))


@pytest.fixture
def by_its_own_name():
    """Within, Orbax is told the folder's own name."""

    @contextlib.contextmanager
    def until():
        with pytest.MonkeyPatch.context() as patch:
            own_name = lambda folder: contextlib.nullcontext(files.absolute(folder))  # noqa: E731
            patch.setattr(files, "plainly_named", own_name)
            yield

    return until


def test_a_damaged_checkpoint_is_said_to_be_where_it_is(tmp_path, capsys):
    folder = tmp_path / "run [1]"
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        for step in (1, 2):
            checkpoints.save(manager, state_at(step, size=8))
    (folder / "2" / "state" / "manifest.ocdbt").write_bytes(b"nothing")
    with checkpoints.open_checkpoints(folder, lasting=()) as manager:
        assert int(checkpoints.restore_latest(manager, state_at(0, size=8)).step) == 1
    said = capsys.readouterr().out
    assert f"checkpoint {folder}/2 cannot be read" in said
    assert "crest_jax_" not in said, "no name of a link"


# check


@pytest.mark.parametrize("name", ["run", "run [1]"])
def test_a_folder_in_which_checkpoints_can_be_read_passes_and_is_left_empty(tmp_path, name):
    (tmp_path / name).mkdir()
    checkpoints.check(tmp_path / name)
    assert not list((tmp_path / name).iterdir())
    (tmp_path / name / ".trial_of_a_checkpoint_that_is_read" / "0").mkdir(parents=True)
    checkpoints.check(tmp_path / name)  # though one was killed there before
    assert not list((tmp_path / name).iterdir())


def test_a_folder_in_which_they_cannot_be_read_is_refused_before_any_training(
    tmp_path, by_its_own_name
):
    with (
        by_its_own_name(),
        pytest.raises(WorkdirError, match=r"cannot be read .*: nothing was trained yet: choose"),
    ):
        checkpoints.check(tmp_path / "run [1]")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkdirError, match="cannot be written"):
        checkpoints.check(tmp_path / "file")


# files.plainly_named


def test_a_plain_name_is_its_own(tmp_path):
    for folder in (tmp_path, Path("runs/a-b_c.1"), Path("gs://bucket/run=5")):
        with files.plainly_named(folder) as path:
            assert path == files.absolute(folder)


def test_where_the_temporary_folder_has_no_plain_name_either_it_is_said(tmp_path, monkeypatch):
    scratch = tmp_path / "[x]"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with (
        pytest.raises(WorkdirError, match=r"run \[1\] can only .* would be .*set TMPDIR"),
        files.plainly_named(tmp_path / "run [1]"),
    ):
        pass
    assert not list(scratch.iterdir())
    scratch.rmdir()
    with (
        pytest.raises(WorkdirError, match=r"cannot be made \(No such file .*set TMPDIR"),
        files.plainly_named(tmp_path / "run [1]"),
    ):
        pass


@pytest.mark.parametrize("character", "*?[]\\")
def test_a_bucket_has_no_links_so_that_patterns_are_refused(character):
    with (
        pytest.raises(WorkdirError, match="which makes it a pattern in a bucket"),
        files.plainly_named(Path(f"gs://bucket/run{character}1")),
    ):
        pass
