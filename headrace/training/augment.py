"""Random changes of images: one resampling of the whole batch, on its device, and one change of its colours. B: rows, C:
channels, H, W: height, width."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.recipe.training import Augmentation
from headrace.training.device import generator

DRAWS = 8
"""Random numbers per image: shift (2), scale, angle, size of the crop (2), position of the crop (2)."""

FLIPS_AND_COLOURS = 6
"""Further random numbers per image: flips (2), brightness, contrast, saturation, hue."""
GREY = (0.299, 0.587, 0.114)
"""Luminance of red, green and blue (ITU-R BT.601)."""
YIQ = (GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""From red, green and blue to luminance and two axes of colour, in whose plane a rotation changes the hue (NTSC 1953)."""


class Augment:
    """Flips, shifts, scales, rotates and crops images, and changes their colours, depending only on the seed, the epoch and
    the step."""

    def __init__(self, config: Augmentation, seed: int, channels_last: bool = False) -> None:
        """With `channels_last` images are `(B, H, W, C)`."""
        self.config = config
        self.seed = seed
        self.channels_last = channels_last
        self.moves = any((config.shift, config.scale, config.rotate, config.crop))
        self.is_colourful = any((config.brightness, config.contrast, config.saturation, config.hue))

    def __call__(
        self, inputs: tuple[Tensor, ...], epoch: int, step: int, rows: slice | None = None, batch_rows: int = 0
    ) -> tuple[Tensor, ...]:
        """Returns the first input, `(B, H, W)`, `(B, C, H, W)` or with `channels_last`, changed, as float32 in its own range;
        the others unchanged.

        Args:
            rows: which rows of a batch of `batch_rows` rows the `inputs` are; by default they are the whole batch. Each row is
                changed in the same way as in the whole batch.
        """
        image, *others = inputs
        if self.channels_last:
            image = image.permute(0, 3, 1, 2)
        size = batch_rows or len(image)
        if self.config.flip or self.is_colourful:  # drawn apart, so that the numbers below are those without them
            more = torch.rand(size, FLIPS_AND_COLOURS, generator=generator(self.seed, "flip and colour", epoch, step))
            more = (more if rows is None else more[rows]).to(image.device, non_blocking=True)
            image = flip(self.config, more[:, :2], image)
        draws = torch.rand(size, DRAWS, generator=generator(self.seed, "augment", epoch, step))
        draws = draws if rows is None else draws[rows]
        if self.moves:
            moved = affine(self.config, draws, image.shape[-2], image.shape[-1]).to(image.device, non_blocking=True)
            image = resample(image, moved)
        if self.is_colourful:
            image = change_colours(self.config, more[:, 2:], image.float())
        image = image.permute(0, 2, 3, 1) if self.channels_last else image
        return image.float(), *others


def flip(config: Augmentation, draws: Tensor, image: Tensor) -> Tensor:
    """Flips half of the images, by draws `(B, 2)`, in each of the recipe's directions."""
    for draw, axis, direction in zip(draws.T, (-1, -2), ("horizontal", "vertical"), strict=True):
        if config.flip in (direction, "both"):
            image = torch.where((draw < 0.5).view(-1, *[1] * (image.ndim - 1)), image.flip(axis), image)
    return image


def change_colours(config: Augmentation, draws: Tensor, image: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue of images `(B, H, W)` or `(B, C, H, W)` from 0 to 255, by draws
    `(B, 4)`. All four are linear in the colours of a pixel, so they are one product with a matrix per image.
    """
    signed = draws * 2 - 1
    brightness, contrast = 1 + signed[:, 0] * config.brightness, 1 + signed[:, 1] * config.contrast
    planes = image.unsqueeze(1) if image.ndim == 3 else image
    grey = planes.new_tensor(GREY if planes.shape[1] == 3 else [1 / planes.shape[1]] * planes.shape[1])
    mean = torch.einsum("c,bc->b", grey, planes.mean((2, 3)))
    factor = brightness * contrast
    if planes.shape[1] == 3 and (config.saturation or config.hue):
        saturation, hue = 1 + signed[:, 2] * config.saturation, signed[:, 3] * config.hue * 2 * pi
        mixed = colour_matrix(saturation, hue) * factor.view(-1, 1, 1)
        changed = torch.einsum("bij,bjhw->bihw", mixed, planes)
    else:
        changed = planes * factor.view(-1, 1, 1, 1)
    changed = (changed + ((1 - contrast) * brightness * mean).view(-1, 1, 1, 1)).clamp(0, 255)
    return changed.squeeze(1) if image.ndim == 3 else changed


def colour_matrix(saturation: Tensor, hue: Tensor) -> Tensor:
    """Returns matrices `(B, 3, 3)` that change the saturation by a factor `(B,)` and turn the hue by an angle `(B,)`."""
    to_yiq = saturation.new_tensor(YIQ)
    cos, sin, zero = hue.cos() * saturation, hue.sin() * saturation, torch.zeros_like(hue)
    turned = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    changed: Tensor = torch.linalg.inv(to_yiq) @ turned @ to_yiq
    return changed


def affine(config: Augmentation, draws: Tensor, height: int, width: int) -> Tensor:
    """Returns maps `(B, 2, 3)` from positions in the new image to positions in the old, both from -1 to 1, for `affine_grid`.

    Backwards from the new image: undo the shift, undo rotation and scale about the centre, then restrict to the crop.
    """
    signed = draws * 2 - 1
    shift = signed[:, :2] * config.shift * 2  # a side has length 2
    scale = 1 + signed[:, 2] * config.scale
    angle = signed[:, 3] * config.rotate * pi / 180
    kept = 1 - draws[:, 4:6] * config.crop
    place = signed[:, 6:] * (1 - kept)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # the angle is measured in pixels: if height and width differ, so do the units of x and y
    turn = torch.stack([cos, sin * height / width, -sin * width / height, cos], dim=1).view(-1, 2, 2)
    linear = kept.unsqueeze(2) * turn
    offset = place.unsqueeze(2) - linear @ shift.unsqueeze(2)
    return torch.cat([linear, offset], dim=2)


def resample(image: Tensor, moved: Tensor) -> Tensor:
    """Resamples images with the maps `moved`, linearly between pixels; beyond the edge, the edge's pixels repeat."""
    planes = image.unsqueeze(1) if image.ndim == 3 else image
    batch, channels, height, width = planes.shape
    grid = F.affine_grid(moved, [batch, channels, height, width], align_corners=False)
    seen = F.grid_sample(planes.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return seen.squeeze(1) if image.ndim == 3 else seen
