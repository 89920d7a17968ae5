"""Reads images in IDX, the format of MNIST: one file of pixels and one of labels (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

UNSIGNED_BYTES = 0x08
"""The only supported type of values; the format has others, which no image set uses."""


def read_images(images: Path, labels: Path, target: str, size: tuple[int, int] | None) -> pa.Table:
    """Reads one row per image: `pixel_0` … row by row (uint8), and its label in the column `target` (int64).

    Args:
        size: required height and width of the images.

    Raises:
        DataError: a file is truncated or not an IDX file, the counts differ, or the images have another size.
    """
    import pyarrow as pa

    pixels, label = read_idx(images, 3), read_idx(labels, 1)
    count, height, width = pixels.shape
    if count != len(label):
        raise DataError(
            f"{count:,} images and {len(label):,} labels: every image needs one label",
            where=f"{images}, {labels}",
            hint="use two files that belong together in data.source",
        )
    if size is not None and size != (height, width):
        raise DataError(
            f"the images are {height} × {width}, and data.image is {size[0]} × {size[1]}",
            where=str(images),
            hint=f"write `image: [{height}, {width}]` under data",
        )
    columns = np.ascontiguousarray(pixels.reshape(count, height * width).T)  # makes each column of the table contiguous
    named: dict[str, Any] = {f"pixel_{i}": column for i, column in enumerate(columns)}
    return pa.table({**named, target: label.astype(np.int64)})


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads the array in an IDX file, which may be compressed with gzip.

    Raises:
        DataError: its length is not that of its header, or it is not an IDX file of unsigned bytes with these dimensions.
    """
    raw = _bytes_of(path)
    magic = raw[:4].tobytes()
    if len(raw) < 4 + 4 * dimensions or magic != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        wanted = {1: "labels (idx1-ubyte)", 3: "images (idx3-ubyte)"}[dimensions]
        raise DataError(
            f"not an IDX file of {wanted}: it begins with {magic.hex(' ')}, not 00 00 08 {dimensions:02x}",
            where=str(path),
            hint="set `images` to the file of images and `labels` to the file of labels in data.source",
        )
    shape = tuple(int(n) for n in raw[4 : 4 + 4 * dimensions].view(">u4"))
    body = raw[4 + 4 * dimensions :]
    if len(body) != math.prod(shape):
        raise DataError(
            f"its header promises {' × '.join(map(str, shape))} = {math.prod(shape):,} values, and it has {len(body):,}",
            where=str(path),
            hint="fetch it again; it may be truncated",
        )
    return body.reshape(shape)


def _bytes_of(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        with gzip.open(path) as opened:
            return np.frombuffer(opened.read(), np.uint8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the gzip file is truncated or damaged: {error}", where=str(path), hint="fetch it again") from None
