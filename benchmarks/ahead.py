"""Compile the training step for a TPU or a GPU that is not here, and estimate where its time goes.

python benchmarks/ahead.py --chip=v5e --dtype=bfloat16
python benchmarks/ahead.py --chip=h100 --devices=8 --set weak_forward=separate

The step is the one that a run of the experiment compiles, and so is the pass that scores images
(`--only scoring`), which each host computes with its own devices. Nothing is executed. Times are
estimates: those of XLA's cost model for each operation where it has one (cycles on a TPU,
microseconds on a GPU), and otherwise the larger of the operation's FLOPs at the chip's peak and its
bytes at the memory's bandwidth. On a TPU, where XLA estimates no gathers and scatters, each index
that they look up counts as 10 cycles. A collective among n devices counts as log2(n) exchanges,
each of 3 us on TPUs and 6 us on GPUs, and its bytes over the link. Operations are taken to follow
each other without gaps. docs/speed.md says how far to trust this.

Needs the extra `ahead-tpu` or `ahead-gpu`. A TPU program takes minutes to compile.
"""

import argparse
import ast
import functools
import json
import math
import operator
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chips
import hlo
from chips import CHIPS, Chip
from hlo import Operation

# The categories of time, in the order in which they are printed.
CATEGORIES = (
    "convolutions", "normalisation", "augmentation", "optimiser", "collectives", "other",
)  # fmt: skip
# The folders and files that a category's operations come from.
_SOURCES = {
    "augmentation": ("crest_jax/augment/",),
    "normalisation": ("crest_jax/models/norm.py",),
    "optimiser": ("crest_jax/optimizers.py", "/optax/_src/"),
}
# On a TPU, in cycles: a gather's or scatter's loop for each index, of which 8 to 13 were counted in
# the final instructions of v5e programs.
_CYCLES_OF_INDEX = 10
# In seconds: the assumed time in which two devices exchange a few bytes.
_LATENCY = {"tpu": 3e-6, "gpu": 6e-6}
# The number of examples whose pseudo-labels DARP keeps: those of CIFAR-10-LT at gamma = 100.
_UNLABELED = 12_406
# The classes of data sets of the paper.
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet2012": 127}
# The operations that exchange data with the host.
_HOST = ("infeed", "outfeed", "send", "recv")


class Program(NamedTuple):
    """A compiled program for devices that are not here."""

    operations: list[Operation]
    memory: int  # bytes that it takes on a device
    donated: int  # number of inputs whose memory the results take over
    state: int  # number of arrays of the training state; 0 for a program without one
    compilation: float  # in seconds

    @property
    def host_calls(self) -> list[str]:
        """The operations in which a device waits for the host."""
        return [
            each.name
            for each in self.operations
            if each.opcode in _HOST or "callback" in each.target.lower()
        ]

    @property
    def collectives(self) -> Counter[str]:
        """How often each collective is executed."""
        found: Counter[str] = Counter()
        for each in self.operations:
            if each.collective:
                found[each.collective] += each.times
        return found

    @property
    def asynchronous(self) -> int:
        """How many of the collectives are executed beside other operations."""
        return sum(each.times for each in self.operations if each.collective and each.beside)


class Setting(NamedTuple):
    """An experiment on devices that are not here."""

    config: Any  # a validated ConfigDict
    chip: Chip
    devices: int
    image_shape: tuple[int, int, int]
    classes: int


def compile_step(setting: Setting) -> Program:
    """Compile a training step, as a run does for a step that is sent to the devices alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crest_jax import program
    from crest_jax.mesh import mesh_of
    from crest_jax.train_step import Constants, DeviceBatch, in_a_row

    config, classes, shape = setting.config, setting.classes, setting.image_shape
    devices = chips.devices(setting.chip, setting.devices)
    mesh = mesh_of(devices, group=config.sync_batch_norm_group)
    model = program.model_of(config, classes, axis_name=program.batch_norm_axis(config))
    create = program.creator(config, model, shape, classes, _UNLABELED)
    state = jax.eval_shape(create, jax.random.key(0))
    labeled, unlabeled = config.batch_size, config.batch_size * config.unlabeled_ratio
    like = jax.ShapeDtypeStruct
    batch = DeviceBatch(
        like((1, labeled, *shape), np.uint8),
        like((1, labeled), np.int32),
        like((1, unlabeled, *shape), np.uint8),
        like((1, unlabeled), np.int32),
    )
    constants = jax.eval_shape(
        lambda: Constants(jax.random.key(0), jnp.float32(1), jnp.ones(classes), jnp.ones(classes))
    )
    arguments = (
        _on(mesh, state), _on(mesh, batch, split_axis=1), _on(mesh, constants)
    )  # fmt: skip
    step = in_a_row(program.train_step_of(config, model, mesh))
    return _compiled(lambda: step.lower(*arguments), state=len(jax.tree.leaves(state)))


def compile_scoring(setting: Setting) -> Program:
    """Compile the pass that evaluates and scores a batch of images, for the devices of a host."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crest_jax import evaluate, program
    from crest_jax.mesh import mesh_of

    config, classes = setting.config, setting.classes
    devices = chips.devices(setting.chip, setting.devices)
    mesh = mesh_of([each for each in devices if each.process_index == devices[0].process_index])
    model = program.model_of(config, classes, axis_name=None)
    images = jax.ShapeDtypeStruct((config.eval_batch_size, *setting.image_shape), np.uint8)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *setting.image_shape)), train=True)
    )
    arguments = (
        _on(mesh, images, split_axis=0),
        *(_on(mesh, variables.get(name, {})) for name in ("params", "batch_stats")),
        _on(mesh, jax.ShapeDtypeStruct((classes,), np.float32)),
    )
    predict = evaluate.mapped_predict(model, mesh)
    return _compiled(lambda: predict.lower(*arguments), state=0)


