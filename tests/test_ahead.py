"""Estimates from compiled programs: what is read from them, and how times add up.

Programs are compiled for this CPU here; `make test-ahead` compiles for chips that are not here.
"""

import importlib
import math
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from jax import lax
from jax.sharding import PartitionSpec

from crest_jax.mesh import AXES, WITHIN_GROUP, mesh_of, over_devices


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


@pytest.mark.parametrize("batch", [(), (5,)])
def test_flops_of_a_library_s_product(hlo, batch):
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto(entry_computation_id=1)
    computation = module.computations.add(id=1)
    for number, shape in enumerate([(*batch, 2, 3), (*batch, 3, 4), (*batch, 2, 4)]):
        made = computation.instructions.add(id=number, opcode="parameter")
        made.shape.element_type = 11  # float32
        made.shape.dimensions.extend(shape)
    made.opcode, made.custom_call_target = "custom-call", "__cublas$gemm"
    made.operand_ids.extend([0, 1])
    (product,) = hlo.operations(module.SerializeToString())
    assert product.flops == pytest.approx(math.prod(batch) * 2 * 2 * 3 * 4)


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
            ("parameter", []), ("all-reduce-start", [0]), ("tuple", [0]), ("add", [0]),
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
    program = as_written(lambda a, b: a @ b, jnp.zeros((4, 8)), jnp.zeros((8, 2)))
    (product,) = [each for each in hlo.operations(program) if each.flops]
    assert product.bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2)


def test_of_what_is_only_sliced_the_slices_count(hlo):
    def rows(table):
        return lax.scan(lambda total, row: (total + row, None), jnp.zeros(50), table)[0]

    operations = hlo.operations(serialized(rows, jnp.zeros((1000, 50))))
    read = sum(each.bytes * each.times for each in operations)
    assert 4 * 1000 * 50 < read < 10 * 4 * 1000 * 50


def test_what_a_tpu_keeps_within_its_cores_counts_only_where_it_is_exchanged(hlo):
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto(entry_computation_id=1)
    computation = module.computations.add(id=1)
    for number, opcode in enumerate(["parameter", "copy", "all-reduce"]):
        made = computation.instructions.add(id=number, opcode=opcode)
        made.operand_ids.extend([0] if number else [])
        made.shape.element_type = 11  # float32
        made.shape.dimensions.append(100)
        made.shape.layout.memory_space = number % 2  # the copy is in the cores
    computation.instructions[2].operand_ids[0] = 1
    copy, exchanged = hlo.operations(module.SerializeToString())
    assert (copy.bytes, exchanged.bytes) == (400, 800)


def test_groups_of_a_collective(hlo):
    mesh = mesh_of(jax.devices()[:8], group=2)
    for axes, left, group in ((AXES, (), 8), (WITHIN_GROUP, AXES[:1], 2)):
        summed = over_devices(
            lambda x, axes=axes: lax.psum(x, axes), mesh,
            in_specs=PartitionSpec(AXES), out_specs=PartitionSpec(*left),
        )  # fmt: skip
        operations = hlo.operations(serialized(summed, jnp.ones(8)))
        assert {each.group for each in operations if each.collective} == {group}


def counted_loop(dtype):
    """A program of six matrix products in a loop that counts in this type."""

    def loop(x):
        def body(state):
            count, x = state
            return count + dtype(1), x @ x

        return lax.while_loop(lambda state: state[0] < dtype(6), body, (dtype(0), x))[1]

    return as_written(loop, jnp.zeros((4, 4)))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32])
def test_trips_are_read_from_a_loop_s_condition(hlo, dtype):
    operations = hlo.operations(counted_loop(dtype))
    assert {each.times for each in operations if each.flops} == {6}


def test_a_loop_of_unknown_length_counts_once_with_a_warning(hlo):
    with pytest.warns(UserWarning, match="is a loop of unknown length: it counts once"):
        operations = hlo.operations(counted_loop(jnp.float32))
    assert {each.times for each in operations if each.flops} == {1}


def test_calls_of_the_host_are_found(ahead):
    def step(x):
        return jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct((), x.dtype), x) + 1

    def calls(function):
        return ahead._compiled(lambda: jax.jit(function).lower(jnp.float32(0)), state=0).host_calls

    assert calls(step)
    assert not calls(lambda x: x + 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "sync_batch_norm=true"], "sync_batch_norm"),
        (["--set", "batch_size=x"], "batch_size"),
        (["--set", "batches=1"], "no field batches"),
        (["--set", "sync_batch_norm_group=3"], "must be a divisor of the 8 devices"),
        (["--experiment=digits_lt"], "--classes"),
        (["--experiment=imagenet127", "--side=128"], "give --set data.image_size=128"),
    ],
)
def test_wrong_options_are_errors(ahead, monkeypatch, options, expected):
    monkeypatch.setattr(ahead.chips, "prepare", lambda chip, flags: None)
    with pytest.raises(SystemExit, match=expected):
        ahead.main(["--devices=8", *options])


