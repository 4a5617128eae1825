"""Picture files as people have them, made into files that TensorFlow decodes in one way.

Records hold what this makes of a file, and `crest_jax.predict` looks at it too: a model sees a
picture as it saw those that it was trained on, whatever wrote the file.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from etils.epath import Path
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from crest_jax import files
from crest_jax.data import decode
from crest_jax.data.decode import View
from crest_jax.errors import CrestError

# Raster formats that Pillow decodes by itself; others start further programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# MPO is a JPEG with more behind it, as telephones write them.
_JPEG = ("JPEG", "MPO")
_ORIENTATION = 0x0112  # in EXIF
_TURNED = range(2, 9)
_PNG_BIT_DEPTH = 24  # where the header has it


def below(folder: Path) -> list[Path]:
    """Picture files below a folder, by their names' endings, sorted."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    return sorted(path for path in files.below(folder) if path.suffix.lower() in endings)


def utf8(path: Path) -> str:
    """A path as text that can be written down, whatever its bytes are."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")


def normalised(content: bytes, *, max_pixels: int, grey: bool = False) -> bytes:
    """Returns a picture as a JPEG or PNG of 8 bits a channel, grey or RGB, upright and opaque.

    One that is so already is returned as it is. Of an animation this is the first image; what is
    transparent becomes white; colour profiles are not looked at.

    Args:
      content: of the file.
      max_pixels: a picture of more is not decoded.
      grey: whether to make it grey.

    Raises:
      ValueError: it cannot be; the message is the reason.
    """
    with _reasoned(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"its {image.width} x {image.height} pixels are more than data.max_pixels="
                f"{max_pixels}"
            )
        modes = ("L",) if grey else ("L", "RGB")
        if image.mode in modes and _is_plain(image, content):
            return content
        upright = ImageOps.exif_transpose(image) if _is_turned(image) else image
        upright = _opaque(upright, image.format)
        upright = upright.convert("L" if grey or upright.mode in ("1", "L") else "RGB")
        file = io.BytesIO()
        # Anew from its pixels: without the profile and remarks of the original.
        Image.fromarray(np.asarray(upright)).save(file, "PNG", compress_level=1)
        return file.getvalue()


def check_decodes(content: bytes) -> None:
    """Finds out whether a JPEG or PNG is whole.

    Raises:
      ValueError: TensorFlow does not decode it.
    """
    with _reasoned():
        decode.stored(content)


def seen(
    content: bytes, shape: tuple[int, int, int], view: View, *, max_pixels: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns a picture as evaluations see those of a data set.

    Args:
      content: of the file.
      shape: height, width and channels of the data set's images. Where they are as they are stored,
        a picture of another shape is squeezed into this.
      view: of the data set's images.
      max_pixels: a picture of more is not decoded.

    Raises:
      ValueError: it cannot be read; the message is the reason.
    """
    image = normalised(content, max_pixels=max_pixels, grey=shape[-1] == 1)
    with _reasoned():
        pixels = decode.evaluated(image, view) if view.size else decode.whole(image, shape)
        return pixels.numpy()


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """Whether a grey or RGB picture needs nothing done to it."""
    of_8_bits = image.format in _JPEG or (image.format == "PNG" and content[_PNG_BIT_DEPTH] == 8)
    return of_8_bits and not image.has_transparency_data and not _is_turned(image)


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says so; where it says nothing that can be read, the picture is as it is."""
    try:
        return image.getexif().get(_ORIENTATION) in _TURNED
    except CrestError:  # SIGTERM
        raise
    except Exception:
        return False


def _opaque(image: Image.Image, stored_as: str | None) -> Image.Image:
    """The image with 8 bits a channel, on white where it is transparent."""
    # Pillow has the 16 bits of some files in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_as in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}): convert it to 8")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


@contextmanager
def _reasoned() -> Iterator[None]:
    """Turns whatever decoders raise, which is much, into a ValueError that says why."""
    try:
        yield
    except CrestError:  # SIGTERM
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    except tf.errors.OpError as error:
        raise ValueError("it is damaged, or cut short") from error
    except Exception as error:
        raise ValueError(files.reason(error)) from error
