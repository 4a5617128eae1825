"""The experiments and tables that come with the project, in its source tree or in the package."""

from etils.epath import Path

_PACKAGE = Path(__file__).parent
# In a wheel they are inside the package, and in a source tree at its top.
_BUNDLED = _PACKAGE / "_bundled"
FOLDER = _BUNDLED if _BUNDLED.is_dir() else _PACKAGE.parent


def find(path: Path) -> Path:
    """Return a path as it is if it exists, and otherwise the bundled file of that name.

    Args:
      path: a path relative to the current folder, such as `experiments/cifar10_lt.py`.

    Returns:
      The path to the file; the given path if there is no such file at all.
    """
    bundled = FOLDER / path
    return bundled if not path.exists() and bundled.is_file() else path
