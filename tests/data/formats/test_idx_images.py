from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from headrace.data.formats.idx_images import read_images
from headrace.errors import DataError

PIXELS = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
LABELS = np.array([7, 0, 9], np.uint8)


def idx(path: Path, values: np.ndarray) -> Path:
    """Written by the description of the format, not by our reader's inverse: big-endian magic number and sizes."""
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return idx(tmp_path / "t-images-idx3-ubyte", PIXELS), idx(tmp_path / "t-labels-idx1-ubyte", LABELS)


def test_a_row_is_an_image_row_by_row_with_its_label(pair: tuple[Path, Path]) -> None:
    table = read_images(*pair, "digit", (2, 4))
    assert table.column_names == [*(f"pixel_{i}" for i in range(8)), "digit"]
    assert [str(t) for t in table.schema.types] == ["uint8"] * 8 + ["int64"]
    assert [list(row.values()) for row in table.to_pylist()] == [
        [0, 1, 2, 3, 4, 5, 6, 7, 7],
        [8, 9, 10, 11, 12, 13, 14, 15, 0],
        [16, 17, 18, 19, 20, 21, 22, 23, 9],
    ]


def test_compressed_files_give_the_same_table(pair: tuple[Path, Path], tmp_path: Path) -> None:
    packed = [tmp_path / f"{path.name}.gz" for path in pair]
    for path, to in zip(pair, packed, strict=True):
        to.write_bytes(gzip.compress(path.read_bytes()))
    assert read_images(packed[0], packed[1], "y", None).equals(read_images(*pair, "y", None))
    packed[0].write_bytes(packed[0].read_bytes()[:-12])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_images(packed[0], packed[1], "y", None)


@pytest.mark.parametrize("end", [-1, -9])
def test_a_truncated_file_is_refused_with_both_counts(pair: tuple[Path, Path], end: int) -> None:
    pair[0].write_bytes(pair[0].read_bytes()[:end])
    with pytest.raises(DataError, match=rf"promises 3 × 2 × 4 = 24 values, and it has {24 + end}"):
        read_images(*pair, "y", None)


@pytest.mark.parametrize("left", [0, 3, 15])
def test_a_file_truncated_in_its_header_is_refused(pair: tuple[Path, Path], left: int) -> None:
    pair[0].write_bytes(pair[0].read_bytes()[:left])
    with pytest.raises(DataError, match="not an IDX file of images"):
        read_images(*pair, "y", None)


def test_different_numbers_of_images_and_labels_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 images and 2 labels"):
        read_images(pair[0], idx(tmp_path / "fewer", LABELS[:2]), "y", None)


def test_exchanged_images_and_labels_are_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"not an IDX file of images .*begins with 00 00 08 01") as caught:
        read_images(pair[1], pair[0], "y", None)
    assert "`labels`" in str(caught.value.hint)


def test_another_size_than_in_the_recipe_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"are 2 × 4, and data.image is 4 × 2") as caught:
        read_images(*pair, "y", (4, 2))
    assert "image: [2, 4]" in str(caught.value.hint)
