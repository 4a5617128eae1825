"""Read a compiled XLA program: the operations that a device executes, their size and their cost.

XLA describes a compiled program as a protocol buffer, whose definition TensorFlow carries.
"""

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# The operations that exchange data between devices. The second half of an asynchronous pair
# (`all-reduce-done`) costs nothing by itself.
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
)  # fmt: skip
_PRED = 1  # XLA's number of the type of truth values
# Operations that only rename or select what is there.
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier",
)  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding")
# The operations that read a part of their first operand.
_SLICES = ("slice", "dynamic-slice", "gather")
# Where XLA lays out what a TPU keeps within its cores.
_WITHIN_CORES = 1
# Bits of an element by XLA's names of types.
_BITS = {
    "PRED": 8, "S4": 4, "U4": 4, "S8": 8, "U8": 8, "S16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "S32": 32, "U32": 32, "F32": 32, "S64": 64, "U64": 64, "F64": 64, "C64": 64, "C128": 128,
}  # fmt: skip


class Frame(NamedTuple):
    """A line of source code."""

    file: str
    line: int


class Operation(NamedTuple):
    """An operation that a device executes as a whole: a fusion, a kernel or a library's call."""

    name: str
    opcode: str  # such as "fusion" or "all-reduce-start"
    contained: frozenset[str]  # the opcodes of a fusion's parts; of any other operation, its own
    frames: tuple[Frame, ...]  # the source that it comes from, innermost first
    path: str  # JAX's name of the operation, such as "jit(step)/jvp()/add"
    times: int  # how often it is executed in a run of the program
    flops: float  # those of convolutions and matrix products, in one execution
    # Read from and written to the device's main memory in one execution; or exchanged.
    bytes: int
    indices: int  # elements that its gathers and scatters look up one by one, in one execution
    dtype: str  # of its result
    target: str  # the library's function that it calls, where it does
    beside: int  # operations that are executed between its start and its end, if they are apart
    group: int  # devices among which a collective exchanges data; 0 for all, or for any other
    details: dict[str, Any]  # what XLA's backend has noted about it, such as the estimated time

    @property
    def collective(self) -> str:
        """The name of the collective that it is, without "-start"; empty for any other."""
        names = (name.removesuffix("-start") for name in (self.opcode, *sorted(self.contained)))
        return next((name for name in names if name in COLLECTIVES), "")


def operations(serialized: bytes) -> list[Operation]:
    """Return the operations that a device executes, from a serialized `HloModuleProto`."""
    # Imported here, since TensorFlow takes seconds to import.
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto()
    module.ParseFromString(serialized)
    return list(_Module(module).executed(module.entry_computation_id, times=1))


def donated(serialized: bytes) -> int:
    """Return the number of a program's inputs whose memory its results take over."""
    from tensorflow.compiler.xla.service import hlo_pb2

    module = hlo_pb2.HloModuleProto()
    module.ParseFromString(serialized)
    return len(module.input_output_alias.entries)


