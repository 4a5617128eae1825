"""What all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Eight CPU devices, so that the mapped step can be tested on meshes of 1, 4 and 8; before JAX
# starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def command_line():
    """Runs `python -m crest_jax.main` as a user would, on one device."""

    def start(*arguments: str, **options) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return subprocess.Popen(
            [sys.executable, "-m", "crest_jax.main", *arguments],
            cwd=REPOSITORY,
            env=environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start
