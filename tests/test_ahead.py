"""Estimates from compiled programs: what is read from them, and how times add up.

Programs are compiled for this CPU here; `make test-ahead` compiles for chips that are not here.
"""

import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from jax import lax


@pytest.fixture(scope="module")
def ahead():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        yield importlib.import_module("ahead")


@pytest.fixture(scope="module")
def hlo(ahead):
    return importlib.import_module("hlo")


def serialized(function, *arguments, **options):
    compiled = jax.jit(function, **options).lower(*arguments).compile()
    (module,) = compiled.runtime_executable().hlo_modules()
    return module.as_serialized_hlo_module_proto()


def as_written(function, *arguments):
    """The program before a compiler has changed it."""
    program = jax.jit(function).lower(*arguments).compiler_ir(dialect="hlo")
    return program.as_serialized_hlo_module_proto()


def convolution(images, kernel, stride=1, padding=0):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_flops_of_a_convolution_are_two_for_each_product_with_a_pixel(hlo, stride, padding):
    images, kernel = jnp.zeros((5, 8, 8, 3)), jnp.zeros((3, 3, 3, 7))
    program = serialized(lambda *given: convolution(*given, stride, padding), images, kernel)
    # By hand: along a side, each of the window's 3 places counts where it is inside the image.
    starts = range(-padding, 8 + padding - 2, stride)
    inside = sum(0 <= start + place < 8 for start in starts for place in range(3))
    found = sum(each.flops * each.times for each in hlo.operations(program))
    assert found == 2 * 5 * inside**2 * 3 * 7


def test_flops_of_a_product_and_of_a_loop(hlo):
    def loop(x, weights):
        return lax.scan(lambda x, _: (jnp.tanh(x @ weights), None), x, None, length=6)[0]

    operations = hlo.operations(serialized(loop, jnp.zeros((4, 10)), jnp.zeros((10, 10))))
    assert sum(each.flops * each.times for each in operations) == 6 * 2 * 4 * 10 * 10
    assert {each.times for each in operations if each.flops} == {6}


def test_indices_of_gathers_and_scatters(hlo):
    def look_up(table, rows):
        return table[rows].sum()

    def count(rows):
        return jnp.zeros(100, jnp.int32).at[rows].add(1)

    rows = jnp.zeros((7, 11), jnp.int32)
    for function, arguments in ((look_up, (jnp.zeros((50, 3)), rows)), (count, (rows,))):
        operations = hlo.operations(as_written(function, *arguments))
        assert sum(each.indices for each in operations) == 77


def test_donated_inputs_are_counted(hlo):
    def step(state, batch):
        return {name: value + batch for name, value in state.items()}

    state = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    assert hlo.donated(serialized(step, state, jnp.ones(3), donate_argnums=0)) == 2
    assert hlo.donated(serialized(step, state, jnp.ones(3))) == 0


def test_operations_beside_a_collective_are_those_between_its_start_and_end(hlo):
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto(entry_computation_id=1)
    computation = module.computations.add(id=1)
    for number, (opcode, operands) in enumerate(
        [
            ("parameter", []), ("all-reduce-start", [0]), ("tuple", [0]), ("fusion", [0]),
            ("copy", [0]), ("all-reduce-done", [1]), ("all-reduce", [5]),
        ]
    ):  # fmt: skip
        computation.instructions.add(id=number, opcode=opcode, operand_ids=operands)
    for order, beside in (([0, 1, 2, 3, 5, 4, 6], 1), ([0, 3, 4, 1, 5, 6], 0)):
        module.schedule.sequences[1].ClearField("instruction_ids")
        module.schedule.sequences[1].instruction_ids.extend(order)
        operations = hlo.operations(module.SerializeToString())
        assert [each.beside for each in operations if each.collective] == [beside, 0]


def test_bytes_are_those_of_operands_and_results(hlo):
    program = serialized(lambda a, b: a @ b, jnp.zeros((4, 8), jnp.bfloat16), jnp.zeros((8, 2)))
    (product,) = [each for each in hlo.operations(program) if each.flops]
    assert product.shape == (4, 2)
    assert product.bytes >= 4 * 8 * 2 + 8 * 2 * 4 + 4 * 2 * 4


def operation(hlo, opcode="fusion", *, file="", details=None, **known):
    frames = (hlo.Frame(file, 7, "f"), hlo.Frame("/x/crest_jax/train_step.py", 9, "step"))
    given = {
        "name": "it", "opcode": opcode, "contained": frozenset(), "frames": frames, "path": "",
        "times": 1, "flops": 0.0, "bytes": 0, "shape": (), "indices": 0, "dtype": "F32",
        "target": "", "beside": 0, "details": details or {},
    }  # fmt: skip
    return hlo.Operation(**given | known)


@pytest.mark.parametrize(
    ("file", "known", "expected"),
    [
        ("/x/crest_jax/augment/lookup.py", {}, "augmentation"),
        ("/x/crest_jax/augment/indexing.py", {"flops": 8.0}, "augmentation"),
        ("/x/crest_jax/models/norm.py", {}, "normalisation"),
        ("/x/crest_jax/models/norm.py", {"flops": 8.0}, "convolutions"),
        ("/x/site-packages/optax/_src/update.py", {}, "optimiser"),
        ("/x/crest_jax/models/norm.py", {"opcode": "all-reduce-start"}, "collectives"),
        ("/x/crest_jax/algorithms/fixmatch.py", {}, "other"),
    ],
)
def test_categories(ahead, hlo, file, known, expected):
    assert ahead.category(operation(hlo, file=file, **known)) == expected


def test_seconds_are_those_of_the_cost_model_or_of_the_roofline(ahead, hlo):
    chips = importlib.import_module("chips")

    def seconds(chip, **known):
        config = types.SimpleNamespace(dtype="bfloat16", precision="default")
        setting = ahead.Setting(config, chips.CHIPS[chip], 1, (32, 32, 3), 10)
        return ahead.seconds(operation(hlo, **known), setting)

    window = {"window_config": {"estimated_cycles": "3000"}}
    assert seconds("v5e", details=window) == pytest.approx(3000 / 1.5e9)
    assert seconds("v5e", indices=600) == pytest.approx(6000 / 1.5e9)
    known = {"reification_cost": [{"exec_time_us": 5.0}]}
    assert seconds("h100", details=known) == pytest.approx(5e-6)
    assert seconds("h100", flops=989e9) == pytest.approx(1e-3)
    assert seconds("h100", bytes=6_700_000_000) == pytest.approx(2e-3)
    assert np.isclose(seconds("h100", opcode="all-reduce-start", bytes=450_000), 21e-6)


@pytest.mark.parametrize(("chip", "name"), [("v5e", "LIBTPU_INIT_ARGS"), ("h100", "XLA_FLAGS")])
def test_options_of_xla_are_added_to_those_of_the_environment(ahead, monkeypatch, chip, name):
    chips = importlib.import_module("chips")
    environment = {name: "--mine=1"}
    monkeypatch.setattr(chips.os, "environ", environment)
    chips.prepare(chips.CHIPS[chip], "--a=1 --b=2")
    assert environment[name].startswith("--mine=1 ")
    assert environment[name].endswith(" --a=1 --b=2")
    assert environment["JAX_PLATFORMS"] == "cpu"
