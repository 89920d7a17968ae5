"""Decodes picture files into pixels, after checking their size and format: what training and serving share."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from PIL import Image as pillow

MEDIA_TYPES = ("image/png", "image/jpeg")
WEBP = "image/webp"
"""Accepted by fields with a `PictureFormat`."""
OTHER_FORMATS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG"}
"""How files of other kinds begin."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""What `decode_picture` reads, by Pillow's names."""
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_PIXELS = 4096 * 4096
"""Most pixels of all images of one request together: a small file may decompress to gigabytes."""


class InvalidImage(ValueError):
    """A file that is not an image, or one that is too large; the message has the reason."""


Fit = Literal["resize", "crop", "pad"]
Interpolation = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]


class PictureFormat(BaseModel):
    """How a picture of any size becomes pixels, the same in training and in the service."""

    model_config = ConfigDict(frozen=True)
    height: int
    width: int
    channels: Literal[1, 3]
    """1: grey; 3: red, green, blue."""
    fit: Fit
    """How a picture of another shape is fitted: stretched (`resize`), its middle cut out (`crop`), or a frame added (`pad`)."""
    interpolation: Interpolation
    background: int = 0
    """Grey value from 0 to 255 behind transparent pixels and in the frame of `pad`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels: `(height, width)`, in colour `(height, width, 3)`."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)


def is_image_file(raw: bytes) -> bool:
    """Whether `raw` begins like a PNG or JPEG file."""
    return raw.startswith(b"\x89PNG\r\n\x1a\n") or (raw.startswith(b"\xff\xd8\xff") and raw[3:4] >= b"\xc0")


def is_webp_file(raw: bytes) -> bool:
    """Whether `raw` begins like a WebP file."""
    return raw.startswith(b"RIFF") and raw[8:12] == b"WEBP"


def format_of(raw: bytes) -> str | None:
    """Returns which other kind of file `raw` begins like, for messages, for example "a GIF file"; None if it is not known."""
    if is_webp_file(raw):
        return "a WebP file"
    if raw.startswith(b"BM") and raw[6:10] == b"\0\0\0\0":  # the name of a column may begin with BM
        return "a BMP file"
    if raw[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    return next((f"a {name} file" for start, name in OTHER_FORMATS.items() if raw.startswith(start)), None)


def decode(raw: bytes, shape: tuple[int, int], max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], int]:
    """Decodes a PNG or JPEG file into grey pixels of `shape` `(height, width)`; also returns the number of pixels in the file.

    An image of another size is stretched to this one. Transparent pixels become black, photographs are rotated by their EXIF
    data, and nothing is inverted.

    Raises:
        InvalidImage: too large in bytes or pixels, of another format, or damaged.
    """
    from PIL import Image, ImageOps

    height, width = shape
    picture = open_picture(raw, ("PNG", "JPEG"), MAX_FILE_BYTES, max_pixels)
    pixels = picture.width * picture.height
    _refuse_pixels(picture, pixels, max_pixels)
    try:
        picture.draft("L", (4 * width, 4 * height))  # a large JPEG is decoded at a fraction of its size
        picture = _in_mode(ImageOps.exif_transpose(picture), "L", 0)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BOX)
        return np.asarray(picture, np.uint8), pixels
    except Exception as error:
        raise InvalidImage(f"a damaged file ({_short(error)})") from None


def decode_picture(
    raw: bytes, to: PictureFormat, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> tuple[NDArray[np.uint8], int]:
    """Decodes a PNG, JPEG or WebP file of any size into pixels of `to.shape`; also returns the number of pixels that were
    decoded. A large JPEG, unless it is progressive, is decoded at a fraction of its size.

    Photographs are rotated by their EXIF data, and of an animation the first picture is taken.

    Raises:
        InvalidImage: too large in bytes or pixels, of another format, or damaged.
    """
    from PIL import ImageOps

    picture = open_picture(raw, FORMATS, max_bytes, max_pixels)
    mode = "L" if to.channels == 1 else "RGB"
    try:
        if picture.format == "JPEG" and not picture.info.get("progressive"):
            side = 2 * max(to.height, to.width)
            picture.draft(mode, (side, side))
    except Exception as error:
        raise InvalidImage(f"a damaged file ({_short(error)})") from None
    pixels = picture.width * picture.height
    _refuse_pixels(picture, pixels, max_pixels)
    try:
        picture = _in_mode(ImageOps.exif_transpose(picture), mode, to.background)
        return np.asarray(_fitted(picture, to), np.uint8), pixels
    except Exception as error:
        raise InvalidImage(f"a damaged file ({_short(error)})") from None


def open_picture(raw: bytes, formats: tuple[str, ...], max_bytes: int, max_pixels: int) -> pillow.Image:
    """Reads the header of a file; no pixel is decoded.

    Raises:
        InvalidImage: too large in bytes, far too large in pixels, of another format, or damaged.
    """
    from PIL import Image

    if len(raw) > max_bytes:
        raise InvalidImage(f"a file of {len(raw):,} bytes; at most {max_bytes:,} are allowed")
    try:
        # A damaged file can make Pillow raise almost any exception.
        return Image.open(io.BytesIO(raw), formats=formats)
    except Image.DecompressionBombError:
        raise InvalidImage(f"an image of far more pixels; at most {max_pixels:,} are allowed") from None
    except Exception as error:
        raise InvalidImage(f"a file that cannot be read ({_short(error)})") from None


def _refuse_pixels(picture: pillow.Image, pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise InvalidImage(f"{picture.width} × {picture.height} pixels; at most {max_pixels:,} are allowed")


def _fitted(picture: pillow.Image, to: PictureFormat) -> pillow.Image:
    from PIL import Image, ImageOps

    size, method = (to.width, to.height), Image.Resampling[to.interpolation.upper()]
    if picture.size == size:
        return picture
    if to.fit == "resize":
        return picture.resize(size, method)
    if to.fit == "crop":
        return ImageOps.fit(picture, size, method)
    scale = min(to.width / picture.width, to.height / picture.height)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    framed = Image.new(picture.mode, size, to.background if to.channels == 1 else (to.background,) * 3)
    framed.paste(picture.resize(inner, method), ((to.width - inner[0]) // 2, (to.height - inner[1]) // 2))
    return framed


def _in_mode(picture: pillow.Image, mode: str, background: int) -> pillow.Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits per pixel: Pillow would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(picture, np.int64) // 257).clip(0, 255).astype(np.uint8)).convert(mode)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (*(background,) * 3, 255)), layer)
    return picture.convert(mode)


def _short(error: Any) -> str:
    return str(error).split(" <")[0][:80] or type(error).__name__
