"""Images changed at random: one resampling of the whole batch, on its device. B: rows, C: channels, H, W: height, width."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.recipe.training import Augmentation
from headrace.training.seeding import generator

DRAWS = 8
"""Random numbers for an image: shift (2), scale, angle, size of the crop (2), its place (2)."""


class Augment:
    """Shifts, scales, turns and crops; what it draws depends on the seed, the epoch and the step alone."""

    def __init__(self, config: Augmentation, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(
        self, inputs: tuple[Tensor, ...], epoch: int, step: int, rows: slice | None = None, of: int = 0
    ) -> tuple[Tensor, ...]:
        """The first input `(B, H, W)` or `(B, C, H, W)` changed, as float32 in its own range; the others as they are.

        Args:
            rows: of a batch of `of` rows, which `inputs` are; all of them by default. A row is changed as in the whole batch.
        """
        image, *others = inputs
        draws = torch.rand(of or len(image), DRAWS, generator=generator(self.seed, "augment", epoch, step))
        draws = draws if rows is None else draws[rows]
        moved = affine(self.config, draws, image.shape[-2], image.shape[-1]).to(image.device, non_blocking=True)
        return resample(image, moved), *others


def affine(config: Augmentation, draws: Tensor, height: int, width: int) -> Tensor:
    """Maps `(B, 2, 3)` from places of the new image to places of the old, both from -1 to 1, as `affine_grid` takes them.

    From the new image backwards: undo the shift, undo angle and scale about the middle, then look only at the crop.
    """
    signed = draws * 2 - 1
    shift = signed[:, :2] * config.shift * 2  # the whole side is 2 long
    scale = 1 + signed[:, 2] * config.scale
    angle = signed[:, 3] * config.rotate * pi / 180
    kept = 1 - draws[:, 4:6] * config.crop
    place = signed[:, 6:] * (1 - kept)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # an angle is one of pixels: where height and width differ, so do the units of x and y
    turn = torch.stack([cos, sin * height / width, -sin * width / height, cos], dim=1).view(-1, 2, 2)
    linear = kept.unsqueeze(2) * turn
    offset = place.unsqueeze(2) - linear @ shift.unsqueeze(2)
    return torch.cat([linear, offset], dim=2)


def resample(image: Tensor, moved: Tensor) -> Tensor:
    """The images seen through `moved`, between pixels linearly; beyond the edge the edge's own pixels go on."""
    planes = image.unsqueeze(1) if image.ndim == 3 else image
    batch, channels, height, width = planes.shape
    grid = F.affine_grid(moved, [batch, channels, height, width], align_corners=False)
    seen = F.grid_sample(planes.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return seen.squeeze(1) if image.ndim == 3 else seen
