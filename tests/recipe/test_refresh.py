"""The section `refresh`: what Prefect cannot run, or would never run, is an error of `headrace check`, with the near miss."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule

from headrace.errors import RecipeError
from headrace.recipe.recipe import Recipe, parse_recipe
from tests.projects import TINY_TABLE


def parsed(refresh: Any, incremental: bool = True) -> Recipe:
    recipe = yaml.safe_load(TINY_TABLE)
    recipe["refresh"] = refresh
    if incremental:
        recipe["data"]["incremental"] = {"column": "length", "first": 1}
    return parse_recipe(yaml.safe_dump(recipe), "recipes/tiny.yaml")


def test_a_schedule_is_as_prefect_reads_it() -> None:
    assert parsed(None).refresh is None
    for given, wanted in (
        ({"cron": "0 3 1 * *"}, {"cron": "0 3 1 * *", "timezone": "UTC", "active": True}),
        ({"cron": "*/15 6-18 * * MON-FRI", "timezone": "Europe/Berlin"}, {"timezone": "Europe/Berlin"}),
        ({"every": "1d"}, {"interval": 86400.0, "active": True}),
    ):
        found = parsed(given).refresh
        assert found is not None and wanted.items() <= found.schedule.items()
        if found.cron:
            CronSchedule(cron=found.schedule["cron"], timezone=found.schedule["timezone"])


@pytest.mark.parametrize(
    ("refresh", "message"),
    [
        ({"cron": "0 25 * * *"}, "refresh.cron: no cron expression"),
        ({"cron": "0 3 * *"}, "refresh.cron: expected a cron expression of 5 fields"),
        ({"cron": "0 0 3 1 * *"}, "refresh.cron: expected a cron expression of 5 fields"),
        ({"cron": "@daily"}, "refresh.cron: expected a cron expression of 5 fields"),
        ({"cron": "0 3 30 2 *"}, "refresh.cron: no cron expression: Bad day-of-month"),
        ({"cron": "H 3 * * *"}, "refresh.cron: no cron expression"),
        (
            {"cron": "0 3 1 * *", "timezone": "Europe/Berln"},
            "refresh.timezone: unknown time zone; did you mean 'Europe/Berlin'",
        ),
        ({"cron": "0 3 1 * *", "timezone": "../../etc/passwd"}, "refresh.timezone: unknown time zone"),
        ({"cron": "0 3 1 * *", "every": "1d"}, "refresh: expected either cron or every, and both are given"),
        ({}, "refresh: expected either cron or every, and neither is given"),
        ({"every": "1d", "timezone": "Europe/Berlin"}, "refresh: timezone belongs to cron"),
        ({"every": "10s"}, "refresh.every: expected a duration of at least a minute"),
        ({"every": 3600}, "refresh.every: Input should be a valid string"),
        ({"crom": "0 3 * * *"}, "refresh.crom: unknown field; did you mean 'cron'"),
        ("daily", "refresh: "),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(refresh: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(refresh)
    assert message in str(caught.value) and "headrace check tiny" in str(caught.value.hint)


def test_a_source_without_a_next_batch_has_no_schedule() -> None:
    with pytest.raises(RecipeError, match=r"data\.incremental is not set, .* or remove refresh"):
        parsed({"every": "1d"}, incremental=False)


@pytest.mark.parametrize(
    ("first", "hours"), [(datetime(2027, 3, 26, tzinfo=UTC), 23), (datetime(2026, 10, 23, tzinfo=UTC), 25)]
)
def test_a_day_with_a_missing_or_a_double_hour_has_one_run(first: datetime, hours: int) -> None:
    """02:30 does not exist on 28 March 2027 in Berlin, and exists twice on 25 October 2026."""
    refresh = parsed({"cron": "30 2 * * *", "timezone": "Europe/Berlin"}).refresh
    assert refresh is not None
    schedule = CronSchedule(cron=str(refresh.cron), timezone=refresh.timezone)
    found = asyncio.run(schedule.get_dates(start=first, end=first + timedelta(days=5)))
    assert [run.date() for run in found] == [(first + timedelta(days=day)).date() for day in range(5)]
    assert len({run.astimezone(UTC) for run in found}) == 5
    assert any(later - run == timedelta(hours=hours) for run, later in pairwise(found))
