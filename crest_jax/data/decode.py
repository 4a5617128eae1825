"""From encoded images of any size to uint8 images of one size, on the host (tf.data, tf.image)."""

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8

# Of an image's shorter side, what evaluation looks at; the rest is margin.
CENTRAL_PART = 0.875


def stored(image: tf.Tensor | bytes) -> UInt8[tf.Tensor, "height width channels"]:
    """Decodes an image as it is."""
    return tf.io.decode_image(image, expand_animations=False)


def central(image: tf.Tensor | bytes, size: int) -> UInt8[tf.Tensor, "{size} {size} 3"]:
    """Decodes the square in an image's middle, in colour, resized: what evaluations see.

    Args:
      image: an encoded JPEG or PNG.
      size: side of the result in pixels.
    """
    return central_part(tf.io.decode_image(image, channels=3, expand_animations=False), size)


def central_part(
    pixels: UInt8[tf.Tensor | np.ndarray, "height width channels"], size: int
) -> UInt8[tf.Tensor, "{size} {size} channels"]:
    """The square of `CENTRAL_PART` of the shorter side in an image's middle, resized."""
    height, width = tf.shape(pixels)[0], tf.shape(pixels)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.round(CENTRAL_PART * shorter), tf.int32), 1)
    square = tf.image.crop_to_bounding_box(
        pixels, (height - side) // 2, (width - side) // 2, side, side
    )
    return _resized(square, size)


def random_resized_crop(
    image: tf.Tensor | bytes, size: int, seed: Int[tf.Tensor, "2"]
) -> UInt8[tf.Tensor, "{size} {size} 3"]:
    """Decodes a random part of an image, in colour, resized: what training sees.

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

    return _resized(tf.cond(tf.io.is_jpeg(image), crop_jpeg, crop_decoded), size)


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


def _resized(pixels: tf.Tensor, size: int) -> tf.Tensor:
    resized = tf.image.resize(pixels, (size, size), antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)
