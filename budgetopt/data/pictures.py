"""One encoded picture → its pixels, by Pillow. Imports little: worker processes start with this."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

from budgetopt.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")  # those that no other program has to read
GREY = {"1", "L", "LA"}  # Pillow's modes; 16-bit and float ones are refused, since Pillow cuts them off at 255
COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}


def opened(data: bytes) -> Any:
    """A `PIL.Image` whose header alone is read. Raises whatever the decoder finds first, and `InputError` for pictures
    that do not have 8 bits a channel."""
    from PIL import Image

    if not data:
        raise InputError("no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, such as damaged EXIF
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.mode not in GREY | COLOUR:
        raise InputError(f"pixels of type {image.mode}, expected 8 bits a channel")
    return image


def is_grey(image: Any) -> bool:
    return image.mode in GREY


def reason(error: Exception) -> str:
    """One line of whatever a decoder raised."""
    text = re.sub(r" ?<[^>]*object at 0x[^>]*>", "", str(error)).strip()  # Pillow names the stream by its address
    return text.splitlines()[0] if text else type(error).__name__
