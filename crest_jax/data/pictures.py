"""Normalising user-provided picture files, so that all of them are decoded in the same way.

Records hold the normalised files, and `crest_jax.predict` normalises its input likewise: a model
sees a picture as it saw those that it was trained on, whatever program wrote the file.
"""

import io
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np
from etils.epath import Path
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from crest_jax import files
from crest_jax.data import pixels
from crest_jax.data.views import View
from crest_jax.schema import printable, some

# The first bytes of picture files, by format. Pillow's own tests would take any text that begins
# with "BM" for a BMP.
_BEGINNINGS = {
    kind: re.compile(regex, re.DOTALL)
    for kind, regex in {
        "AVIF": rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4})*?avi[fs])",
        "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
        "DICOM": rb".{128}DICM",
        "GIF": rb"GIF8[79]a",
        "HEIC": rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|m[is]f1)",
        "JPEG": rb"\xff\xd8\xff",
        "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "PPM": rb"P[1-6f]\s+[#\d]",
        "TIFF": rb"(II|MM)([*+]\0|\0[*+])",
        "WEBP": rb"RIFF.{4}WEBP",
    }.items()
}
_HEAD = 256  # number of bytes that are enough to recognise a format
# The raster formats that this build of Pillow decodes by itself. Its other formats start external
# programs, are icons, or have no distinctive first bytes.
FORMATS = tuple(
    kind
    for kind, feature in {
        "AVIF": "avif", "BMP": "", "GIF": "", "JPEG": "jpg", "JPEG2000": "jpg_2000", "PNG": "zlib",
        "PPM": "", "TIFF": "", "WEBP": "webp",
    }.items()
    if not feature or feature in features.get_supported()
)  # fmt: skip
# Endings of picture formats that Pillow does not know: those of phones, cameras, microscopes and
# drawings.
_OTHER_ENDINGS = (
    ".arw", ".cr2", ".cr3", ".czi", ".dcm", ".dng", ".heic", ".heif", ".hif", ".jxl", ".lif",
    ".nd2", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw", ".svg",
)  # fmt: skip
# Formats that Pillow has endings for but that are not pictures.
_NO_PICTURES = ("BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "PDF")
# MPO is a JPEG followed by more data, as phones write it.
_JPEG = ("JPEG", "MPO")
_ORIENTATION = 0x0112  # tag of EXIF
_TURNED = range(2, 9)  # its values for pictures that are not upright
# Offsets in a PNG of the bits per channel and of the colour type, and some of these types.
_PNG_BIT_DEPTH = 24
_PNG_COLOUR_TYPE = 25
_PNG_GREY_AND_ALPHA, _PNG_RGBA = 4, 6
_PNG_GREY = (0, _PNG_GREY_AND_ALPHA)
_OPAQUE = (1 << 16) - 1  # of alpha with 16 bits
# TIFF tags.
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _PLANES = 254, 258, 262, 284
_LARGEST_VALUES = (341, 281)  # SMaxSampleValue, MaxSampleValue
_DNG_VERSION = 50706
# The opposite of each byte order, in Pillow's letters: little, big and native.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# Bit depths of sensors whose values are stored in 16-bit samples.
_DEPTHS = (8, 10, 12, 14, 16)


class Note(NamedTuple):
    """What users should know about how a file was read."""

    guessed_bits: int | None = None  # significant bits that its 16-bit values were assumed to have
    first_of_several: bool = False  # whether it holds more pictures, which are ignored


class Seen(NamedTuple):
    """A picture as a model sees it."""

    pixels: UInt8[np.ndarray, "height width channels"]
    note: Note


def kind_of(head: bytes) -> str | None:
    """Return the format of a file by its first bytes; None if it is not known to be a picture.

    The format need not be one of `FORMATS`.
    """
    kinds = (kind for kind, regex in _BEGINNINGS.items() if regex.match(head))
    return next(kinds, None)


@cache
def _kind_of_ending(ending: str) -> str | None:
    kind = Image.registered_extensions().get(ending)
    if ending in _OTHER_ENDINGS:
        return ending
    return None if kind in _NO_PICTURES else kind


def kind_by_looks(path: Path) -> str | None:
    """Return the format that a file's name or first bytes suggest; None if they suggest none."""
    by_name = _kind_of_ending(path.suffix.lower())
    if by_name in FORMATS:
        return by_name
    try:
        with _opened(path) as file:
            return kind_of(file.read(_HEAD)) or by_name
    except files.failures(ValueError):
        return by_name


def content_of(path: Path) -> bytes:
    """Return the content of a file, or only its first bytes if its format is not in `FORMATS`.

    Other files in a folder of pictures, such as films, may be too large to be read.

    Raises:
      ValueError: The path is not a regular file; the message is the reason.
      OSError: The file cannot be read; TensorFlow has errors of its own for buckets.
    """
    with _opened(path) as file:
        head = file.read(_HEAD)
        return head + file.read() if kind_of(head) in FORMATS else head


def _opened(path: Path) -> BinaryIO:
    # Opening a named pipe would block forever, and `Path.is_file` takes it for a file.
    if not files.is_remote(path) and not os.path.isfile(path):  # noqa: PTH113
        raise ValueError("it is a broken link, or not a file")
    return path.open("rb")


def utf8(path: Path) -> str:
    """Return a path as valid text that fits on one line, whatever its bytes are."""
    text = path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: printable(found[0]), text)


