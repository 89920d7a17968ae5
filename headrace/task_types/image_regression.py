"""Regression of images: one number, or several."""

from __future__ import annotations

from headrace.task_types.images import Images
from headrace.task_types.one_value import OneValue
from headrace.task_types.several_values import SeveralNumbers


class ImageRegression(OneValue, Images):
    """Predicts one value per image, with an interval or quantiles if the model has them."""


class ImageSeveralValues(SeveralNumbers, Images):
    """Predicts several values per image."""
