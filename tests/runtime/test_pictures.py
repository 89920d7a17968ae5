"""Pictures of any size to pixels of one: fitted, in colour or grey, with what transparent files and photographs carry."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from headrace.runtime import images
from headrace.runtime.images import FORMATS, InvalidImage, PictureFormat, decode_picture
from headrace.runtime.input_field import InputField
from tests.picture_files import COLOURS, KINDS, file_of, noisy

RED = noisy(COLOURS["red"], 8, 8)


def to(height: int = 8, width: int = 8, **fields: object) -> PictureFormat:
    given = {"channels": 3, "fit": "resize", "interpolation": "bilinear", **fields}
    return PictureFormat.model_validate({"height": height, "width": width, **given})


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
def test_a_picture_of_the_right_size_is_its_pixels(fit: str) -> None:
    found, cost = decode_picture(file_of(RED), to(fit=fit))
    assert cost == 64 and found.dtype == np.uint8
    np.testing.assert_array_equal(found, RED)


def halves(height: int, width: int) -> Image.Image:
    """Red, with a blue band of a quarter at both ends of the longer side."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    across = width >= height
    band = (width // 4, height) if across else (width, height // 4)
    for corner in ((0, 0), (width - band[0], height - band[1])):
        picture.paste((0, 0, 255), (*corner, corner[0] + band[0], corner[1] + band[1]))
    return picture


@pytest.mark.parametrize("size", [(40, 80), (80, 40)])
def test_fits_differ_in_what_becomes_of_another_shape(size: tuple[int, int]) -> None:
    raw = file_of(halves(*size))
    stretched, cut, framed = (decode_picture(raw, to(fit=fit, background=128))[0] for fit in ("resize", "crop", "pad"))
    if size[0] > size[1]:
        stretched, cut, framed = (one.swapaxes(0, 1) for one in (stretched, cut, framed))
    assert stretched[4, 0].tolist() == [0, 0, 255] and stretched[4, 4].tolist() == [255, 0, 0]
    assert (cut[:, 1:7] == [255, 0, 0]).all(), "the bands are outside of the middle"
    assert (framed[:2] == 128).all() and (framed[6:] == 128).all() and framed[4, 0].tolist() == [0, 0, 255]


def test_a_line_is_fitted_too() -> None:
    for fit in ("resize", "crop", "pad"):
        for shape in ((1, 3000, 3), (3000, 1, 3), (1, 1, 3)):
            assert decode_picture(file_of(np.full(shape, 9, np.uint8)), to(fit=fit))[0].shape == (8, 8, 3)


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_every_interpolation_keeps_a_plain_colour(interpolation: str) -> None:
    found, _ = decode_picture(file_of(np.full((50, 31, 3), 77, np.uint8)), to(interpolation=interpolation))
    assert (found == 77).all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_grey_files_in_colour_and_colour_files_in_grey(kind: str) -> None:
    grey = Image.new("L", (20, 20), 100)
    assert np.abs(decode_picture(file_of(grey, kind), to())[0].astype(int) - 100).max() <= 2
    found = decode_picture(file_of(Image.new("RGB", (20, 20), (0, 255, 0)), kind), to(channels=1))[0]
    assert found.shape == (8, 8) and np.abs(found.astype(int) - 150).max() <= 3, "the luminance of green"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_white_stays_white_in_every_mode(mode: str) -> None:
    picture = Image.new("L", (9, 9), 255)
    if mode == "I;16":
        picture = Image.fromarray(np.full((9, 9), 65535, np.uint16))
    else:
        picture = picture.convert(mode) if mode not in ("LA", "RGBA") else picture.convert("RGBA").convert(mode)
    raw = file_of(picture, "JPEG" if mode == "CMYK" else "PNG")
    assert (decode_picture(raw, to())[0] >= 253).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_have_the_background(kind: str) -> None:
    layer = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    for background in (0, 255):
        assert (decode_picture(file_of(layer, kind, lossless=True), to(background=background))[0] == background).all()


def test_a_photograph_is_upright_and_a_large_one_costs_little() -> None:
    lying = Image.new("RGB", (3000, 2000), (0, 0, 255))
    lying.paste((255, 0, 0), (0, 0, 3000, 1000))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    found, cost = decode_picture(file_of(lying, "JPEG", exif=exif), to())
    assert found[4, 6, 0] > 200 and found[4, 1, 2] > 200 and cost < 3000 * 2000 // 30
    progressive = decode_picture(file_of(lying, "JPEG", exif=exif, progressive=True), to())
    assert progressive[1] == 6_000_000, "its coefficients are all in memory at once"


def test_pixels_of_a_request_are_counted_before_they_are_decoded() -> None:
    with pytest.raises(InvalidImage, match="8 × 8 pixels; at most 63"):
        decode_picture(file_of(RED), to(), max_pixels=63)
    with pytest.raises(InvalidImage, match="bytes; at most 10"):
        decode_picture(file_of(RED), to(), max_bytes=10)


@pytest.mark.parametrize("kind", list(KINDS))
def test_damage_is_an_invalid_image_wherever_it_is(kind: str) -> None:
    whole = file_of(noisy(COLOURS["green"], 40, 40), kind)
    for end in range(0, len(whole) - 40, max(1, len(whole) // 40)):
        with pytest.raises(InvalidImage):
            decode_picture(whole[:end], to())
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(InvalidImage):
            assert decode_picture(bytes(damaged), to())[0].shape == (8, 8, 3)


def test_a_field_without_pictures_is_stored_as_before() -> None:
    assert "picture" not in InputField(name="x", dtype="uint8", shape=(2, 2)).model_dump()
    assert InputField(name="x", dtype="uint8", shape=(2, 2), picture=to()).model_dump()["picture"]["fit"] == "resize"
    assert set(FORMATS) == {"PNG", "JPEG", "WEBP"} and images.MEDIA_TYPES == ("image/png", "image/jpeg")
