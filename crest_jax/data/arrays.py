"""Images in memory as a data set: `crest_jax.arrays`."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from numpy.typing import ArrayLike
from PIL import Image

from crest_jax.data.sources import ARRAYS, UNKNOWN, Example, Source, held_out
from crest_jax.errors import DataError
from crest_jax.schema import TEXT


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
      images: not copied, so leave them as they are until training has begun. uint8, from 0 to 255,
        of shape [images, height, width, channels] with 1 or 3 channels,
        or [images, height, width] for grey ones.
      labels: whole numbers of shape [images], from 0 to one less than the number of classes; every
        class has an image.
      unlabeled: further images, of unknown classes. All of `images` are labeled then. Without them,
        the config's `long_tail` says which of `images` are used, and which of these are labeled.
      test: images and labels to test on. By default a part of each class of `images` is held out.
      test_fraction: that part, in (0, 1).
      class_names: names in the order of the labels; by default the labels themselves.

    Raises:
      DataError: Images, labels or names are of another type or shape, or a class has no image.

    Example:
      data = crest_jax.arrays(images, labels, unlabeled=more, test=(test_images, test_labels))
      run = crest_jax.train(crest_jax.experiment("cifar10_lt"), "runs/mine", data=data)
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction={test_fraction} must be in (0, 1)")
    pixels = {"train": _checked(images, "images")}
    of_train = _checked_labels(labels, pixels["train"], "labels")
    classes = int(of_train.max(initial=-1)) + 1
    if classes > len(of_train):
        raise DataError(
            f"labels go up to {classes - 1}, but there are {len(of_train)} images: every class "
            "from 0 on must have one"
        )
    counts = np.bincount(of_train, minlength=classes)
    if not classes or not counts.all():
        which = f"; class {counts.argmin()} has none" if classes else ""
        raise DataError(f"labels must have an image of every class from 0 on{which}")
    if test is None and counts.max() < 2:
        raise DataError(
            "no class has more than one image, so that none can be held out: give images to test on"
        )
    of_split = {"train": of_train}
    if test is not None:
        pixels["test"] = _checked(test[0], "test images")
        of_split["test"] = _checked_labels(test[1], pixels["test"], "test labels")
        if not len(pixels["test"]):
            raise DataError("there are no test images: leave `test` out to hold some out")
        if of_split["test"].max(initial=0) >= classes:
            raise DataError(
                f"test labels have class {of_split['test'].max()}, of which there is no labeled "
                "image"
            )
    if unlabeled is not None:
        pixels["unlabeled"] = _checked(unlabeled, "unlabeled images")
        if not len(pixels["unlabeled"]):
            raise DataError("there are no unlabeled images: leave `unlabeled` out")
        of_split["unlabeled"] = np.full(len(pixels["unlabeled"]), UNKNOWN)
    channels = {each.shape[-1] for each in pixels.values()}
    if len(channels) > 1:
        raise DataError("labeled, unlabeled and test images must all be grey, or all RGB")
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if len(names) != classes or len(set(names)) < classes or not all(map(TEXT.fits, names)):
        raise DataError(
            f"class_names must be {classes} different names without control characters, one for "
            "each class"
        )

    def examples(split: str) -> Iterator[Example]:
        rows = zip(pixels[split], of_split[split].tolist(), strict=True)
        for row, (image, label) in enumerate(rows):
            yield Example(f"{split}-{row:08d}", _png(image), label)

    source = Source(
        f"{ARRAYS}{_digest(pixels, of_split, names, None if test else test_fraction)}",
        names,
        lambda split: of_split[split],
        examples,
        divided=unlabeled is not None,
        order=lambda: np.arange(len(of_train)),
        channels=channels.pop(),
    )
    return source if test is not None else held_out(source, test_fraction)


def with_arrays(config: ConfigDict, source: Source) -> ConfigDict:
    """Return a copy of a config whose data set is that of some arrays."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.name = source.name
        config.data.test_split = "" if source.test_is_held_out else "test"
        config.data.class_table = ""
        if source.divided:
            config.data.unlabeled = source.name
            config.long_tail = ConfigDict({"beta": 1.0, "split": "random"})
            config.class_distribution = "counts"
    return config


def _checked(images: ArrayLike, what: str) -> UInt8[np.ndarray, "images height width channels"]:
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    fits = images.ndim == 4 and images.shape[-1] in (1, 3) and min(images.shape[1:3]) > 0
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"{what} of type {images.dtype} and shape {list(images.shape)} must be uint8, from 0 "
            "to 255, of shape [images, height, width, channels] with 1 or 3 channels"
        )
    return images


def _checked_labels(
    labels: ArrayLike, images: UInt8[np.ndarray, "images height width channels"], what: str
) -> Int[np.ndarray, " images"]:
    labels = np.asarray(labels)
    fits = labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer)
    if not fits or labels.min(initial=0) < 0:
        raise DataError(
            f"{what} of type {labels.dtype} and shape {list(labels.shape)} must be whole numbers "
            f"of at least 0, one for each of the {len(images)} images"
        )
    return labels.astype(np.int64)


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