def remarks(notes: Mapping[str, Note]) -> Iterator[str]:
    """Yield what users should know about how pictures were read.

    Args:
      notes: The notes on the pictures, by file name.
    """
    guessed = {name: note.guessed_bits for name, note in notes.items() if note.guessed_bits}
    counts = Counter(guessed.values())
    if set(counts) - {16}:
        shares = ", ".join(f"{count} have {bits}" for bits, count in sorted(counts.items()))
        yield (
            f"{len(guessed)} pictures have 16 bits a channel and do not state how many of these "
            f"are significant: each is assumed to have the fewest of "
            f"{', '.join(map(str, _DEPTHS))} that hold its largest value ({shares}): "
            f"{some(list(guessed))}"
        )
    several = [name for name, note in notes.items() if note.first_of_several]
    if several:
        yield (
            f"{len(several)} files contain more than one picture, and only the first is read: "
            f"{some(several)}"
        )


def normalised(content: bytes, *, max_pixels: int, grey: bool = False) -> bytes:
    """Return the picture that `read` returns, without the note."""
    return read(content, max_pixels=max_pixels, grey=grey)[0]


def read(content: bytes, *, max_pixels: int, grey: bool = False) -> tuple[bytes, Note]:
    """Return a picture as an upright and opaque JPEG or PNG, grey or RGB, of 8 bits a channel.

    A picture that is in this form already is returned unchanged. Only the first of several pictures
    in a file is read, transparency becomes white, and colour profiles are ignored. 16-bit values
    keep the upper 8 of their significant bits: of as many as the file states (sBIT in a PNG,
    SMaxSampleValue or MaxSampleValue in a TIFF), or else of the fewest of `_DEPTHS` that hold the
    largest value.

    Args:
      content: The content of the file.
      max_pixels: The largest number of pixels; a picture with more is not decoded.
      grey: Whether to convert the picture to grey.

    Returns:
      The content of the JPEG or PNG, and a note on how the picture was read.

    Raises:
      ValueError: The picture cannot be read; the message is the reason.
    """
    kind = kind_of(content[:_HEAD])
    if kind is None:
        raise ValueError(f"it is none of {', '.join(FORMATS)}")
    if kind not in FORMATS:
        raise ValueError(f"it is {kind}, which is not read: convert it to JPEG or PNG")
    with _reasoned(kind), Image.open(io.BytesIO(content), formats=(kind,)) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"its {image.width} x {image.height} pixels are more than data.max_pixels="
                f"{max_pixels}"
            )
        if isinstance(image, TiffImageFile) and _begins_with_a_preview(image, content):
            raise ValueError("it is a camera's raw file: convert it to JPEG or PNG")
        several = kind != "JPEG" and _is_one_of_several(image)
        modes = ("L",) if grey else ("L", "RGB")
        if image.mode in modes and _is_plain(image, content):
            return content, Note(first_of_several=several)
        shallow, guessed_bits = _of_8_bits(image, content)
        if _is_turned(image):
            shallow.getexif()[_ORIENTATION] = image.getexif()[_ORIENTATION]
            shallow = ImageOps.exif_transpose(shallow)
        grey = grey or shallow.mode in ("1", "L", "LA", "La")
        opaque = _opaque(shallow).convert("L" if grey else "RGB")
        file = io.BytesIO()
        # Built from the pixels alone, to leave out the profile and comments of the original.
        Image.fromarray(np.asarray(opaque)).save(file, "PNG", compress_level=1)
        return file.getvalue(), Note(guessed_bits, several)


