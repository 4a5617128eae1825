import errno
import fcntl
import itertools
import json
import logging
import math
import os
import socket
import subprocess
import sys
import tracemalloc

import pytest
from conftest import flat
from hypothesis import given
from hypothesis import strategies as st

from crest_jax import files, workdir
from crest_jax.config import default_config, parse_arguments
from crest_jax.cpu import library
from crest_jax.errors import ConfigError, WorkdirError


@pytest.fixture
def config():
    return default_config(parse_arguments(None))


def contents(folder):
    """Return the content of files by name, without the lock, which belongs to the last process."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return found | {name: b"" for name in found if name == ".lock"}


# claim


def claim(folder, config):
    with workdir.claim(folder, config):
        pass


def test_a_new_folder_is_made_with_its_parents_and_keeps_config_and_environment(tmp_path, config):
    folder = tmp_path / "runs" / "cifar10_lt"
    claim(folder, config)
    assert sorted(contents(folder)) == [".lock", "config.json"], "nothing else is left behind"
    written = json.loads((folder / "config.json").read_text())
    tail = {"n_max": 5000, "gamma": 100.0, "beta": 0.1, "split": "random"}
    assert written["config"]["long_tail"] == tail
    assert {"python", "jax", "cpus", "devices"} <= written["environment"].keys()


def test_an_empty_folder_is_accepted(tmp_path, config):
    claim(tmp_path, config)
    assert (tmp_path / "config.json").exists()


def test_the_same_config_may_come_back_and_changes_nothing(tmp_path, config, caplog):
    claim(tmp_path, config)
    (tmp_path / "generation_00").mkdir()
    before = (tmp_path / "config.json").read_bytes()
    with caplog.at_level(logging.WARNING, "absl"):
        claim(tmp_path, default_config(parse_arguments(None)))
    assert (tmp_path / "config.json").read_bytes() == before
    assert not caplog.records


def test_a_changed_config_is_refused_with_every_difference(tmp_path, config):
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    before = contents(tmp_path)
    config.seed = 3
    config.long_tail.gamma = 50.0
    with pytest.raises(WorkdirError) as caught:
        claim(tmp_path, config)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "seed: 0 -> 3" in message
    assert "long_tail.gamma: 100.0 -> 50.0" in message
    assert "fold" not in message, "what has not changed is not listed"
    assert "--workdir" in message
    assert contents(tmp_path) == before


def test_a_run_of_before_there_was_a_precision_has_the_default(tmp_path, config):
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    path = tmp_path / "config.json"
    owner = files.read_json(path)
    del owner["config"]["precision"]
    files.write_json(path, owner)
    claim(tmp_path, config)
    assert workdir.read_config(tmp_path).precision == "default"
    config.precision = "high"
    with pytest.raises(WorkdirError) as caught:
        claim(tmp_path, config)
    assert str(caught.value) == (
        f"workdir {tmp_path} belongs to another config:\n"
        "  precision: 'default' -> 'high'\n"
        "change these back to continue it, or choose another with --workdir"
    )


def test_a_config_with_which_nothing_was_made_yet_can_be_mended(tmp_path, config):
    claim(tmp_path, config)
    config.long_tail.gamma = 7.0
    claim(tmp_path, config)
    assert files.read_json(tmp_path / "config.json")["config"]["long_tail"]["gamma"] == 7.0


def test_where_data_and_weights_lie_may_change(tmp_path, config):
    config.data.update({"labeled": "here", "unlabeled": "here/too", "test": "there"})
    config.model.init_from = "runs/first"
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    config.model.init_from = "archive/first"
    config.data.update({"labeled": "x", "unlabeled": "y.csv", "test": "gs://z/test"})
    config.data.data_dir = "elsewhere"
    config.data.download = False
    claim(tmp_path, config)


@pytest.mark.parametrize(
    "field", ["data.labeled", "data.unlabeled", "data.test", "model.init_from"]
)
@pytest.mark.parametrize("values", [("", "pictures"), ("pictures", "")])
def test_what_comes_or_goes_is_another_experiment(tmp_path, config, field, values):
    before, after = values
    config.update_from_flattened_dict({field: before})
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    config.update_from_flattened_dict({field: after})
    with pytest.raises(WorkdirError, match=rf"{field}: '{before}' -> '{after}'"):
        claim(tmp_path, config)


def test_before_anything_was_read_the_place_that_is_kept_is_the_last_one(tmp_path, config):
    config.model.init_from = "runs/first"
    claim(tmp_path, config)
    config.model.init_from = "runs/second"
    claim(tmp_path, config)
    assert workdir.read_config(tmp_path).model.init_from == "runs/second"


MAY_CHANGE = {"data.data_dir", "data.download", "heartbeat_timeout", "steps_at_once"}


def test_every_field_that_changes_is_named_but_for_those_that_may(config):
    """A field is named by its whole name: `data.test_fraction` is not `data.test`."""

    fields = dict(flat(config.to_dict()))
    assert fields.keys() > MAY_CHANGE
    for field, value in fields.items():
        changed = config.copy_and_resolve_references()
        other = (not value) if isinstance(value, bool) else (
            f"{value}2" if isinstance(value, str) else (*value, 0.5) if isinstance(value, tuple)
            else value + 1
        )  # fmt: skip
        changed.unlock()
        changed.update_from_flattened_dict({field: other})
        named = [line.partition(": ")[0] for line in workdir.differences(config, changed)]
        assert named == ([] if field in MAY_CHANGE else [field])


def test_a_folder_with_something_else_in_it_is_refused(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(WorkdirError) as caught:
        claim(tmp_path, config)
    assert str(tmp_path) in str(caught.value)
    assert "thesis.tex" in str(caught.value)
    assert contents(tmp_path) == {"thesis.tex": b"chapter one"}


def test_a_run_that_died_while_its_config_was_written_can_start(tmp_path, config):
    (tmp_path / "config.json.partial").write_text('{"config": {"se')
    claim(tmp_path, config)
    claim(tmp_path, config)
    assert sorted(contents(tmp_path)) == [".lock", "config.json"]


@pytest.mark.parametrize("below", ["", "runs/digits"])
def test_a_name_that_cannot_be_written_down_is_refused(tmp_path, config, below):
    folder = tmp_path / below / "run\udcff"
    for refused in (workdir.check, workdir.claim):
        with pytest.raises(ConfigError, match=r"run\\udcff contains a name that is not UTF-8"):
            refused(folder, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "runs/digits"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, config, below):
    # Not a matter of permissions, which do not bind a superuser.
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(WorkdirError) as caught:
        claim(folder, config)
    assert f"{folder} cannot be written" in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_config_that_is_not_json_is_refused_by_name(tmp_path, config):
    (tmp_path / "config.json").write_text('{"config": {"se')
    with pytest.raises(WorkdirError, match=r"config\.json is damaged.*restore it, or.*--workdir"):
        claim(tmp_path, config)


@pytest.mark.parametrize("foreign", ['{"model_type": "bert"}', "[1, 2]"])
def test_another_programs_config_is_refused(tmp_path, config, foreign):
    (tmp_path / "config.json").write_text(foreign)
    with pytest.raises(WorkdirError, match="--workdir"):
        claim(tmp_path, config)


def test_another_environment_is_a_warning_and_no_error(tmp_path, config, caplog):
    claim(tmp_path, config)
    path = tmp_path / "config.json"
    written = files.read_json(path)
    cpus = written["environment"]["cpus"]
    written["environment"]["cpus"] = cpus + 1
    files.write_json(path, written)
    with caplog.at_level(logging.WARNING, "absl"):
        claim(tmp_path, config)
    (record,) = caplog.records
    assert f"cpus: {cpus + 1} -> {cpus}" in record.getMessage()
    assert "python" not in record.getMessage(), "what is the same is not listed"


def test_a_processor_with_other_kernels_is_a_warning(tmp_path, config, caplog, monkeypatch):
    monkeypatch.setattr(library, "kernels", lambda: library.Kernels(lanes=8, tiles=False))
    claim(tmp_path, config)
    monkeypatch.setattr(library, "kernels", lambda: library.Kernels(lanes=16, tiles=True))
    with caplog.at_level(logging.WARNING, "absl"):
        claim(tmp_path, config)
    (record,) = caplog.records
    assert record.getMessage() == (
        "this run began elsewhere, and its last digits may now differ:\n"
        "  kernels: 'float32 and bfloat16: 256-bit kernels' -> "
        "'float32: AVX-512 kernels; bfloat16 and precision=high: AMX'"
    )


def test_a_second_process_is_told_who_is_at_work(tmp_path, config):
    with workdir.claim(tmp_path, config):
        command = (
            "from crest_jax import workdir; from crest_jax.config import *; "
            "from etils.epath import Path; "
            f"workdir.claim(Path({str(tmp_path)!r}), default_config(parse_arguments(None)))"
        )
        second = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in second.stderr
        with pytest.raises(WorkdirError, match=rf"in use by process {os.getpid()} on \S+, since 2"):
            claim(tmp_path, config)
    # What a process has left behind, however it ended, is no obstacle.
    assert (tmp_path / ".lock").read_text()
    claim(tmp_path, config)


def test_where_nothing_can_be_locked_there_is_a_warning(tmp_path, config, caplog, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "absl"):
        claim(tmp_path, config)
    assert ".lock cannot be locked (No locks available)" in caplog.text


def test_a_lock_that_says_nothing_of_its_process_is_let_go(tmp_path, config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", (tmp_path / "missing").stat)
        with pytest.raises(WorkdirError, match=r"\.lock cannot be written") as caught:
            claim(tmp_path, config)
    # The error, and what it refers to, is still there.
    claim(tmp_path, config)
    del caught


def test_a_raised_reseed_is_remembered_and_nothing_else_may_change_with_it(tmp_path, config):
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    config.reseed = 2
    claim(tmp_path, config)
    assert workdir.read_config(tmp_path).reseed == 2
    claim(tmp_path, config)
    config.reseed = 1  # as if it had never been
    with pytest.raises(WorkdirError, match="reseed: 2 -> 1"):
        claim(tmp_path, config)
    config.reseed, config.seed = 3, 5
    with pytest.raises(WorkdirError, match="seed: 0 -> 5") as caught:
        claim(tmp_path, config)
    assert "reseed: " not in str(caught.value)
    assert workdir.read_config(tmp_path).reseed == 2


def test_a_run_of_another_format_is_neither_continued_nor_read(tmp_path, config):
    """Its weights fit the shapes of a network that would compute something else with them."""
    claim(tmp_path, config)
    (tmp_path / "splits").mkdir()
    path = tmp_path / "config.json"
    for change in ({"format": None}, {"format": 3}):
        owner = {**files.read_json(path), **change}
        if change["format"] is None:
            del owner["format"]
        files.write_json(path, owner)
        for use in (lambda: claim(tmp_path, config), lambda: workdir.read_config(tmp_path)):
            with pytest.raises(
                WorkdirError,
                match=r"was begun by a version .* \(its format is [13], and this version's is 2\)",
            ):
                use()


# sealed, parse_json


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    ).filter(lambda value: "digest" not in value),
)
def test_what_is_sealed_is_parsed_as_it_was(value):
    assert files.parse_json(json.dumps(files.sealed(value))) == value


def test_any_flipped_bit_in_a_figure_or_a_name_is_found(tmp_path):
    """Each byte is changed in turn; only white space and the digest's name may change unnoticed."""
    value = {"accuracy": 81.25, "steps": [12, 600], "name": "seven"}
    content = json.dumps(files.sealed(value)).encode()
    unnoticed = 0
    for place, bit in itertools.product(range(len(content)), range(8)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        try:
            found = files.parse_json(bytes(damaged))
        except ValueError:
            continue
        unnoticed += 1
        # Nothing that was sealed is another.
        assert {name: found[name] for name in value} == value
    assert unnoticed < 8 * len("digest") + 8 * content.count(b" ")


# write_json, read_json


def test_what_is_written_is_read_back_and_nothing_is_left_beside_it(tmp_path):
    value = {"accuracy": 81.25, "per_class_recall": [None, 50.0], "name": "Käse"}
    files.write_json(tmp_path / "result.json", value)
    assert files.read_json(tmp_path / "result.json") == value
    assert list(contents(tmp_path)) == ["result.json"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, object(), {1, 2}])
