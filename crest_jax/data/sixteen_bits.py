"""Reading pictures with 16 bits a channel, of which Pillow mostly decodes only the upper 8."""

import io
import struct
import sys
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

# Offsets in a PNG of the bits per channel and of the colour type, and some of these types.
PNG_BIT_DEPTH = 24
_PNG_COLOUR_TYPE = 25
_PNG_GREY_AND_ALPHA, _PNG_RGBA = 4, 6
_PNG_GREY = (0, _PNG_GREY_AND_ALPHA)
_OPAQUE = (1 << 16) - 1  # of alpha with 16 bits
# TIFF tags.
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_LARGEST_VALUES = (341, 281)  # SMaxSampleValue, MaxSampleValue
# The opposite of each byte order, in Pillow's letters: little, big and native.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# Bit depths of sensors whose values are stored in 16-bit samples.
DEPTHS = (8, 10, 12, 14, 16)


class _Deep(NamedTuple):
    """A picture with 16 bits a channel."""

    samples: UInt16[np.ndarray, "height width channels"]
    mode: str  # Pillow's mode for the same channels of 8 bits
    stated_bits: int | None = None  # the number of significant bits, if the file states it
    negative: bool = False  # whether white is 0

    @property
    def colours(self) -> UInt16[np.ndarray, "height width colours"]:
        """The samples without alpha; with it if the colours are multiplied by it (mode RGBa)."""
        return self.samples[..., :-1] if self.mode in ("LA", "RGBA") else self.samples


def to_8_bits(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, int | None]:
    """Return the image with 8 bits a channel, and the number of significant bits if guessed.

    Raises:
      ValueError: The image has 32-bit or signed pixels, or cannot be decoded.
    """
    deep = _deep(image, content)
    if deep is None:
        if image.mode in ("I", "F"):
            raise ValueError(
                f"its pixels are of 32 bits, or signed (mode {image.mode}): convert it to 8 bits"
            )
        return image, None
    height, width, channels = deep.samples.shape
    colours = deep.colours.shape[-1]
    bits = _bits(deep.colours, deep.stated_bits)
    pixels = np.empty(deep.samples.shape, np.uint8)
    _narrow(deep.colours, bits, pixels[..., :colours])
    if colours < channels:
        alpha = deep.samples[..., colours:]
        _narrow(alpha, _bits(alpha, None), pixels[..., colours:])
    if deep.negative:
        np.invert(pixels, out=pixels)
    shallow = Image.frombytes(deep.mode, (width, height), pixels.tobytes())
    if deep.mode == "RGBa":
        shallow = shallow.convert("RGBA")
    return shallow, None if bits == deep.stated_bits else bits


def _bits(samples: UInt16[np.ndarray, "..."], stated: int | None) -> int:
    """Return how many bits are significant: as stated if they hold the samples, or a guess."""
    largest = int(samples.max(initial=0))
    if stated is not None and largest < 1 << stated:
        return stated
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def _narrow(
    samples: UInt16[np.ndarray, "..."], bits: int, pixels: UInt8[np.ndarray, "..."]
) -> None:
    """Set `pixels` to the upper 8 of the `bits` significant bits of the samples."""
    np.right_shift(samples, bits - 8, out=pixels, casting="unsafe")


def _deep(image: ImageFile.ImageFile, content: bytes) -> _Deep | None:
    """Return the samples of a picture with 16 bits a channel; None for any other picture.

    Raises:
      ValueError: The picture cannot be decoded, or Pillow would decode it wrongly.
    """
    if image.format == "PNG" and content[PNG_BIT_DEPTH] == 16:
        deep = _of_a_png(image, content)
        stated = _significant_bits(content)
        # Values that exceed the stated bits were scaled to 16 bits, as the PNG standard demands.
        if stated is not None and int(deep.colours.max()) >= 1 << stated:
            stated = 16
        return deep._replace(stated_bits=stated)
    # Pillow holds the 16-bit samples of some files in 32-bit pixels.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        samples = np.asarray(image).astype(np.uint16)[..., None]
        if isinstance(image, TiffImageFile):
            negative = image.tag_v2.get(_PHOTOMETRIC, 0) == 0
            return _Deep(samples, "L", _largest_bits(image), negative)
        return _Deep(samples, "L", 16)  # Pillow has scaled the values to 16 bits
    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(_BITS, (0,))) == 16:
        if image.tag_v2.get(_PLANES) == 2:
            raise ValueError("its 16-bit colours are in planes of their own: convert it to PNG")
        return _Deep(*_colours_of_a_tiff(image, content), _largest_bits(image))
    return None


