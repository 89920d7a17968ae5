"""Augmentation against images moved by hand."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from headrace.recipe.training import Augmentation
from headrace.training.augment import DRAWS, Augment, affine, change_colours, flip, resample


def drawn(**numbers: float) -> Tensor:
    """Draws that change nothing, except those named; each from 0 to 1."""
    named = ["shift_x", "shift_y", "scale", "angle", "crop_width", "crop_height", "crop_x", "crop_y"]
    still = dict.fromkeys(named, 0.5) | {"crop_width": 0.0, "crop_height": 0.0}
    return torch.tensor([list({**still, **numbers}.values())])


def changed(image: Tensor, config: Augmentation, **numbers: float) -> Tensor:
    height, width = image.shape[-2:]
    return resample(image, affine(config, drawn(**numbers), height, width))


def picture(height: int = 8, width: int = 8) -> Tensor:
    """One image of random grey, with two black pixels at every edge."""
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    inner = torch.randint(1, 256, (height - 4, width - 4), generator=torch.Generator().manual_seed(0))
    image[0, 2:-2, 2:-2] = inner.to(torch.uint8)
    return image


ALL = Augmentation(shift=0.25, scale=0.5, rotate=90, crop=0.5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (12, 8)])
def test_draws_in_the_middle_change_nothing(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    torch.testing.assert_close(changed(image, ALL), image.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 16)])
def test_a_shift_moves_whole_pixels(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    moved = changed(image, ALL, shift_x=1.0)
    pixels = shape[1] // 4
    torch.testing.assert_close(moved[:, :, pixels:], image[:, :, :-pixels].float(), atol=1e-3, rtol=0)
    moved = changed(image, ALL, shift_y=0.0)
    torch.testing.assert_close(moved[:, :-2], image[:, 2:].float(), atol=1e-3, rtol=0)


def test_a_right_angle_turns_the_image() -> None:
    image = picture()
    turned = (torch.rot90(image, k, (1, 2)).float() for k in (1, 3))
    for angle, wanted in zip((0.0, 1.0), turned, strict=True):
        torch.testing.assert_close(changed(image, ALL, angle=angle), wanted, atol=1e-2, rtol=0)


@pytest.mark.parametrize("shape", [(21, 21), (15, 31)])
@pytest.mark.parametrize("degrees", [-35.0, 10.0, 70.0])
def test_an_angle_is_that_of_another_library(degrees: float, shape: tuple[int, int]) -> None:
    """Pillow rotates pixels, for any height and width. A smooth blob, as the two differ in how they round."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape), indexing="ij")
    image = 200 * torch.exp(-((x - 2) ** 2) / 9 - (y + 1) ** 2 / 3)[None]
    found = changed(image, Augmentation(rotate=180), angle=0.5 + degrees / 360)
    pillows = Image.fromarray(image[0].numpy()).rotate(-degrees, resample=Image.Resampling.BILINEAR)
    wanted = torch.tensor(list(pillows.get_flattened_data())).view(shape)
    assert (found[0] - wanted).abs().max() < 1.0


def test_a_scale_grows_and_shrinks_about_the_middle() -> None:
    image = torch.zeros(1, 16, 16)
    image[0, 6:10, 6:10] = 100  # 16 pixels of brightness
    larger, smaller = (float(changed(image, ALL, scale=drawing).sum()) for drawing in (1.0, 0.0))
    assert larger == pytest.approx(float(image.sum()) * 1.5**2, rel=0.05)
    assert smaller == pytest.approx(float(image.sum()) * 0.5**2, rel=0.05)
    centre = changed(image, ALL, scale=1.0)[0].sum(0)
    torch.testing.assert_close(centre, centre.flip(0), atol=1e-3, rtol=0)


def test_a_crop_stretches_a_part_to_the_whole() -> None:
    image = picture(8, 8)
    top_left = changed(image, ALL, crop_width=1.0, crop_height=1.0, crop_x=0.0, crop_y=0.0)
    wanted = torch.nn.functional.interpolate(image[None, :, :4, :4].float(), size=(8, 8), mode="bilinear")[0]
    # beyond the crop is the rest of the old image, where `interpolate` repeats the edge
    torch.testing.assert_close(top_left[:, :7, :7], wanted[:, :7, :7], atol=1e-3, rtol=0)
    right = changed(image, ALL, crop_width=1.0, crop_x=1.0)
    assert torch.equal(right[0, 0], torch.zeros(8)) and right[0, 2:-2, :4].min() > 0


def test_what_comes_in_over_the_edge_is_the_edge() -> None:
    image = torch.full((1, 4, 4), 9, dtype=torch.uint8)
    assert torch.allclose(changed(image, ALL, shift_x=1.0, scale=0.0, angle=0.8), torch.full((1, 4, 4), 9.0))


def test_draws_stay_within_what_the_recipe_allows() -> None:
    config = Augmentation(shift=0.1, scale=0.2, rotate=15, crop=0.3)
    draws = torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(0))
    linear, offset = affine(config, draws, 8, 8).split([2, 1], dim=2)
    size = linear.det().abs().sqrt()
    assert size.min() >= 0.7 / 1.2 and size.max() <= 1 / 0.8
    no_crop = affine(config.model_copy(update={"crop": 0.0}), draws, 8, 8)
    angle = torch.atan2(no_crop[:, 0, 1], no_crop[:, 0, 0]).rad2deg()
    assert 14 < angle.max() <= 15.001 and -15.001 <= angle.min() < -14
    only_crop = affine(Augmentation(crop=0.3), draws, 8, 8)
    reach = only_crop[:, :, :2].sum(2) + only_crop[:, :, 2].abs()
    assert reach.max() <= 1.0001  # a crop is within the image
    assert offset.abs().max() <= 0.3 + 2 * 0.1 * 1.5 / 0.8


