"""Benchmarks still run: those that can be made small do, the others say how they are used."""

import functools
import importlib
import re
import sys

import pytest
from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
SHARED = {"measure", "chips", "hlo"}  # modules of others, which are no scripts
NAMES = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - SHARED)
TINY = [
    "--network=tiny_net:TinyNet", "--size=10-1", "--side=8", "--batch=8", "--ratio=1",
    "--samples=1", "--at-once=2",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark in this process, and returns what it prints."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def call(name, *options):
        benchmark = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        benchmark.main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def tiny():
    """A model and an augmentation that compile in a moment, and once for all benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        measure = importlib.import_module("measure")
        patch.setattr("crest_jax.config.OPERATIONS", ("Brightness",))
        patch.setattr(measure, "compile_steps", functools.cache(measure.compile_steps))
        yield


def cells_of(table):
    heading, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]]
                            for line in table.splitlines())  # fmt: skip
    assert set(rule) == {"---"}
    assert rows
    assert all(len(row) == len(heading) for row in rows)
    return [dict(zip(heading, row, strict=True)) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_how_it_is_used(run, name, capsys):
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    assert "--" in capsys.readouterr().out


def test_a_step_is_timed_on_some_of_the_devices(run, tiny):
    (row,) = cells_of(run("step", *TINY, "--devices=1", "--product=64"))
    assert float(row["images/s"]) > 0
    assert row["devices"].startswith("1 x ")


def test_augmentation_is_timed_beside_pillow(run):
    rows = cells_of(run("augment", "--images=8", "--side=8", "--processes=1", "--samples=1"))
    assert [row["view"] for row in rows] == ["weak", "strong"]


def test_gradients_are_held_against_float64(run):
    """A wrong reference would be as far away as a gradient is large."""
    options = ("--size=16-1", "--images=4", "--side=8", "--ways", "float32 of XLA")
    (row,) = cells_of(run("gradient", *options))
    assert float(row["error of the whole"]) < 0.01
    assert float(row["median leaf"]) < 0.01


def test_layers_are_timed_beside_those_of_others(run, monkeypatch):
    cpu = importlib.import_module("cpu")
    monkeypatch.setattr(cpu, "LAYERS", [cpu.Layer(2, 7, 3, 16, 3, 2)])
    monkeypatch.setattr(cpu.measure, "SHORTEST", 0.001)
    said, _, table = run("cpu", "--only=layers", "--samples=1").partition("\n\n")
    assert said.startswith("Cores: ")
    rows = cells_of(table)
    assert {(row["direction"], row["dtype"], row["precision"]) for row in rows} == {
        (direction, *arithmetic) for direction in cpu.DIRECTIONS for arithmetic in cpu.ARITHMETIC
    }
    for row in rows:
        assert "-" not in {row["ours"], row["XLA"], row["TensorFlow"]}


def test_the_last_column_is_of_the_faster_peer(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cpu = importlib.import_module("cpu")
    seconds = {"ours": [0.02, 0.03], "XLA": [0.01, 0.01], "TensorFlow": [0.04, 0.06]}
    cpu.print_row(["layer"], seconds)
    cpu.print_row(["layer"], seconds | {"PyTorch": [0.002, 0.03]})
    assert capsys.readouterr().out.splitlines() == [
        "| layer | 25.0 (20.0) | 10.0 (10.0) | 50.0 (40.0) | - | 0.50 |",
        # Of each turn 10 and 1.
        "| layer | 25.0 (20.0) | 10.0 (10.0) | 50.0 (40.0) | 16.0 (2.0) | 5.50 |",
    ]


@pytest.mark.parametrize("name", ["pipeline", "end_to_end"])
def test_the_loop_is_timed(run, tiny, name):
    (row,) = cells_of(run(name, *TINY, "--steps=4"))
    assert any(re.fullmatch(r"-?\d+(\.\d+)? %", cell) for cell in row.values())


def test_model_flops_are_those_of_the_weights(monkeypatch):
    """A 3 x 3 convolution from 3 to 16 channels in 4 x 4 places, then 256 times 10 weights."""
    from tiny_net import TinyNet

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = importlib.import_module("measure")
    expected = 2 * (4 * 4 * 3 * 3 * 3 * 16 + 256 * 10)
    assert measure.model_flops(TinyNet(10), 8) == expected