def _of_a_png(image: ImageFile.ImageFile, content: bytes) -> _Deep:
    """Return the samples of a PNG with 16 bits a channel, with alpha if it has transparency.

    Pillow keeps all bits only of grey without alpha.
    """
    colour_type = content[_PNG_COLOUR_TYPE]
    if colour_type == _PNG_GREY_AND_ALPHA:
        # A picture of twice as many channels with 8 bits is stored in the same way.
        header = content[12:PNG_BIT_DEPTH] + bytes([8, _PNG_RGBA]) + content[26:29]
        bytewise = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
        with Image.open(io.BytesIO(bytewise), formats=("PNG",)) as halves:
            return _Deep(np.asarray(halves).view(">u2").astype(np.uint16), "LA")
    if colour_type in _PNG_GREY:
        samples, mode = np.asarray(image).astype(np.uint16)[..., None], "L"
    else:
        samples, mode = _both_bytes(image, content, f"{image.mode};16B"), image.mode
    key = image.info.get("transparency")  # the colour that is transparent
    if key is None:
        return _Deep(samples, mode)
    alpha = np.where((samples == key).all(axis=-1, keepdims=True), 0, _OPAQUE).astype(np.uint16)
    return _Deep(np.concatenate([samples, alpha], axis=-1), f"{mode}A")


def _significant_bits(png: bytes) -> int | None:
    """Return the number of significant bits that a PNG's sBIT chunk states; None without one.

    It is that of grey, or the largest of red, green and blue, clamped to [8, 16].
    """
    place = 8
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if kind == b"sBIT" and length:
            colours = 1 if png[_PNG_COLOUR_TYPE] in _PNG_GREY else 3
            return min(max(8, *png[place + 8 : place + 8 + min(length, colours)]), 16)
        if kind == b"IDAT":
            return None
        place += 12 + length
    return None


def _largest_bits(tiff: TiffImageFile) -> int | None:
    """Return the number of significant bits that a TIFF states; None if it states none.

    It states fewer than 16 bits a sample, or the largest value.
    """
    stored = max(tiff.tag_v2.get(_BITS, (16,)))
    if stored < 16:
        return max(8, stored)
    for tag in _LARGEST_VALUES:
        values = tiff.tag_v2.get(tag)
        values = values if isinstance(values, tuple) else (values,)
        if all(isinstance(value, int) and 0 < value < 1 << 16 for value in values):
            return max(8, max(values).bit_length())
    return None


def _colours_of_a_tiff(
    image: TiffImageFile, content: bytes
) -> tuple[UInt16[np.ndarray, "height width channels"], str]:
    """Return the samples of a TIFF with 16-bit colours, and their mode."""
    # Keep Pillow from dividing by alpha: that is possible only once both bytes are put together.
    raw_mode = _raw_mode(image)
    upper = raw_mode.replace("a", "A")
    mode = image.mode if upper == raw_mode else "RGBa"
    return _both_bytes(image, content, upper), mode


def _both_bytes(
    image: ImageFile.ImageFile, content: bytes, raw_mode: str
) -> UInt16[np.ndarray, "height width channels"]:
    """Return the samples of a picture with 16-bit colours.

    Pillow decodes only the upper bytes; told the opposite byte order, it decodes the lower ones.

    Args:
      image: the picture, which is not decoded yet.
      content: the content of its file.
      raw_mode: Pillow's raw mode for it, such as RGB;16L; the last letter is the byte order.
    """
    samples = _decoded(image, raw_mode).astype(np.uint16)
    samples <<= 8
    with Image.open(io.BytesIO(content), formats=("PNG", "TIFF")) as again:
        samples |= _decoded(again, raw_mode[:-1] + _OTHER_ORDER[raw_mode[-1]])
    return samples


def _decoded(
    image: ImageFile.ImageFile, raw_mode: str
) -> UInt8[np.ndarray, "height width channels"]:
    # The arguments of Pillow's decoder are the raw mode, or a tuple that begins with it.
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]
    return np.asarray(image)


def _raw_mode(tiff: TiffImageFile) -> str:
    """Return Pillow's raw mode for a TIFF."""
    arguments = tiff.tile[0].args
    assert isinstance(arguments, tuple)
    return arguments[0]
