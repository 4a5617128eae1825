"""What the last bits of a result depend on, besides the config."""

import os
from typing import Any

import jax

from crest_jax import backend, versions
from crest_jax.cpu import library


def current() -> dict[str, Any]:
    """Return the devices, CPU cores, kernels, variables and versions here, ready for JSON."""
    device = jax.devices()[0]
    return {
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "cpus": visible_cpus(),
        "kernels": library.describe(),
        "variables": backend.variables(),
        **versions.installed(),
    }


def visible_cpus() -> int | None:
    """Return the number of CPU cores that XLA may use; the order of its sums depends on it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
