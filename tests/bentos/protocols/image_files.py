"""Image files in memory."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def file_of(pixels: Any, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind)
    return held.getvalue()
