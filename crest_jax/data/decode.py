"""Decoding images of any size to uint8 images of one size, in TensorFlow's graphs (tf.data).

`pixels` does the same without TensorFlow, for one image at a time.
"""

from jaxtyping import Int, UInt8

from crest_jax.data.tensorflow import tf
from crest_jax.data.views import CENTRAL_PART, View
from crest_jax.schema import MOST_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"


def _checked(image: tf.Tensor | bytes) -> tf.Tensor:
    """Return the image, whose header must be that of a JPEG or PNG of up to MOST_PIXELS."""
    return _no_larger_than(image, tf.constant(MOST_PIXELS, tf.int64))


def _sides_checked(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    def sides_of_jpeg() -> tf.Tensor:
        return tf.io.extract_jpeg_shape(image, tf.int64)[:2]

    def sides_of_png() -> tf.Tensor:
        is_png = tf.strings.substr(image, 0, len(_PNG)) == _PNG
        with tf.control_dependencies([tf.debugging.Assert(is_png, ["it is not a JPEG or PNG"])]):
            header = tf.strings.substr(image, 16, 8)
        return tf.cast(tf.io.decode_raw(header, tf.int32, little_endian=False), tf.int64)

    sides = tf.cond(tf.io.is_jpeg(image), sides_of_jpeg, sides_of_png)
    fits = tf.reduce_prod(sides) <= pixels
    message = ["it must have no more than", pixels, "pixels, not", sides]
    with tf.control_dependencies([tf.debugging.Assert(fits, message)]):
        return tf.identity(image)


# The input signature makes TensorFlow trace this once, and not for every data set.
_no_larger_than = tf.function(
    _sides_checked,
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)],
    autograph=False,
)


def decode_for_evaluation(
    image: tf.Tensor | bytes, view: View
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode an image as evaluations see it, which is the same every time."""
    if not view.size:
        return stored(image)
    if view.crop == "none":
        return whole(image, (view.size, view.size, view.channels))
    return central(image, view.size, view.channels)


def decode_for_training(
    image: tf.Tensor | bytes, view: View, seed: Int[tf.Tensor, "2"]
) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode an image as a training step sees it.

    Args:
      image: an encoded JPEG or PNG.
      view: the view of the image.
      seed: the seed of the part that is cut out, if the view's crop is random.
    """
    if view.crop == "random":
        return random_resized_crop(image, view.size, seed, view.channels)
    return decode_for_evaluation(image, view)


def stored(image: tf.Tensor | bytes) -> UInt8[tf.Tensor, "height width channels"]:
    """Decode a JPEG or PNG at its own size, with the channels that it has."""
    return tf.io.decode_image(_checked(image), expand_animations=False)


def check(image: bytes) -> None:
    """Check that a JPEG or PNG can be decoded.

    Raises:
      ValueError: TensorFlow cannot decode it.
    """
    try:
        stored(image)
    except tf.errors.OpError as error:
        raise ValueError("it is damaged, or cut short") from error


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
      size: the side of the result in pixels.
      channels: the number of channels of the result, 1 or 3.
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
      size: the side of the result in pixels.
      seed: the seed of the part that is cut out.
      channels: the number of channels of the result, 1 or 3.
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
