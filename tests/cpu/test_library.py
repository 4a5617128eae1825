import ctypes
import logging
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import jax
import pytest
from conftest import needs_compiler

from crest_jax.cpu import library


@pytest.fixture
def tmp_path(tmp_path):
    """An empty folder on a disk, where compiled files belong."""
    return Path(tmp_path)


@pytest.fixture
def cache_folder(monkeypatch, tmp_path):
    """The user's cache, in which nothing has been compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "crest_jax"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Makes a shell script the compiler; $out is what it is to make."""

    def become(script: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\nfor out in "$@"; do :; done\n{script}\n')
        path.chmod(0o700)
        monkeypatch.setenv("CXX", str(path))

    return become


@pytest.fixture
def found(caplog):
    """Look for kernels as a new process does; return them and the log messages."""

    def look() -> tuple[library.Kernels | None, list[str]]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "absl"):
            kernels = library.kernels.__wrapped__()
        return kernels, [record.getMessage() for record in caplog.records]

    return look


# Compilers that make nothing of use, and what is said of each.
USELESS = {
    "old": (
        "echo \"g++: error: unrecognized command-line option '-std=c++20'\" >&2; exit 1",
        "g++: error: unrecognized command-line option '-std=c++20'",
    ),
    "old, but for its preprocessor": (
        "case $* in *-E*) ;; *) echo 'base.h:1: error: no concepts' >&2; exit 1 ;; esac",
        "base.h:1: error: no concepts",
    ),
    "silent": ("exit 1", "returned non-zero exit status 1"),
    "of something else": ("echo nothing that can be loaded > $out", "too short"),
    "of nothing": ("", "No such file or directory"),
}


@pytest.mark.parametrize("kind", USELESS)
def test_with_a_useless_compiler_kernels_are_xla_s_and_one_line_says_why(
    cache_folder, compiler, found, kind
):
    script, reason = USELESS[kind]
    compiler(script)
    for _ in range(2):  # and again, with what the first time has left
        kernels, said = found()
        assert kernels is None
        (line,) = said
        assert line.startswith(
            "convolutions and norms are XLA's, and steps take several times as long: "
        )
        assert reason in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "reason"), [("no-such-compiler", "no-such-compiler"), ("'", "quotation"), ("", "No")]
)
def test_where_there_is_no_compiler_one_line_says_so(
    cache_folder, monkeypatch, found, name, reason
):
    monkeypatch.setenv("CXX", name)
    kernels, (line,) = found()
    assert kernels is None
    assert reason in line
    assert not list(cache_folder.parent.parent.iterdir())


def test_kernels_that_are_left_off_are_not_missed(cache_folder, monkeypatch, found):
    monkeypatch.setenv("CXX", "false")
    assert found() == (None, [])
    monkeypatch.setattr(library, "kernels", library.kernels.__wrapped__)
    assert library.describe() == "float32 and bfloat16: XLA"


def test_nothing_is_compiled_for_other_platforms(monkeypatch, found):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(library, "_library", pytest.fail)
    assert found() == (None, [])


# A library is made in a moment that has all handlers. The compiler makes tiles or it does not; the
# operating system refuses them.
SYMBOLS = [
    *(f'extern "C" void* {handler}(void*) {{ return 0; }}' for handler in library._HANDLERS),
    'extern "C" bool made_with_tiles() { return TILES; }',
    'extern "C" bool may_use_tiles() { return false; }',
    'extern "C" int lanes() { return 8; }',
]
SMALL = f"""
case $* in
  *-E*) echo version 1 ;;
  *-shared*) echo '{"".join(SYMBOLS)}' | g++ -shared -fPIC -x c++ - -o $out; echo made >> made ;;
  *) touch $out ;;
esac
"""


