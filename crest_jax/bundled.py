"""The experiments and tables that come with the project, in its source tree or in the package."""

from etils.epath import Path

_PACKAGE = Path(__file__).parent
# The wheel has them within the package, and the source tree at its top.
FOLDER = _PACKAGE.parent if (_PACKAGE.parent / "experiments").is_dir() else _PACKAGE / "_bundled"


def find(path: Path) -> Path:
    """Return a path as it is where there is such a file, and else the bundled file of that name.

    Args:
      path: relative to the folder of the process, such as `experiments/cifar10_lt.py`.
    """
    bundled = FOLDER / path
    return bundled if not path.exists() and bundled.is_file() else path
