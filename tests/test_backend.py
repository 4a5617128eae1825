"""Settings of JAX in the environment, and which of them a command accepts."""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from crest_jax import backend, environment
from crest_jax.errors import DeviceError
from crest_jax.program import generation_keys

OTHERS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_debug_nans": True,
    "jax_disable_jit": True,
}


def drawn(config):
    """Return the keys of a generation, and numbers drawn with them."""
    first, second = generation_keys(config, 1)
    shuffled = jax.random.permutation(first, 10)
    uniform = jax.random.uniform(second, (3, 5))
    return jax.random.key_data(first), shuffled, uniform, jnp.arange(3) * jnp.ones(3)


@pytest.fixture
def others():
    """Settings of JAX that somebody has for other work."""
    ours = {name: getattr(jax.config, name) for name in OTHERS}
    yield lambda: [jax.config.update(*each) for each in OTHERS.items()]
    for each in ours.items():
        jax.config.update(*each)


def test_random_numbers_and_types_are_the_same_whatever_the_environment(
    tiny_config, others, caplog
):
    config = tiny_config("")
    backend.settle()
    before = drawn(config)
    others()
    with caplog.at_level(logging.WARNING, "absl"):
        backend.settle()
    for ours, theirs in zip(before, drawn(config), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("left aside")
    assert all(f"{name.upper()}={value} (now " in said for name, value in OTHERS.items())


def test_nothing_is_said_where_nothing_is_changed(caplog):
    backend.settle()
    with caplog.at_level(logging.WARNING, "absl"):
        backend.settle()
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--no_such_flag=1", "Unknown flag in XLA_FLAGS: --no_such_flag=1"),
        ("no_such_file", 'Could not open file "no_such_file"'),
        ("--xla_cpu_enable_fast_math=maybe", "Couldn't interpret value maybe"),
    ],
)
def test_flags_for_which_xla_would_end_the_process_are_an_error(monkeypatch, given, said):
    monkeypatch.setenv("XLA_FLAGS", given)
    with pytest.raises(DeviceError, match=f"^XLA_FLAGS={given} cannot be used .{said}"):
        backend.settle()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cuda", "there are no such devices here that JAX can use"),
        ("foo", "Backend 'foo' is not in the list of known backends"),
    ],
)
def test_devices_that_there_are_not_are_a_line(value, said):
    program = (
        "from crest_jax import command\n"
        "@command.entry\n"
        "def main():\n"
        "    from crest_jax import backend\n"
        "    backend.start()\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line == done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert all(word in line for word in (f"JAX_PLATFORMS={value}", said))
    assert line.endswith("unset it, or set it to cpu, which there is")


@pytest.mark.parametrize("command", ["main", "predict", "report.comparison"])
def test_a_variable_that_jax_cannot_read_is_a_line(command):
    done = subprocess.run(
        [sys.executable, "-m", f"crest_jax.{command}"],
        env={**os.environ, "JAX_ENABLE_X64": "maybe"},
        capture_output=True,
        text=True,
        cwd=str(REPOSITORY),
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: JAX cannot be started (invalid truth value 'maybe' for environment "
        "'JAX_ENABLE_X64'): correct or unset the variable\n"
    )


def test_programs_of_others_are_not_ended_by_an_import(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import crest_jax")
    (tmp_path / "mine" / "tool.py").write_text("print('mine')")
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "mine.tool"],
        env={**os.environ, "JAX_ENABLE_X64": "maybe", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "mine\n"), done.stderr


def test_what_changes_the_last_digits_is_recorded(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert environment.current()["variables"] is None
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert environment.current()["variables"] == (
        "JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS=--xla_cpu_enable_fast_math=true"
    )


@pytest.fixture
def cache_settings():
    names = (
        "jax_compilation_cache_dir", "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for each in before.items():
        jax.config.update(*each)


def test_compiled_steps_are_kept_where_the_user_says_or_in_their_cache(
    cache_settings, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for given, folder in (
        (None, tmp_path / "cache" / "crest_jax" / "compiled"),
        ("~/mine", tmp_path / "mine"),
    ):
        jax.config.update("jax_compilation_cache_dir", given)
        backend.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("given", [None, "/proc/nowhere"])
def test_where_compiled_steps_cannot_be_kept_it_is_said(cache_settings, monkeypatch, caplog, given):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    jax.config.update("jax_compilation_cache_dir", given)
    with caplog.at_level(logging.WARNING, "absl"):
        backend.keep_compiled()
    assert not jax.config.jax_enable_compilation_cache
    (said,) = (record.getMessage() for record in caplog.records)
    assert "compiled steps are not kept" in said