def test_what_json_cannot_say_leaves_the_old_file_as_it_was(tmp_path, bad):
    path = tmp_path / "result.json"
    files.write_json(path, {"accuracy": 1.0})
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, {"accuracy": 2.0, "loss": bad})
    assert files.read_json(path) == {"accuracy": 1.0}
    # And the failed attempt does not stand in the way of the next.
    files.write_json(path, {"accuracy": 3.0})
    assert files.read_json(path) == {"accuracy": 3.0}


def test_a_first_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "result.json", {"accuracy": math.nan})
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("content", [b'{"accuracy": 8', b"", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(WorkdirError, match=r"result\.json is damaged.*delete it"):
        files.read_json(tmp_path / "result.json")


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"loss": NaN}', b'{"loss": -Infinity}', b"9" * 5000], ids=len
)
def test_json_that_python_would_choke_on_is_damage(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(WorkdirError, match=r"result\.json is damaged"):
        files.read_json(tmp_path / "result.json")


def test_json_takes_no_more_than_sixty_times_its_size(tmp_path):
    """An empty list of Python's is 56 bytes, and two of JSON."""
    content = b"[" + b",".join([b"[]"] * 300_000) + b"]"
    (tmp_path / "result.json").write_bytes(content)
    tracemalloc.start()
    try:
        files.read_json(tmp_path / "result.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(content)


@pytest.mark.parametrize(
    "change", [{"config": []}, {"config": {"items": {}}}, {"environment": []}, {"config": None}]
)
def test_a_config_of_something_else_is_refused(tmp_path, config, change):
    claim(tmp_path, config)
    written = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", written | change)
    with pytest.raises(WorkdirError, match=r"config\.json was not written by this program"):
        claim(tmp_path, config)


def test_messages_have_nothing_that_a_terminal_would_obey():
    assert str(WorkdirError("class '\x1b[2Jcat'\nis \udc80 \u202e")) == (
        "class '\\x1b[2Jcat'\nis \\udc80 \\u202e"
    )