class _Module:
    """A module whose computations and instructions can be looked up."""

    def __init__(self, module: Any):
        self.computations = {each.id: each for each in module.computations}
        self.instructions = {
            instruction.id: instruction
            for computation in module.computations
            for instruction in computation.instructions
        }
        self.sources = module.stack_frame_index
        # The instructions in the order in which they are executed.
        self.order = [list(each.instruction_ids) for each in module.schedule.sequences.values()]
        self.ends = {
            instruction.operand_ids[0]: instruction.id
            for instruction in self.instructions.values()
            if instruction.opcode.endswith("-done")
        }

    def executed(self, computation: int, *, times: int) -> Iterator[Operation]:
        """Yield the operations of a computation, of all branches where there are several."""
        for instruction in self.computations[computation].instructions:
            opcode, called = instruction.opcode, list(instruction.called_computation_ids)
            if opcode == "while":
                trips = self.trips(instruction)
                for each in called:  # the body and the condition
                    yield from self.executed(each, times=times * trips)
            elif opcode in ("call", "conditional"):
                for each in called:
                    yield from self.executed(each, times=times)
            elif opcode == "async-start":
                for each in called:
                    for operation in self.executed(each, times=times):
                        if operation.collective:
                            yield operation._replace(beside=self.beside(instruction))
            elif not self.is_free(instruction):
                yield self.operation(instruction, times)

    def is_free(self, instruction: Any) -> bool:
        """Return whether an operation takes no time, or only while others are computed.

        The latter are copies between the memories of a device that begin ahead of their use.
        """
        opcode = instruction.opcode
        if opcode.endswith("-start"):
            return opcode.removesuffix("-start") not in COLLECTIVES
        return (
            opcode in _FREE
            or opcode.endswith("-done")
            or instruction.custom_call_target in _FREE_CALLS
        )

    def trips(self, loop: Any) -> int:
        """Return how often a loop's body runs, which counts from 0 by 1, as those of JAX do.

        If the program does not say to which number, the loop counts once, with a warning.
        """
        known = _details(loop).get("known_trip_count")
        if known:
            return int(known["n"])
        condition = next(
            computation
            for each in loop.called_computation_ids
            if (computation := self.computations[each])
            and self.instructions[computation.root_id].shape.element_type == _PRED
        )
        numbers = [
            number
            for each in condition.instructions
            if each.opcode == "constant"
            for kind in (each.literal.s32s, each.literal.u32s, each.literal.s64s, each.literal.u64s)
            for number in kind
        ]
        if len(numbers) != 1:
            warnings.warn(f"{loop.name} is a loop of unknown length: it counts once", stacklevel=2)
            return 1
        return numbers[0]

    def beside(self, instruction: Any) -> int:
        """Return the number of operations between the start and the end of an asynchronous one."""
        start, end = instruction.id, self.ends.get(instruction.id)
        for order in self.order if end is not None else ():
            if start in order:
                between = order[order.index(start) + 1 : order.index(end)]
                return sum(not self.is_free(self.instructions[each]) for each in between)
        return 0

    def operation(self, instruction: Any, times: int) -> Operation:
        parts = list(self.parts(instruction))
        return Operation(
            name=instruction.name,
            opcode=instruction.opcode,
            contained=frozenset(part.opcode for part in parts),
            frames=self.source(instruction),
            path=instruction.metadata.op_name,
            times=times,
            flops=sum(map(self.flops, parts)),
            bytes=self.bytes(instruction),
            indices=sum(map(self.indices, parts)),
            dtype=_dtype(instruction.shape),
            target=instruction.custom_call_target,
            beside=self.beside(instruction),
            group=_group(instruction),
            details=_details(instruction),
        )

    def parts(self, instruction: Any) -> Iterator[Any]:
        """Yield the instructions of a fusion, nested ones too; any other instruction as it is."""
        if instruction.opcode != "fusion":
            yield instruction
            return
        for computation in instruction.called_computation_ids:
            for each in self.computations[computation].instructions:
                yield from self.parts(each)

    def bytes(self, instruction: Any) -> int:
        """Return the bytes that an operation reads and writes, or a collective exchanges."""
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            shapes = [instruction.shape, *self.operands(instruction)]
            return sum(_bytes(each, within_cores=True) for each in shapes)
        return _bytes(instruction.shape) + self.read(instruction)

    def read(self, instruction: Any) -> int:
        """Return the bytes that an operation reads: of what it only slices, those of the slices."""
        if instruction.opcode in _SLICES:
            return _bytes(instruction.shape)
        whole = [_bytes(each) for each in self.operands(instruction)]
        if instruction.opcode != "fusion":
            return sum(whole)
        (computation,) = instruction.called_computation_ids
        parts = self.computations[computation].instructions
        for part in parts:
            if part.opcode == "parameter":
                users = [each for each in parts if part.id in each.operand_ids]
                if users and all(
                    each.opcode in _SLICES and each.operand_ids[0] == part.id for each in users
                ):
                    slices = sum(_bytes(each.shape) for each in users)
                    whole[part.parameter_number] = min(slices, whole[part.parameter_number])
        return sum(whole)

    def operands(self, instruction: Any) -> list[Any]:
        return [self.instructions[each].shape for each in instruction.operand_ids]

    def source(self, instruction: Any, depth: int = 6) -> tuple[Frame, ...]:
        """Return the frames of an operation, or where XLA keeps none, of what it reads."""
        found = self.frames(instruction.metadata)
        for part in self.parts(instruction):
            found = found or self.frames(part.metadata)
        for operand in instruction.operand_ids if depth else ():
            found = found or self.source(self.instructions[operand], depth - 1)
        return found

    def frames(self, metadata: Any) -> tuple[Frame, ...]:
        found, number = [], metadata.stack_frame_id
        while number:
            frame = self.sources.stack_frames[number - 1]
            location = self.sources.file_locations[frame.file_location_id - 1]
            found.append(
                Frame(
                    self.sources.file_names[location.file_name_id - 1],
                    location.line,
                )
            )
            number = frame.parent_frame_id
        return tuple(found)

    def flops(self, instruction: Any) -> float:
        """Return two for each product of a convolution or a matrix product, padding included."""
        if instruction.opcode == "dot":
            summed = instruction.dot_dimension_numbers.lhs_contracting_dimensions
            left = self.operands(instruction)[0].dimensions
            return (
                2.0
                * math.prod(instruction.shape.dimensions)
                * math.prod(left[each] for each in summed)
            )
        if instruction.opcode == "convolution" or "$conv" in instruction.custom_call_target:
            return self.convolution_flops(instruction)
        if "gemm" in instruction.custom_call_target or "matmul" in instruction.custom_call_target:
            left, right = (math.prod(each.dimensions) for each in self.operands(instruction)[:2])
            # For b products of m x k and k x n: b m k, b k n, and one result of m n.
            result = math.prod(_first(instruction.shape).dimensions[-2:])
            return 2.0 * math.sqrt(left * right * result)
        return 0.0

    def convolution_flops(self, instruction: Any) -> float:
        """Return the FLOPs of a convolution, or of one of cuDNN's gradients of it.

        Products with the zeros of padding and dilation do not count.
        """
        result = tuple(_first(instruction.shape).dimensions)
        left, right = (tuple(each.dimensions) for each in self.operands(instruction)[:2])
        images, kernel, features = left, right, result
        if "BackwardInput" in instruction.custom_call_target:
            images, features = result, left
        elif "BackwardFilter" in instruction.custom_call_target:
            kernel, features = result, right
        numbers = instruction.convolution_dimension_numbers
        products = (
            features[numbers.output_batch_dimension]
            * features[numbers.output_feature_dimension]
            * kernel[numbers.kernel_input_feature_dimension]
        )
        for axis, window in enumerate(instruction.window.dimensions):
            products *= _pairs(
                window,
                images[numbers.input_spatial_dimensions[axis]],
                features[numbers.output_spatial_dimensions[axis]],
            )
        return 2.0 * products

    def indices(self, instruction: Any) -> int:
        operands = self.operands(instruction)
        if instruction.opcode == "gather":
            numbers = instruction.gather_dimension_numbers
            return _places(operands[1].dimensions, numbers.index_vector_dim)
        if instruction.opcode == "scatter":
            numbers = instruction.scatter_dimension_numbers
            return _places(operands[len(operands) // 2].dimensions, numbers.index_vector_dim)
        return 0


def _group(instruction: Any) -> int:
    """Return the number of devices of each group of a collective, or 0 if no groups are given."""
    listed = instruction.collective_device_list
    for groups in (instruction.replica_groups, listed.replica_groups):
        if groups:
            return len(groups[0].replica_ids)
    return (
        listed.iota_replica_group_list.num_devices_per_group
        or instruction.iota_collective_device_list.num_devices_per_group
    )


def _pairs(window: Any, inputs: int, outputs: int) -> int:
    """Return the number of pairs of an output and a window's element that read an input."""
    output, element = np.ogrid[:outputs, : window.size]
    place = output * window.stride + element * window.window_dilation - window.padding_low
    within = (place >= 0) & (place < (inputs - 1) * window.base_dilation + 1)
    return int((within & (place % window.base_dilation == 0)).sum())


def _places(shape: Any, index_vector_dim: int) -> int:
    """Return the number of index vectors in an array of indices."""
    return math.prod(size for axis, size in enumerate(shape) if axis != index_vector_dim)


def _bytes(shape: Any, *, within_cores: bool = False) -> int:
    from tensorflow.compiler.xla import xla_data_pb2

    if shape.tuple_shapes:
        return sum(_bytes(each, within_cores=within_cores) for each in shape.tuple_shapes)
    if shape.layout.memory_space == _WITHIN_CORES and not within_cores:
        return 0
    bits = _BITS.get(xla_data_pb2.PrimitiveType.Name(shape.element_type), 0)
    return math.prod(shape.dimensions) * bits // 8


def _first(shape: Any) -> Any:
    """Return a shape, or its first part if it has several."""
    while shape.tuple_shapes:
        shape = shape.tuple_shapes[0]
    return shape


def _dtype(shape: Any) -> str:
    from tensorflow.compiler.xla import xla_data_pb2

    return xla_data_pb2.PrimitiveType.Name(_first(shape).element_type)


def _details(instruction: Any) -> dict[str, Any]:
    """Return the notes of XLA's backend; those that are not JSON are left out."""
    try:
        return json.loads(instruction.backend_config)
    except ValueError:
        return {}
