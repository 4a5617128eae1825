"""Decoding images of any size to uint8 images of one size, on the host (tf.data, tf.image)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8, UInt16
from ml_collections import ConfigDict

from crest_jax.schema import MOST_PIXELS

# The side of the central square as a fraction of an image's shorter side; the rest is margin.
CENTRAL_PART = 0.875

_PNG = b"\x89PNG\r\n\x1a\n"


def check_pixels(height: int, width: int) -> None:
    """Check that an image is small enough to be decoded.

    A file of a few kilobytes may claim to have billions of pixels, and decoders allocate memory for
    them before they find that the pixels are missing.

    Raises:
      ValueError: The image has more than `MOST_PIXELS` pixels.
    """
    if height * width > MOST_PIXELS:
        raise ValueError(f"it must have no more than {MOST_PIXELS} pixels, not {height} x {width}")


def _checked(image: tf.Tensor | bytes) -> tf.Tensor:
    """Return the image once its header shows a JPEG or PNG that is small enough to be decoded."""
    return _no_larger_than(image, tf.constant(MOST_PIXELS, tf.int64))


# The input signature makes TensorFlow trace this once, and not for every data set.
@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False
)
def _no_larger_than(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    def sides_of_jpeg() -> tf.Tensor:
        return tf.io.extract_jpeg_shape(image, tf.int64)[:2]

    def sides_of_png() -> tf.Tensor:
        is_png = tf.strings.substr(image, 0, len(_PNG)) == _PNG
        with tf.control_dependencies([tf.debugging.Assert(is_png, ["it is no JPEG or PNG"])]):
            header = tf.strings.substr(image, 16, 8)
        return tf.cast(tf.io.decode_raw(header, tf.int32, little_endian=False), tf.int64)

    sides = tf.cond(tf.io.is_jpeg(image), sides_of_jpeg, sides_of_png)
    fits = tf.reduce_prod(sides) <= pixels
    message = ["it must have no more than", pixels, "pixels, not", sides]
    with tf.control_dependencies([tf.debugging.Assert(fits, message)]):
        return tf.identity(image)


class View(NamedTuple):
    """How an image is cropped, resized and converted before a model sees it."""

    size: int = 0  # side in pixels of the resulting square; 0 for images as they are stored
    crop: str = "none"  # which part of the image is used, one of `config.CROPS`
    channels: int = 3  # of the square: 1 for grey, 3 for colour


AS_STORED = View()


def view_of(data: ConfigDict, channels: int) -> View:
    """Return the view that a config's `data` asks for, of images with this many channels."""
    return View(data.image_size, data.crop, channels)


def evaluated(image: tf.Tensor | bytes, view: View) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode an image as evaluations see it, the same every time."""
    if not view.size:
        return stored(image)
    if view.crop == "none":
        return whole(image, (view.size, view.size, view.channels))
    return central(image, view.size, view.channels)


def fitted(
    image: UInt8[np.ndarray, "height width channels"] | UInt8[tf.Tensor, "height width channels"],
    view: View,
) -> UInt8[tf.Tensor, "{view.size} {view.size} channels"]:
    """Crop and resize a decoded image as evaluations see it.

    Args:
      image: a decoded image of any height and width.
      view: a view whose size is not 0.
    """
    pixels = tf.convert_to_tensor(image)
    if view.crop == "none":
        return _resized(pixels, view.size, view.size)
    return _central(pixels, view.size)


def trained_on(
    image: tf.Tensor | bytes, view: View, seed: Int[tf.Tensor, "2"]
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode an image as a training step sees it.

    Args:
      image: an encoded JPEG or PNG.
      view: the view of the image.
      seed: determines the part of the image where the view's crop is random.
    """
    if view.crop == "random":
        return random_resized_crop(image, view.size, seed, view.channels)
    return evaluated(image, view)


def stored(image: tf.Tensor | bytes) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode a JPEG or PNG as it is."""
    return tf.io.decode_image(_checked(image), expand_animations=False)


def stored_16(image: bytes, channels: int) -> UInt16[tf.Tensor, "height width {channels}"]:
    """Decode a PNG with 16 bits a channel.

    Args:
      image: an encoded PNG.
      channels: of the result: 1, 3, or 4 with alpha.
    """
    return tf.io.decode_png(_checked(image), channels=channels, dtype=tf.uint16)


def whole(
    image: tf.Tensor | bytes, shape: tuple[int, int, int]
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode a whole image and squeeze it into this height, width and number of channels."""
    height, width, channels = shape
    pixels = tf.io.decode_image(_checked(image), channels=channels, expand_animations=False)
    return _resized(pixels, height, width)


def central(
    image: tf.Tensor | bytes, size: int, channels: int = 3
) -> UInt8[tf.Tensor, "{size} {size} {channels}"]:
    """Decode the central square of an image and resize it.

    The side of the square is `CENTRAL_PART` of the image's shorter side.

    Args:
      image: an encoded JPEG or PNG.
      size: side of the result in pixels.
      channels: of the result, 1 or 3.
    """
    pixels = tf.io.decode_image(_checked(image), channels=channels, expand_animations=False)
    return _central(pixels, size)


def _central(
    pixels: UInt8[tf.Tensor, "height width channels"], size: int
) -> UInt8[tf.Tensor, "{size} {size} channels"]:
    height, width = tf.shape(pixels)[0], tf.shape(pixels)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.round(CENTRAL_PART * shorter), tf.int32), 1)
    square = tf.image.crop_to_bounding_box(
        pixels, (height - side) // 2, (width - side) // 2, side, side
    )
    return _resized(square, size, size)


def random_resized_crop(
    image: tf.Tensor | bytes, size: int, seed: Int[tf.Tensor, "2"], channels: int = 3
) -> UInt8[tf.Tensor, "{size} {size} {channels}"]:
    """Decode a random part of an image and resize it.

    The part has 8 to 100 % of the image's area and an aspect ratio of 3/4 to 4/3 (Szegedy et al.,
    2015). Only this part of a JPEG is decoded.

    Args:
      image: an encoded JPEG or PNG.
      size: side of the result in pixels.
      seed: determines the part; the same seed gives the same part.
      channels: of the result, 1 or 3.
    """
    image = _checked(image)

    def crop_jpeg() -> tf.Tensor:
        offset, part = _random_part(tf.io.extract_jpeg_shape(image), seed)
        window = tf.concat([offset, part], axis=0)
        return tf.io.decode_and_crop_jpeg(image, window, channels=channels)

    def crop_decoded() -> tf.Tensor:
        pixels = tf.io.decode_image(image, channels=channels, expand_animations=False)
        offset, part = _random_part(tf.shape(pixels), seed)
        return tf.image.crop_to_bounding_box(pixels, *tf.unstack(offset), *tf.unstack(part))

    return _resized(tf.cond(tf.io.is_jpeg(image), crop_jpeg, crop_decoded), size, size)


def _random_part(
    shape: Int[tf.Tensor, "3"], seed: Int[tf.Tensor, "2"]
) -> tuple[Int[tf.Tensor, "2"], Int[tf.Tensor, "2"]]:
    """Return the offset (y, x) and the size (height, width) of a random part of an image."""
    offset, part, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return offset[:2], part[:2]


def _resized(pixels: tf.Tensor, height: int, width: int) -> tf.Tensor:
    resized = tf.image.resize(pixels, (height, width), antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)