@pytest.fixture
def small(cache_folder, compiler, monkeypatch, tmp_path):
    """A compiler of libraries that are made in a moment; returns how many it has made."""
    monkeypatch.chdir(tmp_path)
    # XLA keeps the handlers that it has.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    monkeypatch.setattr(library, "_processor_has_tiles", lambda: False)

    def become(tiles: bool):
        compiler(SMALL.replace("TILES", str(tiles).lower()))
        return lambda: (tmp_path / "made").read_text().count("made")

    return become


needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@needs_gcc
@pytest.mark.parametrize(
    ("made", "reason"), [(True, "the operating system refuses"), (False, "compiler does not know")]
)
def test_tiles_that_cannot_be_used_are_said_where_there_are_some(
    small, found, monkeypatch, made, reason
):
    small(tiles=made)
    monkeypatch.setattr(library, "_processor_has_tiles", lambda: True)
    kernels, (line,) = found()
    assert kernels == library.Kernels(lanes=8, tiles=False, made_with_tiles=made)
    assert "bfloat16 is no faster than float32" in line
    assert f"{reason} the processor's tiles (AMX)" in line
    monkeypatch.setattr(library, "_processor_has_tiles", lambda: False)
    assert found() == (kernels, [])


def test_a_processor_has_tiles_if_the_operating_system_says_so(monkeypatch):
    flags = "flags\t\t: fpu avx512f amx_bf16 avx512_fp16\n"
    for text, has in ((flags, True), (flags.replace("amx_bf16", "amx_bf16x"), False)):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert library._processor_has_tiles() == has
    monkeypatch.setattr(Path, "read_text", mock.Mock(side_effect=FileNotFoundError))
    assert not library._processor_has_tiles()


@needs_gcc
def test_compiled_kernels_are_kept_until_they_are_damaged(cache_folder, small, found):
    made = small(tiles=False)
    assert found() == found()
    assert made() == 1
    (compiled,) = cache_folder.iterdir()
    content = compiled.read_bytes()
    for damaged in (content[:100], content[: len(content) // 2], b"", b"\0" + content[1:]):
        compiled.unlink()  # it is loaded
        compiled.write_bytes(damaged)
        before = made()
        kernels, said = found()
        assert kernels
        assert not said
        assert made() == before + 1
        assert library._library().read_bytes() == content


@needs_gcc
def test_kernels_that_others_can_change_are_made_anew(cache_folder, small, found):
    made = small(tiles=False)
    found()
    (compiled,) = cache_folder.iterdir()
    compiled.chmod(0o666)
    found()
    assert made() == 2
    assert not stat.S_IMODE(compiled.stat().st_mode) & stat.S_IWOTH


@needs_gcc
def test_several_processes_compile_at_the_same_time(cache_folder, small):
    small(tiles=False)
    program = "from crest_jax.cpu import library; print(library._library())"
    with ThreadPoolExecutor() as threads:
        made = list(
            threads.map(
                lambda _: subprocess.check_output([sys.executable, "-c", program]), range(2)
            )
        )
    assert made[0] == made[1]
    ctypes.CDLL(made[0].decode().strip())
    assert len(list(cache_folder.iterdir())) == 1  # nothing is left beside


def test_a_cache_that_others_can_change_is_not_used(cache_folder):
    assert library._cache_folder() == cache_folder
    cache_folder.chmod(0o777)
    private = library._cache_folder()
    assert private != cache_folder
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@needs_compiler
def test_a_library_says_what_the_flags_allow(tmp_path):
    """The flags are those of a processor without tiles and without vectors of 16 float32."""
    flags = [*library._FLAGS, "-O0", "-mno-avx512f", "-mno-amx-tile", "-mno-amx-bf16"]
    try:
        compiled = library.compile_library(tmp_path, "kernels", flags)
    except subprocess.CalledProcessError:
        pytest.skip("the compiler is of another processor")
    compiled = ctypes.CDLL(str(compiled))
    assert compiled.lanes() == 8
    assert not compiled.made_with_tiles() & 0xFF
    assert not compiled.may_use_tiles() & 0xFF
