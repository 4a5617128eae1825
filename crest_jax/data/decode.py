"""From encoded images of any size to uint8 images of one size, on the host (tf.data, tf.image)."""

from typing import NamedTuple

import tensorflow as tf
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

# Of an image's shorter side, what the central square has; the rest is margin.
CENTRAL_PART = 0.875


class View(NamedTuple):
    """What a model sees of an image."""

    size: int = 0  # side in pixels of the square that it becomes; 0 for images as they are stored
    crop: str = "none"  # which part of it, one of `config.CROPS`


AS_STORED = View()


def view_of(data: ConfigDict) -> View:
    """The view that a config's `data` asks for."""
    return View(data.image_size, data.crop)


def evaluated(image: tf.Tensor | bytes, view: View) -> UInt8[tf.Tensor, "height width channels"]:
    """Decodes an image as evaluations see it, which is the same whenever they do."""
    if not view.size:
        return stored(image)
    if view.crop == "none":
        return whole(image, (view.size, view.size, 3))
    return central(image, view.size)


def trained_on(
    image: tf.Tensor | bytes, view: View, seed: Int[tf.Tensor, "2"]
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decodes an image as a step sees it.

    Args:
      image: an encoded JPEG or PNG.
      view: of it.
      seed: which part of the image, where the view is a random one.
    """
    if view.crop == "random":
        return random_resized_crop(image, view.size, seed)
    return evaluated(image, view)


def stored(image: tf.Tensor | bytes) -> UInt8[tf.Tensor, "height width channels"]:
    """Decodes an image as it is."""
    return tf.io.decode_image(image, expand_animations=False)


def whole(
    image: tf.Tensor | bytes, shape: tuple[int, int, int]
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decodes all of an image, and squeezes it into this height, width and number of channels."""
    height, width, channels = shape
    pixels = tf.io.decode_image(image, channels=channels, expand_animations=False)
    return _resized(pixels, height, width)


def central(image: tf.Tensor | bytes, size: int) -> UInt8[tf.Tensor, "{size} {size} 3"]:
    """Decodes the square of `CENTRAL_PART` of the shorter side in an image's middle, in colour.

    Args:
      image: an encoded JPEG or PNG.
      size: side of the result in pixels.
    """
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    height, width = tf.shape(pixels)[0], tf.shape(pixels)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.round(CENTRAL_PART * shorter), tf.int32), 1)
    square = tf.image.crop_to_bounding_box(
        pixels, (height - side) // 2, (width - side) // 2, side, side
    )
    return _resized(square, size, size)


def random_resized_crop(
    image: tf.Tensor | bytes, size: int, seed: Int[tf.Tensor, "2"]
) -> UInt8[tf.Tensor, "{size} {size} 3"]:
    """Decodes a random part of an image, in colour, resized.

    The part has 8 to 100 % of the image's area and an aspect ratio of 3/4 to 4/3 (Szegedy et al.,
    2015). Of a JPEG only this part is decoded.

    Args:
      image: an encoded JPEG or PNG.
      size: side of the result in pixels.
      seed: which part; the same for the same seed.
    """

    def crop_jpeg() -> tf.Tensor:
        offset, part = _random_part(tf.io.extract_jpeg_shape(image), seed)
        window = tf.concat([offset, part], axis=0)
        return tf.io.decode_and_crop_jpeg(image, window, channels=3)

    def crop_decoded() -> tf.Tensor:
        pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
        offset, part = _random_part(tf.shape(pixels), seed)
        return tf.image.crop_to_bounding_box(pixels, *tf.unstack(offset), *tf.unstack(part))

    return _resized(tf.cond(tf.io.is_jpeg(image), crop_jpeg, crop_decoded), size, size)


def _random_part(
    shape: Int[tf.Tensor, "3"], seed: Int[tf.Tensor, "2"]
) -> tuple[Int[tf.Tensor, "2"], Int[tf.Tensor, "2"]]:
    """Offset, and height and width, of a random part of an image of this shape."""
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