def _on(mesh: Any, tree: Any, *, split_axis: int | None = None) -> Any:
    """Return shapes that are laid out on a mesh, replicated or split along an axis."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from crest_jax.mesh import AXES

    spec = PartitionSpec() if split_axis is None else PartitionSpec(*[None] * split_axis, AXES)
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _compiled(lower: Callable[[], Any], *, state: int) -> Program:
    began = time.perf_counter()
    compiled = lower().compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    (module,) = compiled.runtime_executable().hlo_modules()
    serialized = module.as_serialized_hlo_module_proto()
    return Program(
        hlo.operations(serialized),
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        hlo.donated(serialized),
        state,
        seconds,
    )


def category(operation: Operation) -> str:
    """Return the category that an operation's time belongs to."""
    if operation.collective:
        return "collectives"
    for name, sources in _SOURCES.items():
        if any(source in frame.file for frame in operation.frames for source in sources):
            # Operations before and behind a convolution are fused into it.
            return "convolutions" if operation.flops and name != "augmentation" else name
    return "convolutions" if operation.flops else "other"


def seconds(operation: Operation, setting: Setting) -> float:
    """Estimate the seconds of one execution of an operation."""
    chip = setting.chip
    details, by_index = operation.details, 0.0
    if operation.collective:
        # XLA's estimate for a GPU grows with every byte, as if it sent 17 to 42 MB a second, and
        # falls with the number of devices.
        exchanges = math.ceil(math.log2(operation.group or setting.devices))
        return exchanges * _LATENCY[chip.platform] + operation.bytes / chip.link
    if chip.platform == "tpu":
        by_index = operation.indices * _CYCLES_OF_INDEX / chip.clock
        cycles = int(details.get("window_config", {}).get("estimated_cycles", 0))
        if cycles > 0:
            return cycles / chip.clock + by_index
    elif details.get("reification_cost"):
        return details["reification_cost"][0]["exec_time_us"] / 1e6
    peak = chip.peak(setting.config.dtype, setting.config.precision)
    return max(operation.flops / peak, operation.bytes / chip.bandwidth) + by_index


def where(operation: Operation) -> str:
    """Return the line of the package's source that an operation comes from."""
    import crest_jax

    package = Path(crest_jax.__file__).parent
    for frame in operation.frames:
        if Path(frame.file).is_relative_to(package):
            return f"{Path(frame.file).relative_to(package)}:{frame.line}"
    return operation.path.rpartition("/")[2]


class Cost(NamedTuple):
    """The estimated cost of the operations of a category."""

    milliseconds: float = 0.0
    operations: int = 0
    flops: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(*map(operator.add, self, other))


def costs(program: Program, setting: Setting) -> dict[str, Cost]:
    """Return the estimated cost of each category."""
    found = dict.fromkeys(CATEGORIES, Cost())
    for each in program.operations:
        times = each.times
        found[category(each)] += Cost(
            1e3 * times * seconds(each, setting), times, times * each.flops, times * each.bytes
        )
    return found


def table(program: Program, setting: Setting) -> str:
    """Return the estimate by category as a Markdown table."""
    of_categories = costs(program, setting)
    whole = functools.reduce(operator.add, of_categories.values())
    rows = ["| | ms | share | operations | GFLOPs | GB |", "|---|---|---|---|---|---|"]
    for name, cost in {**of_categories, "**all**": whole}.items():
        rows.append(
            f"| {name} | {cost.milliseconds:.2f} | {cost.milliseconds / whole.milliseconds:.0%} "
            f"| {cost.operations} | {cost.flops / 1e9:.0f} | {cost.bytes / 1e9:.2f} |"
        )
    return "\n".join(rows)


def as_json(program: Program, setting: Setting) -> dict[str, Any]:
    """Return the estimate of a program in numbers."""
    return {
        "memory": program.memory,
        "collectives": dict(program.collectives),
        "asynchronous": program.asynchronous,
        "summed": sorted({each.dtype for each in program.operations if each.collective}),
        "host_calls": program.host_calls,
        "donated": program.donated,
        "state": program.state,
        "costs": {name: cost._asdict() for name, cost in costs(program, setting).items()},
    }


