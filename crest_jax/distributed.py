"""Several devices and several hosts: what they share, and how they agree.

Devices: one mesh axis, along which batches are split. `jax.jit(jax.shard_map(...))` is what
`jax.pmap` has been made of since JAX 0.8.

Hosts all run the same program, on a file system that they share. What each does for itself, it does
with its own devices; what is single, the first does; and an error on one is an error on all.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped

from crest_jax import errors
from crest_jax.config import differences
from crest_jax.errors import ConfigError, HostError

_Result = TypeVar("_Result")
AXIS = "batch"
REPLICATED = P()
SPLIT = P(AXIS)


def data_mesh() -> Mesh:
    """Returns a mesh of all devices of all hosts along one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """Returns a mesh of this host's devices alone."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def over_devices(
    function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any, **jit_options: Any
) -> Callable:
    """Maps `function`, written for one device, over the mesh, and compiles it."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return jax.jit(mapped, **jit_options)


def gather(tree: PyTree) -> PyTree:
    """Puts the devices' parts of a batch together on each of them; for use in a mapped function."""
    return jax.tree.map(
        lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True, to="invarying"), tree
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every leaf to every device of the mesh; hosts all give the same."""
    sharding = NamedSharding(mesh, REPLICATED)
    if mesh.is_multi_process:
        # JAX copies keys to devices of other hosts as the numbers that they are made of only.
        return jax.tree.map(partial(_replicate_over_hosts, sharding=sharding), tree)
    return jax.device_put(tree, sharding)


def _replicate_over_hosts(leaf: Array, sharding: NamedSharding) -> Array:
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(np.asarray(leaf), sharding)
    numbers = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))


def split(tree: PyTree, mesh: Mesh, *, axis: int = 0) -> PyTree:
    """Splits an axis of every leaf of this host's part of a batch over the devices."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def to_local(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies what every device of every host has to the devices of a local mesh."""
    if jax.process_count() == 1:
        return tree
    return replicate(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree), mesh)


# Hosts


def initialize(
    coordinator: str | None,
    hosts: int | None,
    host: int | None,
    *,
    find: bool,
    heartbeat_timeout: int,
    join_timeout: int,
) -> None:
    """Joins the other hosts, if there are any.

    Args:
      coordinator: address and port of the first host, the same on all of them.
      hosts: how many.
      host: which this is, from 0.
      find: whether JAX is to find these three, as it can on Cloud TPU, Slurm and Open MPI. It is
        asked to anyway where the environment says that several processes were started together.
      heartbeat_timeout: seconds after which a host that has died ends the others.
      join_timeout: seconds within which all hosts must have been started.

    Raises:
      ConfigError: only some of the three are given, or they are out of range.
      HostError: the others cannot be found or reached.
    """
    given = [value is not None for value in (coordinator, hosts, host)]
    if any(given) and not all(given):
        raise ConfigError("--coordinator, --hosts and --host go together")
    if hosts is not None and host is not None and not 0 <= host < hosts:
        raise ConfigError(f"--host={host} must be between 0 and {hosts - 1}, with --hosts={hosts}")
    if not any(given) and not find and not _started_together(os.environ):
        return
    if coordinator and host:
        _await_coordinator(coordinator, join_timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            hosts,
            host,
            initialization_timeout=join_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            # Within which a host that ends with an error waits for the others, who do not know.
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        if find:
            raise HostError(
                "--find_hosts: JAX finds no other hosts here: give --coordinator, --hosts and "
                "--host instead"
            ) from error
        # Slurm or MPI is there, but has not started this process: it is alone.
    except RuntimeError as error:
        raise HostError(
            f"the other hosts could not be joined within {join_timeout} s: do all of them run? "
            f"({str(error).splitlines()[0]})"
        ) from error


def _started_together(environment: Mapping[str, str]) -> bool:
    """Whether Slurm, Open MPI or Cloud TPU says that it has started several processes."""
    sizes = (environment.get("SLURM_NTASKS"), environment.get("OMPI_COMM_WORLD_SIZE"))
    names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    several = any("," in environment.get(name, "") for name in names)
    return several or any(int(size or 1) > 1 for size in sizes)


def _await_coordinator(coordinator: str, timeout: int) -> None:
    """Waits until the first host listens; JAX would end the process without a word of ours."""
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator} is no address and port, 10.0.0.1:8476")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostError(
                    f"--coordinator={coordinator} could not be reached within {timeout} s "
                    f"({error}): is host 0 up, with the same --coordinator?"
                ) from error
            time.sleep(0.5)


def is_first() -> bool:
    """Whether this host does what is single."""
    return jax.process_index() == 0


def all_gather(
    array: Shaped[np.ndarray, "..."],
) -> Shaped[np.ndarray, "hosts ..."]:
    """Puts the hosts' arrays together, in their order. They have one shape, and any dtype."""
    if jax.process_count() == 1:
        return array[None]
    # As bytes: JAX would make 64-bit integers 32-bit ones.
    sent = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent))
    return np.frombuffer(received.tobytes(), array.dtype).reshape(-1, *array.shape)


def gather_json(value: Any) -> list[Any]:
    """Puts the hosts' values together, in their order."""
    content = json.dumps(value).encode()
    longest = int(all_gather(np.array(len(content))).max())
    gathered = all_gather(np.frombuffer(content.ljust(longest), np.uint8))
    return [json.loads(row.tobytes()) for row in gathered]


def together(do: Callable[[], _Result], *, first_only: bool = False) -> _Result | None:
    """Does something on all hosts, or on the first, and waits until it is done everywhere.

    Args:
      do: what; no host may wait for another in it.
      first_only: whether the other hosts only wait.

    Returns:
      What `do` has returned here; None where it was not called.

    Raises:
      CrestError: on every host, where it was raised on one.
      HostError: where another host had another error. That host has it as it was.
    """
    result: _Result | None = None
    caught: Exception | None = None
    if not first_only or is_first():
        try:
            result = do()
        except Exception as error:
            caught = error
    if jax.process_count() > 1:
        mine = None if caught is None else [type(caught).__name__, str(caught)]
        for host, theirs in enumerate(gather_json(mine)):
            if theirs is not None and caught is None:
                name, message = theirs
                kind = getattr(errors, name, HostError)
                caught = kind(f"on host {host}: {message}")
    if caught is not None:
        raise caught
    return result


def first_says(find: Callable[[], _Result]) -> _Result:
    """What the first host finds, for all; so that they decide alike whatever they would see.

    Args:
      find: called on the first host; what it returns must be fit for JSON.

    Raises:
      CrestError: as `together`.
    """
    return gather_json(together(find, first_only=True))[0]


def check_agreement(value: Mapping[str, Any]) -> None:
    """Makes sure that all hosts say the same.

    Raises:
      HostError: on every host, where one says something else.
    """
    first, *others = gather_json(value)
    for host, theirs in enumerate(others, start=1):
        lines = differences(first, theirs)
        if lines:
            raise HostError(
                f"host {host} disagrees with host 0: {'; '.join(lines)}. Start all hosts with the "
                "same command and version"
            )


def say(text: str) -> None:
    """Prints a line, on the first host."""
    if is_first():
        print(text, flush=True)


def total(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The sum of the hosts' arrays."""
    return all_gather(array).sum(axis=0)