def test_options_set_fields_of_the_config(ahead):
    pairs = ["sync_batch_norm=False", "optimizer.drops=(10, 20)", "weak_forward=separate"]
    given = types.SimpleNamespace(
        experiment="cifar100_lt", dtype="bfloat16", precision="default", set=pairs, devices=8,
        chip="v5e", side=32, channels=3, classes=None,
    )  # fmt: skip
    setting = ahead.setting_of(given)
    config = setting.config
    assert config.sync_batch_norm is False
    assert tuple(config.optimizer.drops) == (10, 20)
    assert (config.weak_forward, config.dtype, setting.classes) == ("separate", "bfloat16", 100)


def test_scoring_is_compiled_for_the_devices_of_a_host(ahead, monkeypatch):
    import crest_jax

    def stop(devices):
        raise InterruptedError([device.id for device in devices])

    # Eight devices of two hosts, as those of a v5e.
    devices = [types.SimpleNamespace(id=each, process_index=each // 2 % 2) for each in range(8)]
    monkeypatch.setattr(ahead.chips, "devices", lambda chip, count: devices)
    monkeypatch.setattr("crest_jax.mesh.mesh_of", stop)
    config = crest_jax.experiment("cifar10_lt")
    setting = ahead.Setting(config, ahead.CHIPS["v5e"], 8, (32, 32, 3), 10)
    with pytest.raises(InterruptedError, match=r"\[0, 1, 4, 5\]"):
        ahead.compile_scoring(setting)


def test_the_place_of_an_operation_is_in_the_package(ahead, hlo):
    import crest_jax

    package = Path(crest_jax.__file__).parent
    # A clone's folder has the package's name too, and may have an environment in it.
    frames = ("/x/crest_jax/.venv/optax/update.py", str(package / "models" / "norm.py"))
    given = operation(hlo)._replace(frames=tuple(hlo.Frame(file, 7) for file in frames))
    assert ahead.where(given) == "models/norm.py:7"
    given = given._replace(frames=given.frames[:1], path="jit(step)/add")
    assert ahead.where(given) == "add"


def operation(hlo, opcode="fusion", *, file="", details=None, **known):
    frames = (hlo.Frame(file, 7), hlo.Frame("/x/crest_jax/train_step.py", 9))
    given = {
        "name": "it", "opcode": opcode, "contained": frozenset(), "frames": frames, "path": "",
        "times": 1, "flops": 0.0, "bytes": 0, "indices": 0, "dtype": "F32",
        "target": "", "beside": 0, "group": 0, "details": details or {},
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
        ("/x/site-packages/optax/losses/_classification.py", {}, "other"),
        ("/x/crest_jax/models/norm.py", {"opcode": "all-reduce-start"}, "collectives"),
        ("/x/crest_jax/mesh.py", {"contained": frozenset({"all-reduce", "add"})}, "collectives"),
        ("/x/crest_jax/algorithms/fixmatch.py", {}, "other"),
    ],
)
def test_categories(ahead, hlo, file, known, expected):
    assert ahead.category(operation(hlo, file=file, **known)) == expected


def test_seconds_are_those_of_the_cost_model_or_of_the_roofline(ahead, hlo):
    chips = importlib.import_module("chips")

    def seconds(chip, **known):
        config = types.SimpleNamespace(dtype="bfloat16", precision="default")
        setting = ahead.Setting(config, chips.CHIPS[chip], 8, (32, 32, 3), 10)
        return ahead.seconds(operation(hlo, **known), setting)

    window = {"window_config": {"estimated_cycles": "3000"}}
    assert seconds("v5e", details=window) == pytest.approx(3000 / 1.5e9)
    assert seconds("v5e", indices=600) == pytest.approx(6000 / 1.5e9)
    known = {"reification_cost": [{"exec_time_us": 5.0}]}
    assert seconds("h100", details=known) == pytest.approx(5e-6)
    assert seconds("h100", flops=989e9) == pytest.approx(1e-3)
    assert seconds("h100", bytes=6_700_000_000) == pytest.approx(2e-3)
    for group, exchanges in ((0, 3), (8, 3), (4, 2), (2, 1)):
        found = seconds("h100", opcode="all-reduce-start", bytes=450_000, group=group)
        assert np.isclose(found, exchanges * 6e-6 + 1e-6)


@pytest.mark.parametrize(("chip", "name"), [("v5e", "LIBTPU_INIT_ARGS"), ("h100", "XLA_FLAGS")])
def test_options_of_xla_are_added_to_those_of_the_environment(ahead, monkeypatch, chip, name):
    chips = importlib.import_module("chips")
    environment = {name: "--mine=1"}
    monkeypatch.setattr(chips.os, "environ", environment)
    chips.prepare(chips.CHIPS[chip], "--a=1 --b=2")
    assert environment[name].startswith("--mine=1 ")
    assert environment[name].endswith(" --a=1 --b=2")
    assert environment["JAX_PLATFORMS"] == "cpu"