def costliest(program: Program, setting: Setting, number: int) -> str:
    """Return the operations that take longest as a Markdown table.

    Times of operations of the same name from the same line are added.
    """
    times: defaultdict[tuple[str, str], float] = defaultdict(float)
    counts = Counter[tuple[str, str]]()
    for each in program.operations:
        key = (category(each), f"{where(each)} | {each.path.rpartition('/')[2]}")
        times[key] += each.times * seconds(each, setting)
        counts[key] += each.times
    longest = sorted(times, key=times.__getitem__, reverse=True)[:number]
    rows = ["| ms | operations | category | source | operation |", "|---|---|---|---|---|"]
    rows += [f"| {1e3 * times[key]:.3f} | {counts[key]} | {key[0]} | {key[1]} |" for key in longest]
    return "\n".join(rows)


def summary(program: Program, setting: Setting) -> str:
    """Return what a program takes on a device, apart from time."""
    collectives = ", ".join(f"{n} {name}" for name, n in program.collectives.items()) or "none"
    if program.collectives:
        collectives += f", of which {program.asynchronous} beside other operations"
    lines = [
        f"compiled in {program.compilation:.0f} s",
        f"memory: {program.memory / 1e9:.2f} GB of {setting.chip.memory / 1e9:.0f}",
        f"collectives: {collectives}",
        f"calls of the host: {', '.join(program.host_calls) or 'none'}",
    ]
    if program.state:
        lines.append(f"donated: {program.donated} of {program.state} arrays of the state")
    return "\n".join(lines)


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Return the experiment that the options name, with its config validated."""
    import crest_jax
    from crest_jax import validation
    from crest_jax.config import by_name
    from crest_jax.errors import ConfigError

    config = crest_jax.experiment(arguments.experiment)
    config.dtype, config.precision = arguments.dtype, arguments.precision
    for pair in arguments.set:
        name, _, text = pair.partition("=")
        if name not in by_name(config):
            raise SystemExit(f"--set {pair}: {arguments.experiment} has no field {name}")
        try:
            config.update_from_flattened_dict({name: _value(text)})
        except (TypeError, ValueError) as error:
            raise SystemExit(f"--set {pair}: {error}") from error
    try:
        validation.validate(config, devices=arguments.devices)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    classes = arguments.classes or _CLASSES.get(config.data.name)
    if classes is None:
        raise SystemExit(f"--classes: give the number of classes of {config.data.name}")
    side = config.data.image_size or arguments.side or 32
    if arguments.side not in (None, side):
        raise SystemExit(
            f"--side={arguments.side}: {arguments.experiment} has images of {side} pixels; "
            f"give --set data.image_size={arguments.side} instead"
        )
    shape = side, side, arguments.channels
    return Setting(config, CHIPS[arguments.chip], arguments.devices, shape, classes)


def _value(text: str) -> Any:
    """Return what a text says in Python, or the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main(argv: Sequence[str] | None = None) -> None:
    """Print the estimates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=CHIPS, default="v5e")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--experiment", default="cifar10_lt", help="a name or file, with arguments")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--precision", default="default", help="default, high or highest")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other fields of the config"
    )
    parser.add_argument(
        "--side", type=int, help="of the images, in pixels; by default the experiment's, or 32"
    )
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, help="by default those of known data sets")
    parser.add_argument("--only", choices=("step", "scoring"), help="one of the two programs")
    parser.add_argument("--costliest", type=int, default=15, help="number of operations to list")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON instead")
    parser.add_argument("--flags", default="", help='further options of XLA: --flags="--a=1 --b=2"')
    arguments = parser.parse_args(argv)
    chips.prepare(CHIPS[arguments.chip], arguments.flags)
    setting = setting_of(arguments)
    programs = {
        name: compile_it
        for name, compile_it in (("step", compile_step), ("scoring", compile_scoring))
        if arguments.only in (None, name)
    }
    if arguments.json:
        found = {
            name: as_json(compile_it(setting), setting) for name, compile_it in programs.items()
        }
        print(json.dumps(found))
        return
    config = setting.config
    print(
        f"{arguments.experiment}: {config.model.name}-{config.model.depth}-{config.model.width}, "
        f"images of {' x '.join(map(str, setting.image_shape))}, {setting.classes} classes, "
        f"{config.dtype}, precision={config.precision}, on {arguments.devices} x {arguments.chip}"
        f"{''.join(f', {pair}' for pair in arguments.set)}"
    )
    for name, compile_it in programs.items():
        program = compile_it(setting)
        print(f"\n## The {name}\n\n{summary(program, setting)}\n")
        print(table(program, setting), "\n", sep="")
        print(costliest(program, setting, arguments.costliest), flush=True)


if __name__ == "__main__":
    main()
