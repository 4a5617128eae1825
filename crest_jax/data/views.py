"""Views of images: how they are cropped, resized and converted before a model sees them."""

from typing import NamedTuple

from ml_collections import ConfigDict

# The side of the central square as a fraction of an image's shorter side; the rest is margin.
CENTRAL_PART = 0.875


class View(NamedTuple):
    """A way to crop, resize and convert images."""

    size: int = 0  # side in pixels of the resulting square; 0 for images as they are stored
    crop: str = "none"  # the part of the image that is used: none (all of it), central or random
    channels: int = 3  # of the square: 1 for grey, 3 for colour


AS_STORED = View()


def view_of(data: ConfigDict, channels: int) -> View:
    """Return the view that a config's `data` asks for, of images with this many channels."""
    return View(data.image_size, data.crop, channels)
