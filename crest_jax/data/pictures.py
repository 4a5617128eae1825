"""Normalising user-provided picture files, so that all of them are decoded in the same way.

Records hold the normalised files, and `crest_jax.predict` normalises its input likewise: a model
sees a picture as it saw those that it was trained on, whatever program wrote the file.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np
from etils.epath import Path
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from crest_jax import files
from crest_jax.data import pixels
from crest_jax.data.sixteen_bits import DEPTHS, PNG_BIT_DEPTH, to_8_bits
from crest_jax.data.views import View
from crest_jax.wording import printable, some

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
# TIFF tags.
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_ORIENTATION = 0x0112  # tag of EXIF
_TURNED = range(2, 9)  # its values for pictures that are not upright


class Note(NamedTuple):
    """Remarks on how a file was read, which users should know."""

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
      notes: the notes on the pictures, by file name.
    """
    guessed = {name: note.guessed_bits for name, note in notes.items() if note.guessed_bits}
    counts = Counter(guessed.values())
    if set(counts) - {16}:
        shares = ", ".join(f"{count} have {bits}" for bits, count in sorted(counts.items()))
        yield (
            f"{len(guessed)} pictures have 16 bits a channel and do not state how many of these "
            f"are significant: each is assumed to have the fewest of "
            f"{', '.join(map(str, DEPTHS))} that hold its largest value ({shares}): "
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
    SMaxSampleValue or MaxSampleValue in a TIFF), or else of the fewest of `DEPTHS` that hold the
    largest value.

    Args:
      content: the content of the file.
      max_pixels: the largest number of pixels; a picture with more is not decoded.
      grey: whether to convert the picture to grey.

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
        shallow, guessed_bits = to_8_bits(image, content)
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
      content: the content of the file.
      shape: the height, width and channels of the data set's images. If the view keeps images as
        they are stored, a picture of another shape is squeezed into this one.
      view: the view of the data set's images.
      max_pixels: the largest number of pixels; a picture with more is not decoded.

    Raises:
      ValueError: The picture cannot be read; the message is the reason.
    """
    image, note = read(content, max_pixels=max_pixels, grey=shape[-1] == 1)
    with _reasoned("JPEG or PNG"):
        if view.size:
            return Seen(pixels.decode_for_evaluation(image, view), note)
        return Seen(pixels.whole(image, shape), note)


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """Return whether a grey or RGB picture can be used unchanged."""
    of_8_bits = image.format in _JPEG or (image.format == "PNG" and content[PNG_BIT_DEPTH] == 8)
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
