"""Decoding JPEGs and PNGs without TensorFlow, to the same pixels as `decode` does with it."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from crest_jax.data import jpeg, resize
from crest_jax.data.views import View
from crest_jax.schema import MOST_PIXELS


def check_pixels(height: int, width: int) -> None:
    """Check that an image is small enough to be decoded.

    A file of a few kilobytes may claim to have billions of pixels, and decoders allocate memory for
    them before they find that the pixels are missing.

    Raises:
      ValueError: The image has more than `MOST_PIXELS` pixels.
    """
    if height * width > MOST_PIXELS:
        raise ValueError(f"it must have no more than {MOST_PIXELS} pixels, not {height} x {width}")


def decode_for_evaluation(image: bytes, view: View) -> UInt8[np.ndarray, "height width channels"]:
    """Decode an image as evaluations see it.

    Args:
      image: an encoded JPEG or PNG.
      view: the view of the image.

    Raises:
      Exception: The image is damaged; decoders raise exceptions of many types.
    """
    if not view.size:
        return decoded(image)
    return resize.fitted(decoded(image, view.channels), view)


def whole(
    image: bytes, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "{shape[0]} {shape[1]} {shape[2]}"]:
    """Decode a whole image and squeeze it into this height, width and number of channels.

    Raises:
      Exception: As for `decode_for_evaluation`.
    """
    height, width, channels = shape
    return resize.resized(decoded(image, channels), height, width)


def decoded(image: bytes, channels: int = 0) -> UInt8[np.ndarray, "height width channels"]:
    """Decode a JPEG or PNG.

    Args:
      image: an encoded JPEG or PNG.
      channels: the number of channels of the result, 1 or 3; 0 for those of the image, with alpha.

    Raises:
      Exception: As for `decode_for_evaluation`.
    """
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as picture:
        check_pixels(picture.height, picture.width)
        pixels = jpeg.decoded(picture) if isinstance(picture, JpegImageFile) else _of_png(picture)
    return _converted(pixels, channels) if channels else pixels


def _of_png(picture: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """Decode a PNG of any kind to 8 bits a channel.

    As with TensorFlow, transparency becomes alpha if it is stored as such, or in a palette.
    """
    if picture.mode.startswith("I"):  # 16 bits of grey
        return (np.asarray(picture)[..., None] >> 8).astype(np.uint8)
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode == "P":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return np.atleast_3d(np.asarray(picture))


def _converted(
    pixels: UInt8[np.ndarray, "height width _"], channels: int
) -> UInt8[np.ndarray, "height width {channels}"]:
    """Return the pixels as grey or RGB, without alpha."""
    colours = pixels[..., :-1] if pixels.shape[-1] in (2, 4) else pixels
    if colours.shape[-1] == channels:
        return colours
    if channels == 3:
        return colours.repeat(3, axis=-1)
    return np.asarray(Image.fromarray(colours).convert("L"))[..., None]
