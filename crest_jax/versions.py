"""The versions that a run depends on: of the packages here, and of its format."""

import platform
from importlib import metadata
from typing import Any

from etils.epath import Path

from crest_jax.errors import WorkdirError
from crest_jax.layout import FORMAT
from crest_jax.wording import shown


def installed() -> dict[str, str]:
    """Return the versions of Python, this program, and the packages that its results depend on."""
    packages = ("crest_jax", "jax", "jaxlib", "flax", "optax", "tensorflow", "tensorflow-cpu",
                "tensorflow-datasets", "numpy")  # fmt: skip
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return {"python": platform.python_version(), **found}


def of_another_format(folder: Path, found: Any) -> WorkdirError:
    """Return the error for a run that another version has begun.

    Args:
      folder: the run's folder.
      found: its format.
    """
    return WorkdirError(
        f"{folder} was begun by a version of this program that has other networks and random "
        f"numbers (its format is {shown(found)}, and this version's is {FORMAT})",
        "use that version, or choose another --workdir",
    )
