"""Images in memory as a data set (`crest_jax.arrays`)."""

import hashlib
import io
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from numpy.typing import ArrayLike
from PIL import Image

from crest_jax import files
from crest_jax.data.sources import ARRAYS, UNKNOWN, Example, Source, held_out
from crest_jax.errors import DataError
from crest_jax.schema import TEXT
from crest_jax.wording import shown


def arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    unlabeled: ArrayLike | None = None,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    test_fraction: float = 0.2,
    class_names: Sequence[str] | None = None,
) -> Source:
    """Return images in memory as data for `crest_jax.train`.

    Args:
      images: the images as uint8, from 0 to 255, of shape [images, height, width, channels] with 1
        or 3 channels, or [images, height, width] if they are grey. They are not copied, so they
        must not change until training has begun.
      labels: the classes as whole numbers of shape [images], from 0 to one less than the number of
        classes. Every class must have an image.
      unlabeled: further images, whose classes are not known; all of `images` are then labeled.
        Without them, the config's `long_tail` determines which of `images` are used, and which of
        these are labeled.
      test: the images and labels to test on; by default a part of each class of `images`.
      test_fraction: the fraction of each class to hold out for testing if `test` is not given, in
        (0, 1).
      class_names: the names of the classes in the order of the labels; by default the labels.

    Raises:
      DataError: The images, labels or names have another type or shape, or a class has no image.

    Example:
      data = crest_jax.arrays(images, labels, unlabeled=more, test=(test_images, test_labels))
      run = crest_jax.train(crest_jax.experiment("cifar10_lt"), "runs/mine", data=data)
    """
    if not isinstance(test_fraction, numbers.Real) or not 0 < float(test_fraction) < 1:
        raise DataError(f"test_fraction={shown(test_fraction)} must be a number in (0, 1)")
    if test is not None and not (isinstance(test, tuple | list) and len(test) == 2):
        raise DataError(f"test={shown(test)} must be a pair of images and labels")
    pixels = {"train": _checked(images, "images")}
    train_labels = _checked_labels(labels, pixels["train"], "labels")
    classes = int(train_labels.max(initial=-1)) + 1
    if classes > len(train_labels):
        raise DataError(
            f"labels go up to {classes - 1}, but there are {len(train_labels)} images: every class "
            "from 0 on must have one"
        )
    counts = np.bincount(train_labels, minlength=classes)
    if not classes or not counts.all():
        which = f"; class {counts.argmin()} has none" if classes else ""
        raise DataError(f"labels must have an image of every class from 0 on{which}")
    if test is None and counts.max() < 2:
        raise DataError(
            "no class has more than one image, so none can be held out: give images to test on"
        )
    labels_of = {"train": train_labels}
    if test is not None:
        pixels["test"] = _checked(test[0], "test images")
        labels_of["test"] = _checked_labels(test[1], pixels["test"], "test labels")
        if not len(pixels["test"]):
            raise DataError(
                "test has no images: give some, or leave `test` out to hold out some of the others"
            )
        if labels_of["test"].max(initial=0) >= classes:
            raise DataError(
                f"test labels go up to {labels_of['test'].max()}, but the labels only to "
                f"{classes - 1}: leave out test images of other classes"
            )
    if unlabeled is not None:
        pixels["unlabeled"] = _checked(unlabeled, "unlabeled images")
        if not len(pixels["unlabeled"]):
            raise DataError("unlabeled has no images: give some, or leave `unlabeled` out")
        labels_of["unlabeled"] = np.full(len(pixels["unlabeled"]), UNKNOWN)
    channels = {each.shape[-1] for each in pixels.values()}
    if len(channels) > 1:
        raise DataError("labeled, unlabeled and test images must all be grey, or all RGB")
    names = _checked_names(range(classes) if class_names is None else class_names, classes)

    def examples(split: str) -> Iterator[Example]:
        rows = zip(pixels[split], labels_of[split].tolist(), strict=True)
        for row, (image, label) in enumerate(rows):
            yield Example(f"{split}-{row:08d}", _png(image), label)

    source = Source(
        f"{ARRAYS}{_digest(pixels, labels_of, names, None if test else test_fraction)}",
        names,
        lambda split: labels_of[split],
        examples,
        divided=unlabeled is not None,
        order=lambda: np.arange(len(train_labels)),
        channels=channels.pop(),
    )
    return source if test is not None else held_out(source, test_fraction)


def with_arrays(config: ConfigDict, source: Source) -> ConfigDict:
    """Return a copy of a config that names a data set of arrays as its data.

    Args:
      config: not validated yet; a config without `data` is returned as it is.
      source: from `arrays`.
    """
    config = config.copy_and_resolve_references()
    if not isinstance(config.get("data"), ConfigDict):
        return config
    with config.unlocked(), config.ignore_type():
        config.data.name = source.name
        config.data.test_split = "" if source.test_is_held_out else "test"
        config.data.class_table = ""
        if source.divided:
            config.data.unlabeled = source.name
            config.long_tail = ConfigDict({"beta": 1.0, "split": "random"})
            config.class_distribution = "counts"
    return config


def _checked(images: ArrayLike, what: str) -> UInt8[np.ndarray, "images height width channels"]:
    images = _array(images, what)
    if images.ndim == 3:
        images = images[..., None]
    fits = images.ndim == 4 and images.shape[-1] in (1, 3) and min(images.shape[1:3]) > 0
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"{what} of type {images.dtype} and shape {list(images.shape)} must be uint8, from 0 "
            "to 255, of shape [images, height, width, channels] with 1 or 3 channels"
        )
    return images


def _array(values: ArrayLike, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} cannot be put into one array ({files.reason(error)}): they must all have the "
            "same shape"
        ) from error


def _checked_labels(
    labels: ArrayLike, images: UInt8[np.ndarray, "images height width channels"], what: str
) -> Int[np.ndarray, " images"]:
    labels = _array(labels, what)
    fits = labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer)
    if not fits or labels.min(initial=0) < 0:
        raise DataError(
            f"{what} of type {labels.dtype} and shape {list(labels.shape)} must be whole numbers "
            f"of at least 0, one for each of the {len(images)} images"
        )
    return labels.astype(np.int64)


def _checked_names(names: Any, classes: int) -> tuple[str, ...]:
    found = tuple(map(str, names)) if isinstance(names, Iterable) else ()
    if len(found) != classes or len(set(found)) < classes or not all(map(TEXT.fits, found)):
        raise DataError(
            f"class_names={shown(names)} must be {classes} different names without control "
            "characters, one for each class"
        )
    return found


def _png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()


def _digest(
    pixels: Mapping[str, UInt8[np.ndarray, "..."]],
    labels: Mapping[str, Int[np.ndarray, "..."]],
    names: Sequence[str],
    held_out_fraction: float | None,
) -> str:
    digest = hashlib.sha256("\n".join([*names, repr(held_out_fraction)]).encode())
    for split, images in pixels.items():
        digest.update(f"\n{split} {images.shape}\n".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(labels[split].astype("<i8").tobytes())
    return digest.hexdigest()[:16]
