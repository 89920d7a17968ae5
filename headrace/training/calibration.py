"""After the loop: what makes answers honest is fitted on the validation rows, which trained nothing."""

from __future__ import annotations

import torch

from headrace.errors import TrainingError
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training.rows import Rows

CALIBRATION_BATCH = 512


@torch.no_grad()
def calibrate(model: ServedModel, validation: Rows, config: TrainConfig) -> dict[str, float]:
    """Lets `model` fit its temperature or its margin, in full precision; gives what was found, for the summary.

    Raises:
        TrainingError: the recipe asks for what this model has no place for.
    """
    if config.calibrate is not None and config.calibrate not in model.calibrations:
        raise TrainingError(
            f"train.calibrate: {config.calibrate} is for probabilities, and this model gives none",
            where="train.calibrate",
            hint="leave train.calibrate out; a regression takes model.interval",
        )
    if not model.is_calibrated(config.calibrate):
        return {}
    model.eval()
    found = [(model.raw(*inputs).float(), target) for inputs, target in validation.batches(CALIBRATION_BATCH)]
    raw, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {name: round(value, 8) for name, value in model.calibrate(raw, target, config.calibrate).items()}
