"""Work on several hosts, and how they stay in agreement.

All hosts run the same program, on a shared file system. Each host uses only its own devices for the
work that it does by itself; work that must be done only once is done by the first host; and an
error on one host is raised on all.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from crest_jax import errors
from crest_jax.differences import differences
from crest_jax.errors import ConfigError, HostError

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def initialize(
    coordinator: str | None,
    hosts: int | None,
    host: int | None,
    *,
    find: bool,
    heartbeat_timeout: int,
    join_timeout: int,
) -> None:
    """Join the other hosts, if there are any.

    Args:
      coordinator: address and port of the first host, the same on all hosts.
      hosts: the number of hosts.
      host: the index of this host, from 0.
      find: whether JAX is to find these three values, as it can on Cloud TPU, Slurm and Open MPI.
        It does so in any case where the environment says that several processes were started
        together.
      heartbeat_timeout: seconds after which a host that has died ends the others.
      join_timeout: seconds within which all hosts must have been started.

    Raises:
      ConfigError: Only some of the three values are given, or they are out of range.
      HostError: The other hosts cannot be found or reached.
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
            # How long a host that ends with an error waits for the others, unaware of the error.
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        if find:
            raise HostError(
                "--find_hosts: JAX finds no other hosts here: give --coordinator, --hosts and "
                "--host instead"
            ) from error
        # Slurm or MPI is present but has not started this process, which therefore runs alone.
    except RuntimeError as error:
        raise HostError(
            f"the other hosts could not be joined within {join_timeout} s: do all of them run? "
            f"({str(error).splitlines()[0]})"
        ) from error


def _started_together(environment: Mapping[str, str]) -> bool:
    """Return whether Slurm, Open MPI or Cloud TPU says that it has started several processes."""
    sizes = (environment.get("SLURM_NTASKS"), environment.get("OMPI_COMM_WORLD_SIZE"))
    names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    several = any("," in environment.get(name, "") for name in names)
    return several or any(int(size or 1) > 1 for size in sizes)


def _await_coordinator(coordinator: str, timeout: int) -> None:
    """Wait until the first host listens.

    If it never did, JAX would end the process before this program could report why.
    """
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
    """Return whether this is the first host, which does the work that must be done only once."""
    return jax.process_index() == 0


def all_gather(
    array: Shaped[np.ndarray, "..."],
) -> Shaped[np.ndarray, "hosts ..."]:
    """Stack the hosts' arrays in the order of the hosts.

    All arrays have the same shape and dtype; any dtype will do.
    """
    if jax.process_count() == 1:
        return array[None]
    # Sent as bytes, since JAX would convert 64-bit integers to 32 bits.
    sent = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent))
    return np.frombuffer(received.tobytes(), array.dtype).reshape(-1, *array.shape)


def gather_json(value: Any) -> list[Any]:
    """Return the values of all hosts, in the order of the hosts; they must be fit for JSON."""
    content = json.dumps(value).encode()
    longest = int(all_gather(np.array(len(content))).max())
    gathered = all_gather(np.frombuffer(content.ljust(longest), np.uint8))
    return [json.loads(row.tobytes()) for row in gathered]


def on_all(
    function: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs
) -> _Result:
    """Call a function on all hosts, and wait until it has returned on all of them.

    The other hosts are told of an Exception alone. KeyboardInterrupt ends this host without that;
    and with several hosts Preempted is raised only between steps, on all of them.

    Args:
      function: no host may wait for another inside it.
      *args: its arguments, which may differ between hosts.
      **kwargs: its arguments by name.

    Returns:
      What the function has returned on this host.

    Raises:
      CrestError: The function raised it on one host; it is raised on every host.
      HostError: The function raised any other exception on another host, where it is raised
        unchanged.
    """
    result: Any = None
    caught: Exception | None = None
    try:
        result = function(*args, **kwargs)
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


def on_first(
    function: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs
) -> _Result | None:
    """Call a function on the first host, and let the others wait until it has returned.

    Args:
      function: may not wait for another host.
      *args: its arguments.
      **kwargs: its arguments by name.

    Returns:
      What the function has returned; None on the other hosts.

    Raises:
      CrestError: As for `on_all`.
    """
    if is_first():
        return on_all(function, *args, **kwargs)
    return on_all(lambda: None)


def from_first(
    function: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs
) -> _Result:
    """Return on every host what a function returns on the first, so that all hosts decide alike.

    Args:
      function: as for `on_first`; its result must be fit for JSON.
      *args: its arguments.
      **kwargs: its arguments by name.

    Raises:
      CrestError: As for `on_all`.
    """
    return gather_json(on_first(function, *args, **kwargs))[0]


def check_agreement(value: Mapping[str, Any]) -> None:
    """Check that all hosts have the same value.

    Raises:
      HostError: The value of one host differs; the error is raised on every host.
    """
    first, *others = gather_json(value)
    for host, theirs in enumerate(others, start=1):
        lines = differences(first, theirs)
        if lines:
            raise HostError(
                f"host {host} disagrees with host 0: {'; '.join(lines)}. Start all hosts with the "
                "same command and version"
            )


def total(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return the sum of the hosts' arrays."""
    return all_gather(array).sum(axis=0)
