"""Thumbnails of pictures: what a sample of requests and a reference profile keep of one. Light."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 8
"""Rows and columns of a thumbnail: a face or a page of writing cannot be recognised in it."""


def thumbnail(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns the means of at most 8 × 8 blocks of a picture `(height, width)` or `(height, width, channels)`, as one row of
    numbers."""
    height, width = pixels.shape[:2]
    top, left = _starts(height), _starts(width)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float32), top, axis=0), left, axis=1)
    sizes = np.diff([*top, height])[:, None] * np.diff([*left, width])
    means = sums / sizes.reshape(sizes.shape + (1,) * (sums.ndim - 2))
    found: NDArray[np.uint8] = np.clip(np.rint(means), 0, 255).astype(np.uint8).ravel()
    return found


def to_text(values: NDArray[np.uint8]) -> str:
    """Returns a thumbnail in base64."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def from_text(text: Any) -> NDArray[np.uint8] | None:
    """Returns a thumbnail from base64; None for what is none."""
    if not isinstance(text, str):
        return None
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError):
        return None


def _starts(length: int) -> NDArray[np.int64]:
    """Returns where blocks of about equal size begin."""
    blocks = min(SIDE, length)
    return (np.arange(blocks) * length // blocks).astype(np.int64)
