"""Images as clients send them, in base64 or as files, and the pixels that they become."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.images import (
    MAX_PIXELS,
    InvalidImage,
    PictureFormat,
    decode,
    decode_picture,
    format_of,
    is_image_file,
    is_webp_file,
)
from headrace.runtime.violations import ContractViolation

FROM_URL_ALPHABET = str.maketrans("-_", "+/")
"""From the characters that base64 has in URLs to the usual ones (RFC 4648, section 5)."""


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of one field."""

    shape: tuple[int, ...]
    """Of one image: `(height, width)`, or `(height, width, channels)`."""
    picture: PictureFormat | None
    """How files become pixels; None for models of pixels."""
    takes_files: bool
    """Whether a model of pixels takes PNG and JPEG files."""
    expected: str
    """What a value has to be, for errors."""

    def arrays(self, values: list[Any], start: str, name: str) -> list[Any]:
        """Replaces base64 and files by arrays of `shape`; other values stay as they are.

        Args:
            start: the beginning of paths in errors.
            name: of the field.

        Raises:
            ContractViolation: a value is not such an image, or the pictures have too many pixels together.
        """
        if not any(isinstance(value, str | bytes) for value in values):
            return values
        left = MAX_PIXELS
        found = []
        for i, value in enumerate(values):
            if isinstance(value, str | bytes):
                value, pixels = self._array(value, f"{start}.{i}.{name}")
                if pixels:  # a file; a small one may become a large picture
                    left -= max(pixels, math.prod(self.shape[:2]))
                if left < 0 and i:  # no row is at fault: the request is refused, and batches send fewer rows together
                    raise ContractViolation(start, f"pictures of at most {MAX_PIXELS:,} pixels together", "more")
            found.append(value)
        return found

    def _array(self, value: str | bytes, path: str) -> tuple[NDArray[np.uint8], int]:
        """Decodes base64 of raw bytes in row-major order, or a file; also returns the number of pixels of a file."""
        try:
            raw = value if isinstance(value, bytes) else _decode_base64(value)
        except (binascii.Error, ValueError):  # ValueError: non-ASCII characters
            raise ContractViolation(path, self.expected, "text that is not base64") from None
        if self.picture is not None and (is_image_file(raw) or is_webp_file(raw)):
            try:
                return decode_picture(raw, self.picture, MAX_PIXELS)
            except InvalidImage as error:
                expected = f"a PNG, JPEG or WebP file of at most {MAX_PIXELS:,} pixels"
                raise ContractViolation(path, expected, str(error)) from None
        if self.picture is None and self.takes_files and is_image_file(raw):
            try:
                return decode(raw, (self.shape[0], self.shape[1]), MAX_PIXELS)
            except InvalidImage as error:
                raise ContractViolation(path, f"a PNG or JPEG file of at most {MAX_PIXELS:,} pixels", str(error)) from None
        if isinstance(value, bytes) or len(raw) != math.prod(self.shape):
            raise ContractViolation(path, self.expected, format_of(raw) or f"{len(raw):,} bytes of another format")
        return np.frombuffer(raw, np.uint8).reshape(self.shape), 0


def _decode_base64(text: str) -> bytes:
    """Decodes base64, also with line breaks, as a `data:` URL, or in the alphabet for URLs, which often has no padding.

    Raises:
        ValueError: the text is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        head, comma, rest = text.partition(",")
        if head.startswith("data:") and head.endswith(";base64") and comma:
            text = rest
        text = text.replace("\r", "").replace("\n", "").translate(FROM_URL_ALPHABET)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
