"""Mapping a function over devices: one mesh axis, along which batches are split.

`jax.jit(jax.shard_map(...))` is what `jax.pmap` has been made of since JAX 0.8.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

AXIS = "batch"
REPLICATED = P()
SPLIT = P(AXIS)


def data_mesh() -> Mesh:
    """Returns a mesh of all devices of all hosts along one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


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
    """Copies every leaf to every device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every leaf of this host's part of a batch over the devices."""
    sharding = NamedSharding(mesh, SPLIT)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )
