"""The accelerators that programs are compiled for ahead of time, with their published figures.

Sources: NVIDIA's data sheet of the H100 SXM and the table of compute capability 9.0 in the CUDA
programming guide; Google Cloud's pages on TPU v5e, v5p and v6e. The clocks of TPUs are those that
XLA's estimates in cycles count in.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """An accelerator: its name for XLA, and its published figures."""

    platform: str  # "tpu" or "gpu"
    topologies: Mapping[int, str]  # XLA's name of the topology with so many devices
    memory: int  # bytes of a device
    bandwidth: float  # bytes a second between a device and its memory
    flops: Mapping[str, float]  # FLOPs a second of dense products, by the type of the factors
    link: float  # bytes a second that a device sends to the others
    clock: float  # in Hz

    def peak(self, dtype: str, precision: str) -> float:
        """Return the FLOPs a second of products with this `dtype` and `precision` of a config."""
        if self.platform == "gpu" and dtype == "float32":
            return self.flops["float32" if precision == "highest" else "tf32"]
        passes = {"default": 1, "high": 3, "highest": 6} if dtype == "float32" else {"default": 1}
        return self.flops["bfloat16"] / passes[precision]


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(
        "tpu",
        {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"},
        memory=16 << 30,
        bandwidth=819e9,
        flops={"bfloat16": 197e12},
        link=200e9,
        clock=1.5e9,
    ),
    "v5p": Chip(
        "tpu",
        {1: "v5p:2x2x1", 4: "v5p:2x2x1", 8: "v5p:2x2x2", 16: "v5p:2x2x4"},
        memory=95 << 30,
        bandwidth=2765e9,
        flops={"bfloat16": 459e12},
        link=600e9,
        clock=1.75e9,
    ),
    "v6e": Chip(
        "tpu",
        {1: "v6e:2x2", 4: "v6e:2x2", 8: "v6e:2x4", 16: "v6e:4x4", 64: "v6e:8x8", 256: "v6e:16x16"},
        memory=32 << 30,
        bandwidth=1640e9,
        flops={"bfloat16": 918e12},
        link=448e9,
        clock=1.75e9,
    ),
    "h100": Chip(
        "gpu",
        {1: "1x1x1", 8: "1x1x8"},
        memory=80_000_000_000,
        bandwidth=3.35e12,
        flops={"bfloat16": 989e12, "tf32": 494.5e12, "float32": 67e12},
        link=450e9,
        clock=1.98e9,
    ),
}

# The H100 SXM in the form in which XLA takes the description of a GPU that is not there.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 80000000000
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
"""

# What lets libtpu be loaded where there is no TPU.
_WITHOUT_TPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Where XLA's options for each platform are read from, and those without which it notes no times.
_OPTIONS = {
    "tpu": ("LIBTPU_INIT_ARGS", ""),
    "gpu": ("XLA_FLAGS", "--xla_gpu_collect_cost_model_stats=true"),
}


def prepare(chip: Chip, flags: str) -> None:
    """Set the environment in which JAX compiles for a chip that is not there.

    Args:
      chip: the chip to compile for.
      flags: further options of XLA, such as `--xla_gpu_autotune_level=0`, separated by spaces.
    """
    os.environ.update(_WITHOUT_TPU, JAX_PLATFORMS="cpu")
    name, needed = _OPTIONS[chip.platform]
    os.environ[name] = " ".join(filter(None, [os.environ.get(name), needed, flags]))


def devices(chip: Chip, count: int) -> list[Any]:
    """Return `count` devices of a chip, for which JAX can compile but which cannot run.

    Raises:
      SystemExit: XLA has no topology with so many, or the chip's plug-in is not installed.
    """
    from jax.experimental import topologies

    if count not in chip.topologies:
        raise SystemExit(f"--devices={count} must be one of {', '.join(map(str, chip.topologies))}")
    topology = chip.topologies[count]
    try:
        if chip.platform == "tpu":
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        else:
            with _cuda_is_a_gpu():
                described = topologies.get_topology_desc(
                    platform="cuda", topology_name="", topology=topology, target_config=_H100
                )
    except Exception as error:  # whatever a plug-in raises that is not there
        raise SystemExit(
            f"JAX has no compiler for this chip ({error}): install crest_jax with the extra "
            f"ahead-{chip.platform}"
        ) from error
    return list(described.devices[:count])


@contextmanager
def _cuda_is_a_gpu() -> Iterator[None]:
    """Let JAX ask the plug-in of CUDA for a topology of a platform that it knows only as "gpu"."""
    from jax._src import xla_bridge

    before = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else before(name)
    try:
        yield
    finally:
        xla_bridge.canonicalize_platform = before