def test_the_same_step_draws_the_same_and_another_step_or_epoch_others() -> None:
    augment = Augment(ALL, seed=7)
    batch: tuple[Tensor, ...] = (picture().expand(5, 8, 8), torch.arange(5))
    first, again = augment(batch, 2, 3), augment(batch, 2, 3)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], torch.arange(5))
    others = [augment(batch, 2, 4), augment(batch, 3, 3), Augment(ALL, seed=8)(batch, 2, 3)]
    assert not any(torch.equal(first[0], other[0]) for other in others)
    assert not torch.equal(first[0][0], first[0][1])  # each row its own


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 1, 5, 7), (3, 3, 5, 7)])
def test_images_keep_their_shape_with_and_without_channels(shape: Any) -> None:
    (moved,) = Augment(ALL, seed=0)((torch.randint(0, 255, shape, dtype=torch.uint8),), 0, 0)
    assert moved.shape == shape and moved.dtype == torch.float32
    assert moved.min() >= 0 and moved.max() <= 255


def test_planes_of_a_colour_move_together() -> None:
    planes = picture().expand(1, 3, 8, 8)
    (moved,) = Augment(ALL, seed=0)((planes,), 0, 0)
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 1], moved[:, 2])


# Flips and colours.


def photo(rows: int = 64) -> Tensor:
    return torch.randint(40, 200, (rows, 6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("direction", "axes"), [("horizontal", [-1]), ("vertical", [-2]), ("both", [-1, -2])])
def test_half_of_the_images_are_flipped_pixel_by_pixel(direction: str, axes: list[int]) -> None:
    image = photo()
    (found,) = Augment(Augmentation(flip=direction), 3, channels_last=True)((image,), 0, 0)  # type: ignore[arg-type]
    planes, moved = image.permute(0, 3, 1, 2).float(), found.permute(0, 3, 1, 2)
    ways = [planes, *(planes.flip(axis) for axis in axes), *([planes.flip(axes)] if len(axes) > 1 else [])]
    is_way = torch.stack([(moved == way).flatten(1).all(1) for way in ways])
    assert is_way.any(0).all() and (is_way.float().mean(1) > 0.1).all(), "each in its share"
    assert found.dtype == torch.float32 and found.shape == image.shape


def test_each_change_of_colour_is_what_pillow_does() -> None:
    """ImageEnhance rounds its grey, so the results differ by a little more than one."""
    from PIL import ImageEnhance

    image = photo(1)
    enhancers = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    for i, (name, enhancer) in enumerate(enhancers.items()):
        draws = torch.full((1, 4), 0.5)
        draws[0, i] = 1.0  # the largest change upwards
        config = Augmentation.model_validate({name: 0.3})
        found = change_colours(config, draws, image.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)[0]
        wanted = enhancer(Image.fromarray(image[0].numpy())).enhance(1.3)
        assert (found - torch.from_numpy(numpy.array(wanted).astype("float32"))).abs().max() < 2.5, name


def test_hue_turns_the_colours_and_keeps_the_luminance() -> None:
    image = torch.tensor([180.0, 90.0, 60.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    draws = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]])
    found = change_colours(Augmentation(hue=1 / 3), draws, image)
    grey = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(
        torch.einsum("c,bchw->b", grey, found), torch.einsum("c,bchw->b", grey, image), rtol=0.02, atol=1
    )
    torch.testing.assert_close(found[1], image[1], atol=1e-2, rtol=0)
    assert (found[0] - image[0]).abs().max() > 40


def test_grey_images_get_brightness_and_contrast_and_stay_in_range() -> None:
    image = torch.randint(0, 256, (9, 5, 7), dtype=torch.uint8)
    config = Augmentation(brightness=0.9, contrast=0.9)
    (found,) = Augment(config, 0)((image,), 0, 0)
    assert found.shape == (9, 5, 7) and found.min() >= 0 and found.max() <= 255 and not torch.equal(found, image.float())


def test_flips_and_colours_leave_the_other_draws_alone_and_divide_with_the_batch() -> None:
    image = photo(10)
    grey = image[..., 0]
    config = ALL.model_copy(update={"brightness": 0.2})
    (plain,), (bright,) = Augment(ALL, 7)((grey,), 1, 2), Augment(config, 7)((grey,), 1, 2)
    ratio = bright.flatten(1).sum(1) / plain.flatten(1).sum(1)
    torch.testing.assert_close(bright.clamp(1, 254), (plain * ratio.view(-1, 1, 1)).clamp(1, 254), atol=2.0, rtol=0.02)
    every = Augmentation(flip="both", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.2, crop=0.3)
    augment = Augment(every, 7, channels_last=True)
    (whole,) = augment((image,), 1, 2)
    (part,) = augment((image[4:],), 1, 2, slice(4, 10), 10)
    torch.testing.assert_close(part, whole[4:], atol=1e-3, rtol=0)


def test_a_flip_without_a_direction_changes_nothing() -> None:
    image = photo(4)
    assert torch.equal(flip(Augmentation(), torch.zeros(4, 2), image), image)