def seen(content: bytes, shape: tuple[int, int, int], view: View, *, max_pixels: int) -> Seen:
    """Return a picture as evaluations see the images of a data set.

    Args:
      content: The content of the file.
      shape: The height, width and channels of the data set's images. If the view keeps images as
        they are stored, a picture of another shape is squeezed into this one.
      view: The view of the data set's images.
      max_pixels: The largest number of pixels; a picture with more is not decoded.

    Raises:
      ValueError: The picture cannot be read; the message is the reason.
    """
    image, note = read(content, max_pixels=max_pixels, grey=shape[-1] == 1)
    with _reasoned("JPEG or PNG"):
        if view.size:
            return Seen(pixels.evaluated(image, view), note)
        return Seen(pixels.whole(image, shape), note)


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """Return whether a grey or RGB picture can be used unchanged."""
    of_8_bits = image.format in _JPEG or (image.format == "PNG" and content[_PNG_BIT_DEPTH] == 8)
    return of_8_bits and not image.has_transparency_data and not _is_turned(image)


def _is_turned(image: Image.Image) -> bool:
    """Return whether EXIF says that a picture is not upright; unreadable EXIF counts as no."""
    try:
        return image.getexif().get(_ORIENTATION) in _TURNED
    except Exception:
        return False


def _is_one_of_several(image: Image.Image) -> bool:
    """Return whether the file holds several pictures; False if that cannot be read."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:
        return False


def _begins_with_a_preview(image: TiffImageFile, content: bytes) -> bool:
    """Return whether a TIFF is a camera's raw file, whose first picture is a small preview."""
    tags = image.tag_v2
    return bool(tags.get(_SUBFILE_TYPE, 0) & 1) or _DNG_VERSION in tags or content[8:10] == b"CR"


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image on a white background where it is transparent."""
    if image.mode == "La":  # Pillow converts it to nothing but LA
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


# 16-bit samples


class _Deep(NamedTuple):
    """A picture with 16 bits a channel."""

    samples: UInt16[np.ndarray, "height width channels"]
    mode: str  # Pillow's mode for the same channels of 8 bits
    said_bits: int | None = None  # number of significant bits, if the file states it
    negative: bool = False  # whether white is 0

    @property
    def colours(self) -> UInt16[np.ndarray, "height width colours"]:
        """The samples without alpha; with it if the colours are multiplied by it (mode RGBa)."""
        return self.samples[..., :-1] if self.mode in ("LA", "RGBA") else self.samples


def _of_8_bits(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, int | None]:
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
    bits = _bits(deep.colours, deep.said_bits)
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
    return shallow, None if bits == deep.said_bits else bits


def _bits(samples: UInt16[np.ndarray, "..."], said: int | None) -> int:
    """Return how many bits are significant: as stated if they hold the samples, or a guess."""
    largest = int(samples.max(initial=0))
    if said is not None and largest < 1 << said:
        return said
    return next(bits for bits in _DEPTHS if largest < 1 << bits)


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
    if image.format == "PNG" and content[_PNG_BIT_DEPTH] == 16:
        deep = _of_a_png(image, content)
        said = _significant_bits(content)
        # Values that exceed the stated bits were scaled to 16 bits, as the PNG standard demands.
        if said is not None and int(deep.colours.max()) >= 1 << said:
            said = 16
        return deep._replace(said_bits=said)
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
        header = content[12:_PNG_BIT_DEPTH] + bytes([8, _PNG_RGBA]) + content[26:29]
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
      image: The picture, which is not decoded yet.
      content: The content of its file.
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


@contextmanager
def _reasoned(kind: str) -> Iterator[None]:
    """Turn any exception in the block into a ValueError that gives the reason.

    Decoders raise exceptions of many types.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"it is damaged, or a {kind} of a kind that is not read") from error
    except Exception as error:
        raise ValueError(files.reason(error)) from error
