"""Decodes PNG and JPEG files of clients into grey pixels, after checking their size and format."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image as pillow

MEDIA_TYPES = ("image/png", "image/jpeg")
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
"""Most pixels of all images of one request together: a small file may decompress to gigabytes."""


class InvalidImage(ValueError):
    """A file that is not an image, or one that is too large; the message has the reason."""


def is_image_file(raw: bytes) -> bool:
    """Whether `raw` begins like a PNG or JPEG file."""
    return raw.startswith(b"\x89PNG\r\n\x1a\n") or (raw.startswith(b"\xff\xd8\xff") and raw[3:4] >= b"\xc0")


def decode(raw: bytes, shape: tuple[int, int], max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], int]:
    """Decodes a PNG or JPEG file into grey pixels of `shape` `(height, width)`; also returns the number of pixels in the file.

    An image of another size is stretched to this one. Transparent pixels become black, photographs are rotated by their EXIF
    data, and nothing is inverted.

    Raises:
        InvalidImage: too large in bytes or pixels, of another format, or damaged.
    """
    from PIL import Image, ImageOps

    height, width = shape
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidImage(f"a file of {len(raw):,} bytes; at most {MAX_FILE_BYTES:,} are allowed")
    try:
        # Opening only reads the header. A damaged file can make Pillow raise almost any exception.
        picture: pillow.Image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
        pixels = picture.width * picture.height
    except Image.DecompressionBombError:
        raise InvalidImage(f"an image of far more pixels; at most {max_pixels:,} are allowed") from None
    except Exception as error:
        raise InvalidImage(f"a file that cannot be read ({_short(error)})") from None
    if pixels > max_pixels:
        raise InvalidImage(f"{picture.width} × {picture.height} pixels; at most {max_pixels:,} are allowed")
    try:
        picture.draft("L", (4 * width, 4 * height))  # a large JPEG is decoded at a fraction of its size
        picture = _as_grey(ImageOps.exif_transpose(picture))
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BOX)
        return np.asarray(picture, np.uint8), pixels
    except Exception as error:
        raise InvalidImage(f"a damaged file ({_short(error)})") from None


def _as_grey(picture: pillow.Image) -> pillow.Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits per pixel: Pillow would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(picture, np.int64) // 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return picture.convert("L")


def _short(error: Any) -> str:
    return str(error).split(" <")[0][:80] or type(error).__name__
