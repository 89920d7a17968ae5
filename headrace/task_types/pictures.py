"""Decodes many pictures in files, with the function of the service, in several threads."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.runtime.images import InvalidImage, PictureFormat, decode_picture

MAX_BYTES, MAX_PIXELS = 64 * 2**20, 2**26
"""Limits of a picture that was ingested; those of a request are lower."""
SHOWN = 10


def decode_pictures(
    raws: Sequence[bytes], paths: Sequence[str], threads: int | None = None, *, to: PictureFormat
) -> NDArray[np.uint8]:
    """Returns the pixels of pictures, `(rows, *to.shape)`.

    Args:
        threads: by default one for each core. Pillow decodes without Python's lock.

    Raises:
        DataError: pictures are damaged; the message has their paths.
    """
    found = np.empty((len(raws), *to.shape), np.uint8)
    broken: dict[str, str] = {}

    def decode(i: int) -> None:
        try:
            found[i] = decode_picture(raws[i], to, MAX_PIXELS, MAX_BYTES)[0]
        except InvalidImage as error:
            broken[paths[i]] = str(error)

    threads = threads or len(os.sched_getaffinity(0))
    if threads == 1:
        for i in range(len(raws)):
            decode(i)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, range(len(raws))))
    if broken:
        names = sorted(broken)
        lines = [f"  {name}: {broken[name]}" for name in names[:SHOWN]]
        raise DataError(
            f"{len(broken):,} pictures cannot be decoded:\n" + "\n".join(lines),
            where="data.source",
            hint="remove or replace these files, then run the same command",
        )
    return found


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns pixels `(height, width)` or `(height, width, 3)` as a PNG, which loses nothing."""
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()
