"""Checks that a file is a whole picture without decoding all of it, so that a set is ingested at the speed of the disk."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from headrace.runtime.images import (
    FORMATS,
    InvalidImage,
    PictureFormat,
    decode_picture,
    format_of,
    is_image_file,
    is_webp_file,
    open_picture,
)

MAX_BYTES = 64 * 2**20
"""Largest file of a picture."""
MAX_PIXELS = 2**26
"""Most pixels of a picture, 8192 × 8192: decoded they take a quarter of a gigabyte."""
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
OTHER_ENDINGS = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg")
"""Pictures in other formats: they are reported instead of ignored."""
TAIL_BYTES = 4096
"""Where the end of a JPEG is looked for: some cameras write more behind it."""
SMALL = PictureFormat(height=16, width=16, channels=1, fit="resize", interpolation="nearest")


def is_picture(path: str) -> bool:
    """Whether a file is meant to be a picture, by the ending of its name."""
    return PurePosixPath(path).suffix.lower() in ENDINGS + OTHER_ENDINGS


def check_picture(raw: bytes) -> tuple[int, int]:
    """Returns width and height in the file.

    Of a PNG all checksums are compared, and of the other formats the end is looked for; only a file without an end is decoded.

    Raises:
        InvalidImage: not a JPEG, PNG or WebP file, too large, truncated or damaged.
    """
    if not raw:
        raise InvalidImage("the file is empty (0 bytes)")
    if not is_image_file(raw) and not is_webp_file(raw):
        raise InvalidImage(f"{format_of(raw) or 'a file of another format'}; JPEG, PNG and WebP can be read")
    picture = open_picture(raw, FORMATS, MAX_BYTES, MAX_PIXELS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InvalidImage(f"{width} × {height} pixels; at most {MAX_PIXELS:,} are allowed")
    if not _has_end(raw, picture.format):
        decode_picture(raw, SMALL, MAX_PIXELS, MAX_BYTES)
    elif picture.format == "PNG":
        _verify(raw)
    return width, height


def _has_end(raw: bytes, kind: str | None) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" in raw[-TAIL_BYTES:]
    if kind == "WEBP":
        return len(raw) >= int.from_bytes(raw[4:8], "little") + 8
    return b"IEND" in raw[-TAIL_BYTES:]


def _verify(raw: bytes) -> None:
    from PIL import Image

    try:
        Image.open(io.BytesIO(raw), formats=("PNG",)).verify()  # reads to the end, so the picture is opened for it
    except Exception as error:  # a damaged file can make Pillow raise almost any exception
        raise InvalidImage(f"a damaged file ({str(error)[:80] or type(error).__name__})") from None
