"""Decoding a JPEG with Pillow to the same pixels as with TensorFlow.

TensorFlow asks libjpeg for its fast inverse DCT, and for chroma that is interpolated. Pillow has
the fast DCT only along with chroma that is repeated ("draft"). The samples of the chroma are
therefore taken from among the repeated ones, and interpolated and converted here as libjpeg does.
"""

import numpy as np
from jaxtyping import Int16, Integer, UInt8
from PIL.JpegImagePlugin import JpegImageFile

_DRAFT = (1, 1)  # for Pillow's decoder: full size, and a draft
# The factors in height and width by which libjpeg interpolates; it repeats samples otherwise.
_INTERPOLATED = ((1, 2), (2, 1), (2, 2))


def decoded(picture: JpegImageFile) -> UInt8[np.ndarray, "height width channels"]:
    """Decode a JPEG to grey or RGB.

    Args:
      picture: a JPEG that Pillow has opened, but not decoded yet.
    """
    if picture.mode == "CMYK":
        return _from_cmyk(picture)
    if picture.mode == "RGB" and not _is_stored_as_rgb(picture):
        picture.draft("YCbCr", None)
    picture.decoderconfig = _DRAFT
    # Decoding changes the picture's mode to that of the samples.
    samples = np.atleast_3d(np.asarray(picture))
    height, width, channels = samples.shape
    if channels == 1:
        return samples
    planes = [
        _interpolated(samples[::down, ::across, channel], down, across)[:height, :width]
        if (down, across) in _INTERPOLATED
        else samples[..., channel]
        for channel, (down, across) in enumerate(_factors(picture))
    ]
    return _rgb(*planes) if picture.mode == "YCbCr" else np.stack(planes, axis=-1).astype(np.uint8)


def _is_stored_as_rgb(picture: JpegImageFile) -> bool:
    """Return whether the components are red, green and blue according to libjpeg's rules."""
    if "jfif" in picture.info:
        return False
    if "adobe" in picture.info:
        return picture.info["adobe_transform"] == 0
    return bytes(layer[0] for layer in picture.layer) == b"RGB"


def _factors(picture: JpegImageFile) -> list[tuple[int, int]]:
    """Return the factors by which each component is smaller than the picture, height first."""
    highest, widest = (max(layer[axis] for layer in picture.layer) for axis in (2, 1))
    return [(highest // down, widest // across) for _, across, down, _ in picture.layer]


def _interpolated(
    plane: UInt8[np.ndarray, "height width"], down: int, across: int
) -> Int16[np.ndarray, "{down}*height {across}*width"]:
    """Enlarge a component as libjpeg does, by factors among `_INTERPOLATED`.

    A sample counts three times as much as the next nearest one in each direction. Sums that end in
    a half are rounded up and down in turn.
    """
    if across == 2 and plane.shape[1] <= 2:
        return plane.repeat(down, axis=0).repeat(across, axis=1).astype(np.int16)
    sums = plane.astype(np.int16)
    if down == 2:
        sums = _doubled(sums)
    if across == 2:
        sums = _doubled(sums.T).T
    if (down, across) == (2, 2):
        sums[:, ::2] += 8
        sums[:, 1::2] += 7
        return sums >> 4
    along = sums if down == 2 else sums.T
    along[::2] += 1
    along[1::2] += 2
    return sums >> 2


def _doubled(rows: Int16[np.ndarray, "rows others"]) -> Int16[np.ndarray, "2*rows others"]:
    """Return two sums for each row: three times the row, plus the row before or after it."""
    around = np.pad(rows, ((1, 1), (0, 0)), "edge")
    both = np.stack([3 * rows + around[:-2], 3 * rows + around[2:]], axis=1)
    return both.reshape(-1, rows.shape[1])


def _rgb(
    luma: Integer[np.ndarray, "height width"],
    blue: Integer[np.ndarray, "height width"],
    red: Integer[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Convert YCbCr to RGB in libjpeg's arithmetic, with 16 binary places."""
    chroma = np.arange(-128, 128)
    half = 1 << 15
    of_red = (_fixed(1.402) * chroma + half) >> 16
    of_blue = (_fixed(1.772) * chroma + half) >> 16
    green_of_blue = (half - _fixed(0.34414) * chroma).astype(np.int32)
    green_of_red = (-_fixed(0.71414) * chroma).astype(np.int32)
    rgb = np.empty((*luma.shape, 3), np.int16)
    rgb[..., 0] = of_red.astype(np.int16)[red]
    rgb[..., 1] = (green_of_blue[blue] + green_of_red[red]) >> 16
    rgb[..., 2] = of_blue.astype(np.int16)[blue]
    rgb += luma[..., None]
    return rgb.clip(0, 255).astype(np.uint8)


def _fixed(number: float) -> int:
    return int(number * (1 << 16) + 0.5)


def _from_cmyk(picture: JpegImageFile) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG of CMYK inks to RGB.

    If their chroma is stored at a smaller size, which is rare, pixels may differ from TensorFlow's
    by a few grey levels, since Pillow converts it before it could be interpolated here.
    """
    if set(_factors(picture)) == {(1, 1)}:
        picture.decoderconfig = _DRAFT
    inks = np.asarray(picture).astype(np.uint16)  # Pillow inverts them, as Adobe's are
    light = 255 - inks if "adobe" in picture.info else inks
    return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
