"""Calendar parts and elapsed time, computed inside the network's graph: the same in training and in the service."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from headrace.models.schema import Time

DAY = 86_400.0
CYCLES = {"month": 12.0, "day": 31.0, "weekday": 7.0, "hour": 24.0}
"""Parts that repeat: where the cycle ends, they are near to its beginning, so each is a sine and a cosine."""


def width(times: list[Time]) -> int:
    """Returns the number of features that these columns give."""
    return sum(2 if part in CYCLES else 1 for column in times for part in column.features)


class TimeParts(nn.Module):
    """Base class of modules that compute features of times: seconds since 1970 (UTC), `(rows, columns)` float64."""

    def __init__(self, times: list[Time]) -> None:
        super().__init__()
        self.columns = [(column.features, column.since, column.reference) for column in times]
        self.places = {column.name: i for i, column in enumerate(times)}

    def parts(self, times: Tensor) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """Yields the column, the part, its values `(rows,)` float64 (elapsed time in days), and which of them are missing,
        `(rows,)` bool; values that are missing are arbitrary."""
        for i, (parts, since, reference) in enumerate(self.columns):
            moment = times[:, i]
            is_missing = torch.isnan(moment)
            calendar = calendar_parts(torch.where(is_missing, torch.zeros_like(moment), moment))
            for part in parts:
                if part == "elapsed":
                    start = times[:, self.places[since]] if since is not None else torch.full_like(moment, reference)
                    lacks = is_missing | torch.isnan(start)
                    yield i, part, (moment - start) / DAY, lacks
                else:
                    yield i, part, calendar[part], is_missing


class TimeFeatures(TimeParts):
    """Times to features `(rows, width)` float32, scaled, and cycles as sine and cosine; missing times give zeros."""

    def __init__(self, times: list[Time]) -> None:
        super().__init__(times)
        self.scales = [{part: (scale.mean, scale.std) for part, scale in column.scales.items()} for column in times]

    def forward(self, times: Tensor) -> Tensor:
        found: list[Tensor] = []
        for column, part, value, is_missing in self.parts(times):
            if part in CYCLES:
                angle = (value * (2 * math.pi / CYCLES[part])).float()
                features = [angle.sin(), angle.cos()]
            else:
                mean, std = self.scales[column][part]
                features = [((value - mean) / std).float()]
            found += [torch.where(is_missing, torch.zeros_like(feature), feature) for feature in features]
        return torch.stack(found, dim=1)


def calendar_parts(seconds: Tensor) -> dict[str, Tensor]:
    """Returns the parts of times `(rows,)`, as float64: year, month and day from 0, weekday (Monday is 0), hour with fraction.

    The days are converted as in https://howardhinnant.github.io/date_algorithms.html#civil_from_days.
    """
    days = torch.floor(seconds / DAY)
    since_march = days + 719_468  # days since 1 March of the year 0
    era = torch.floor(since_march / 146_097)
    day_of_era = since_march - era * 146_097
    leaps = torch.floor(day_of_era / 1_460) - torch.floor(day_of_era / 36_524) + torch.floor(day_of_era / 146_096)
    year_of_era = torch.floor((day_of_era - leaps) / 365)
    day_of_year = day_of_era - (365 * year_of_era + torch.floor(year_of_era / 4) - torch.floor(year_of_era / 100))
    march_month = torch.floor((5 * day_of_year + 2) / 153)
    month = march_month + torch.where(march_month < 10, 2.0, -10.0)
    return {
        "year": year_of_era + era * 400 + torch.where(month < 2, 1.0, 0.0),
        "month": month,
        "day": day_of_year - torch.floor((153 * march_month + 2) / 5),
        "weekday": torch.remainder(days + 3, 7.0),
        "hour": (seconds - days * DAY) / 3_600,
    }
