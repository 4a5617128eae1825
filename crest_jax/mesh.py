"""The mesh of devices, and how batches and weights are laid out on it.

Batches are split over all devices. These form groups of neighbours, within which batch norm can be
synchronised. `jax.jit(jax.shard_map(...))` is what `jax.pmap` has been made of since JAX 0.8.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

# Collectives over the axes of the mesh are over all devices; those over the second axis alone are
# over the devices of each group.
WITHIN_GROUP = "device"
AXES = ("group", WITHIN_GROUP)
REPLICATED = P()
SPLIT = P(AXES)


def mesh_of(devices: Sequence[jax.Device], *, group: int = 0) -> Mesh:
    """Return a mesh of devices, host by host: a host's part of a batch is a part in one piece.

    Args:
      devices: the devices.
      group: number of devices of a group, a divisor of their number; 0 for a group of all. A group
        spans hosts only if it is not a divisor of the number of a host's devices.
    """
    host_by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    groups = np.array(host_by_host).reshape(-1, group or len(devices))
    return Mesh(groups, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def data_mesh(*, group: int = 0) -> Mesh:
    """Return a mesh of all devices of all hosts; `group` is that of `mesh_of`."""
    return mesh_of(jax.devices(), group=group)


def local_mesh() -> Mesh:
    """Return a mesh of only this host's devices."""
    return mesh_of(jax.local_devices())


def over_devices(
    function: Callable[..., Any], mesh: Mesh, *, in_specs: Any, out_specs: Any, **jit_options: Any
) -> Callable[..., Any]:
    """Map `function`, written for one device, over the mesh, and compile it."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return jax.jit(mapped, **jit_options)


def gather(tree: PyTree) -> PyTree:
    """Concatenate the devices' parts of a batch on every device; for use in a mapped function."""
    return jax.tree.map(
        lambda leaf: jax.lax.all_gather(leaf, AXES, tiled=True, to="invarying"), tree
    )


def mean(tree: PyTree) -> PyTree:
    """Return the means over all devices; for use in a mapped function."""
    # JAX refuses to average over both axes what differs along one of them only. With a zero that
    # differs along both, so does the sum.
    zero = jax.lax.pcast(jnp.float32(0), AXES, to="varying")
    return jax.tree.map(lambda leaf: jax.lax.pmean(leaf + zero.astype(leaf.dtype), AXES), tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every leaf to every device of the mesh; all hosts must pass the same values."""
    sharding = NamedSharding(mesh, REPLICATED)
    if mesh.is_multi_process:
        # JAX can copy random keys to devices of other hosts only as their underlying integers.
        return jax.tree.map(partial(_replicate_over_hosts, sharding=sharding), tree)
    return jax.device_put(tree, sharding)


def _replicate_over_hosts(leaf: Array, sharding: NamedSharding) -> Array:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(np.asarray(leaf), sharding)
    numbers = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))


def split(tree: PyTree, mesh: Mesh, *, axis: int = 0) -> PyTree:
    """Split an axis of every leaf of this host's part of a batch over the devices."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXES))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def to_local(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy a tree that is replicated on all devices of all hosts to those of a local mesh."""
    if jax.process_count() == 1:
        return tree
    return replicate(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree), mesh)
