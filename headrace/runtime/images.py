"""PNG and JPEG files to grey pixels, defensively: what a client sends is looked at before it is decoded."""

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
"""Of all pictures of one request together: a file of few bytes may unpack to gigabytes."""


class BadPicture(ValueError):
    """A file that is no picture, or none that may be decoded; the message says which."""


def is_picture(raw: bytes) -> bool:
    """Whether `raw` begins as a PNG or JPEG file does."""
    return raw.startswith(b"\x89PNG\r\n\x1a\n") or (raw.startswith(b"\xff\xd8\xff") and raw[3:4] >= b"\xc0")


def decode(raw: bytes, shape: tuple[int, int], most_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], int]:
    """Grey pixels of `shape` `(height, width)` of a PNG or JPEG file, and how many pixels the file holds.

    A picture of another size is stretched to this one; what is transparent counts as black; a photograph is turned as its
    EXIF data says. Light stays light: nothing is inverted.

    Raises:
        BadPicture: too large in bytes or pixels, of another format, or damaged.
    """
    from PIL import Image, ImageOps

    height, width = shape
    if len(raw) > MAX_FILE_BYTES:
        raise BadPicture(f"a file of {len(raw):,} bytes; at most {MAX_FILE_BYTES:,} are taken")
    try:
        # Opening reads the header alone. Whatever a damaged file makes Pillow raise, it is the file's fault.
        picture: pillow.Image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
        pixels = picture.width * picture.height
    except Image.DecompressionBombError:
        raise BadPicture(f"a picture of far more pixels; at most {most_pixels:,} are taken") from None
    except Exception as error:
        raise BadPicture(f"a file that cannot be read ({_short(error)})") from None
    if pixels > most_pixels:
        raise BadPicture(f"{picture.width} × {picture.height} pixels; at most {most_pixels:,} are taken")
    try:
        picture.draft("L", (4 * width, 4 * height))  # a large JPEG is decoded at a fraction of its size
        picture = _as_grey(ImageOps.exif_transpose(picture))
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BOX)
        return np.asarray(picture, np.uint8), pixels
    except Exception as error:
        raise BadPicture(f"a damaged file ({_short(error)})") from None


def _as_grey(picture: pillow.Image) -> pillow.Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow would cut at 255 where it should scale
        return Image.fromarray((np.asarray(picture, np.int64) // 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return picture.convert("L")


def _short(error: Any) -> str:
    return str(error).split(" <")[0][:80] or type(error).__name__
