"""PNG and JPEG files to grey pixels, and files that are meant to harm."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.runtime import images
from headrace.runtime.images import InvalidImage, decode, format_of, is_image_file

GRADIENT = (np.arange(28 * 28).reshape(28, 28) % 256).astype(np.uint8)


def file_of(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(held, kind, **options)
    return held.getvalue()


def pixels(raw: bytes, height: int = 28, width: int = 28) -> NDArray[np.int64]:
    return decode(raw, (height, width))[0].astype(np.int64)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_says(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG of 8 grey bits whose header promises a size, whatever the body holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_a_png_of_the_right_size_is_its_pixels() -> None:
    found, cost = decode(file_of(GRADIENT), (28, 28))
    assert found.dtype == np.uint8 and cost == 28 * 28
    np.testing.assert_array_equal(found, GRADIENT)


def test_a_jpeg_is_its_pixels_up_to_what_jpeg_loses() -> None:
    smooth = np.linspace(0, 255, 28 * 28).reshape(28, 28).astype(np.uint8)
    assert np.abs(pixels(file_of(smooth, "JPEG", quality=95)) - smooth).max() <= 6


def test_white_stays_white_in_every_mode() -> None:
    half = np.zeros((28, 28), np.uint8)
    half[:14] = 255
    grey = Image.fromarray(half)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        np.testing.assert_array_equal(pixels(file_of(grey.convert(mode))), half, err_msg=mode)
    np.testing.assert_array_equal(pixels(file_of(half.astype(np.uint16) * 257)), half, err_msg="16 bits")
    assert np.abs(pixels(file_of(grey.convert("CMYK"), "JPEG", quality=100)) - half).max() <= 3


def test_colours_become_grey_by_their_brightness() -> None:
    colour = np.zeros((28, 28, 3), np.uint8)
    colour[:] = (255, 0, 0)
    assert np.unique(pixels(file_of(colour))) == [76]  # 0.299 of 255, ITU-R 601


def test_what_is_transparent_counts_as_black() -> None:
    layer = np.full((28, 28, 4), 255, np.uint8)
    layer[:, 14:, 3] = 0
    layer[0, 0, 3] = 128
    found = pixels(file_of(layer))
    assert (found[1:, :14] == 255).all() and (found[:, 14:] == 0).all() and found[0, 0] == 128


def test_another_size_is_stretched_by_the_mean_of_its_pixels() -> None:
    large = np.kron(GRADIENT, np.ones((5, 3), np.uint8))
    np.testing.assert_array_equal(pixels(file_of(large)), GRADIENT)
    np.testing.assert_array_equal(pixels(file_of(np.full((300, 7), 9, np.uint8))), np.full((28, 28), 9))


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    lying = np.rot90(GRADIENT)  # by 90 degrees to the left; 6 says: turn right to see it upright
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(pixels(file_of(lying, exif=exif)), GRADIENT)


def test_large_photographs_keep_what_is_in_them() -> None:
    """Decoded at a fraction of their size: the halves still are where they were."""
    photograph = np.zeros((1200, 1600, 3), np.uint8)
    photograph[:, :800] = 200
    found = pixels(file_of(photograph, "JPEG"))
    assert np.abs(found[:, :13] - 200).max() <= 2 and found[:, 15:].max() <= 2


def test_magic_bytes_tell_files_from_raw_pixels() -> None:
    assert is_image_file(file_of(GRADIENT)) and is_image_file(file_of(GRADIENT, "JPEG"))
    for raw in (GRADIENT.tobytes(), b"", b"\xff\xd8\xff", b"\xff\xd8\xff\x00abc", b"GIF89a", b"BM", b"RIFF"):
        assert not is_image_file(raw)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_though_pillow_knows_them(kind: str) -> None:
    with pytest.raises(InvalidImage, match="cannot be read"):
        pixels(file_of(GRADIENT, kind))


NAMES = {"GIF": "a GIF file", "BMP": "a BMP file", "WEBP": "a WebP file", "TIFF": "a TIFF file"}


@pytest.mark.parametrize(("kind", "name"), NAMES.items())
def test_other_formats_are_named(kind: str, name: str) -> None:
    assert format_of(file_of(GRADIENT, kind)) == name
    assert format_of(file_of(GRADIENT)) is None and format_of(GRADIENT.tobytes()) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_refused(kind: str) -> None:
    whole = file_of(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8), kind)
    cuts = [*range(0, 64), *range(64, len(whole) - 40, 37)]
    for end in cuts:
        with pytest.raises(InvalidImage):
            pixels(whole[:end])


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG"):
        whole = file_of(GRADIENT, kind)
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(8, len(whole), 4):
                damaged[place] = rng.integers(0, 256)
            with contextlib.suppress(InvalidImage):
                assert pixels(bytes(damaged)).shape == (28, 28)


def test_a_bomb_is_refused_by_its_header_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width, height in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, images.MAX_PIXELS + 1)):
        with pytest.raises(InvalidImage, match="at most 16,777,216 are allowed"):
            pixels(png_that_says(width, height))


def test_a_header_that_promises_more_than_there_is_ends_as_damaged() -> None:
    with pytest.raises(InvalidImage, match="damaged"):
        pixels(png_that_says(4000, 4000, b"\0" * 100))


def test_text_that_unpacks_to_much_is_refused() -> None:
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * (64 << 20)))
    whole = file_of(GRADIENT)
    with pytest.raises(InvalidImage):
        pixels(whole[:33] + bomb + whole[33:])


def test_files_and_requests_have_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidImage, match="at most 700 are allowed"):
        decode(file_of(GRADIENT), (28, 28), max_pixels=700)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 50)
    with pytest.raises(InvalidImage, match="at most 50 are allowed"):
        pixels(file_of(GRADIENT))
