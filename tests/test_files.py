"""Paths that users give, and the folders that are theirs."""

import os
import pwd

import pytest
from etils.epath import Path

from crest_jax import files
from crest_jax.errors import ConfigError


@pytest.fixture
def homeless(monkeypatch):
    """A user with neither HOME nor an entry in the system's list of users."""

    def nobody(key):
        raise KeyError(key)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_a_tilde_is_the_home_at_the_beginning_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert files.given("~") == Path("/home/of/mine")
    assert files.given("~/runs/x") == Path("/home/of/mine/runs/x")
    assert files.given("runs/~/x~") == Path("runs/~/x~")
    assert files.given("gs://bucket/~x") == Path("gs://bucket/~x")
    root = pwd.getpwuid(0)
    assert files.given(f"~{root.pw_name}/runs") == Path(root.pw_dir) / "runs"


@pytest.mark.parametrize("home", ["", None])
def test_without_home_in_the_environment_the_system_knows(monkeypatch, home):
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    assert files.given("~/x") == Path(pwd.getpwuid(os.getuid()).pw_dir) / "x"


def test_a_file_that_is_called_tilde_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = files.given("./~/x")
    assert found == tmp_path / "~" / "x"
    assert found.expanduser() == found


def test_a_home_that_there_is_not_is_an_error(homeless):
    with pytest.raises(ConfigError, match=r"--workdir=~/x: this user has no home .* or \./~/x"):
        files.given("~/x", "--workdir")
    with pytest.raises(ConfigError, match=r"^~no-one/x: there is no user no-one"):
        files.given("~no-one/x")
    assert files.given("x") == Path("x")


def test_a_path_is_on_a_disk_or_in_a_bucket():
    with pytest.raises(ConfigError, match="--output=http://host/x is neither on a disk nor"):
        files.given("http://host/x", "--output")


def test_names_that_libraries_cannot_write_are_refused(tmp_path):
    files.check_name(tmp_path / "Häher", "--workdir")
    with pytest.raises(ConfigError, match=r"--workdir=.*not UTF-8"):
        files.check_name(tmp_path / os.fsdecode(b"caf\xe9"), "--workdir")


def test_the_cache_is_in_the_home_or_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.user_cache() == tmp_path / "home" / ".cache" / "crest_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.user_cache() == tmp_path / "cache" / "crest_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert files.user_cache() is None


def test_without_a_home_there_is_no_cache(homeless, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.user_cache() is None
    assert not list(tmp_path.iterdir())
