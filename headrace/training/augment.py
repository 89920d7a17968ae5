"""Random changes of images: one resampling of the whole batch, on its device. B: rows, C: channels, H, W: height, width."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.recipe.training import Augmentation
from headrace.training.device import generator

DRAWS = 8
"""Random numbers per image: shift (2), scale, angle, size of the crop (2), position of the crop (2)."""


class Augment:
    """Shifts, scales, rotates and crops images, depending only on the seed, the epoch and the step."""

    def __init__(self, config: Augmentation, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(
        self, inputs: tuple[Tensor, ...], epoch: int, step: int, rows: slice | None = None, batch_rows: int = 0
    ) -> tuple[Tensor, ...]:
        """Returns the first input, `(B, H, W)` or `(B, C, H, W)`, changed, as float32 in its own range; the others unchanged.

        Args:
            rows: which rows of a batch of `batch_rows` rows the `inputs` are; by default they are the whole batch. Each row is
                changed in the same way as in the whole batch.
        """
        image, *others = inputs
        draws = torch.rand(batch_rows or len(image), DRAWS, generator=generator(self.seed, "augment", epoch, step))
        draws = draws if rows is None else draws[rows]
        moved = affine(self.config, draws, image.shape[-2], image.shape[-1]).to(image.device, non_blocking=True)
        return resample(image, moved), *others


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
