"""One look at a released model: sampled rows like those of training raise nothing, others do; hours count once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import DamagedFile, DataRejected, ModelRefused, RecipeError, ServiceError, UsageError
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig, RetrainConfig
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.release.lock import release_lock
from headrace.services.feedback_store import FeedbackStore, RecordedAnswer, Truth
from headrace.services.monitoring import retraining
from headrace.services.monitoring.look import look, restart
from headrace.services.monitoring.report import MonitorReport, last_report
from headrace.tracking.runs import client
from tests.release.candidates import new_recipe, released
from tests.services.monitoring.sampled_rows import HOUR, rows_like_training, sampled


@pytest.fixture
def served(built: Project) -> Recipe:
    """A recipe with one version in production, which has not been asked yet."""
    recipe = new_recipe(built)
    released(recipe, built)
    return recipe


def test_without_a_request_nothing_is_compared_and_that_is_said(served: Recipe, built: Project) -> None:
    found = look(served.name, MonitorConfig(), built)
    assert (found.rows, found.new_hours, found.is_alarming, found.drift) == (0, 0, False, [])
    assert found.notes == ["no request has been sampled yet"]
    assert last_report(served.name, built) == found


def test_rows_like_those_of_training_raise_no_alarm_and_hours_count_once(served: Recipe, built: Project) -> None:
    for hour in range(2, 8):
        sampled(built, served.name, hour, rows_like_training(built, served, 60, hour))
    first = look(served.name, MonitorConfig(), built)
    assert (first.new_hours, first.rows) == (6, 360) and first.alarm is not None
    assert [one for one in first.alarm.features if not one.startswith("(")] == []
    again = look(served.name, MonitorConfig(), built)
    assert again.new_hours == 0 and again.alarm is not None and again.alarm.windows == first.alarm.windows


def test_a_field_that_shifts_raises_an_alarm_that_names_it(served: Recipe, built: Project) -> None:
    for hour in range(2, 8):
        sampled(built, served.name, hour, rows_like_training(built, served, 100, hour, length=1000.0))
    found = look(served.name, MonitorConfig(), built)
    assert found.is_alarming and found.alarm is not None and "length" in found.alarm.features
    assert found.drift[0].name == "length" and found.drift[0].outside_range == 1.0
    page = (built.state / "monitoring" / served.name / "report.html").read_text()
    assert (
        "ows differ from training" in page and "<svg" in page and page.index("<h3>length</h3>") < page.index("<h3>width</h3>")
    )
    version = client(built).get_model_version(served.name, "1")
    assert "monitoring/report.html" in {one.path for one in client(built).list_artifacts(version.run_id or "", "monitoring")}
    restart(served.name, built)
    calm = look(served.name, MonitorConfig(), built)
    assert not calm.is_alarming and calm.new_hours == 0, "hours that were counted stay counted"


def test_the_current_hour_is_shown_and_not_counted_yet(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 0, rows_like_training(built, served, 40, 1))
    found = look(served.name, MonitorConfig(), built)
    assert (found.rows, found.new_hours) == (40, 0)


def test_another_version_s_rows_and_damaged_files_are_left_out(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 3, rows_like_training(built, served, 30, 1, length=1e6), version="7")
    damaged = sampled(built, served.name, 3, [])
    damaged.write_text("{\n")
    cut = sampled(built, served.name, 3, rows_like_training(built, served, 30, 2))
    cut.write_bytes(cut.read_bytes()[:-20])
    lines: list[str] = []
    found = look(served.name, MonitorConfig(), built, lines.append)
    assert found.rows == 29 and not found.is_alarming
    assert any(line.startswith(f"{damaged}: left out: ") for line in lines)


def test_a_field_that_vanished_counts_as_missing(served: Recipe, built: Project) -> None:
    rows = rows_like_training(built, served, 60, 1)
    for row in rows:
        del row["inputs"]["width"]
    sampled(built, served.name, 3, rows)
    drift = {one.name: one for one in look(served.name, MonitorConfig(), built).drift}
    assert drift["width"].missing == 1.0


def truths(project: Project, model: str, right: int, wrong: int) -> None:
    store = FeedbackStore(project, 90)
    for i in range(right + wrong):
        record = RecordedAnswer(time.time(), f"{model}-{i}", "acme", model, "1", ["big"])
        truth = Truth("acme", model, "1", f"{model}-{i}", 0, "big" if i < right else "small")
        store.add([truth], record)
    store.close()


@pytest.mark.parametrize(("right", "wrong", "fallen"), [(300, 3, False), (40, 260, True)])
def test_the_quality_by_true_answers_has_an_interval(
    served: Recipe, built: Project, right: int, wrong: int, fallen: bool
) -> None:
    truths(built, served.name, right, wrong)
    (quality,) = look(served.name, MonitorConfig(), built).quality
    assert (quality.metric, quality.all_rows) == ("accuracy", right + wrong)
    assert quality.rows == right + wrong - 200 and quality.low <= quality.value <= quality.high
    assert (quality.has_fallen, "has fallen" in quality.sentence) == (fallen, fallen)


def test_an_estimate_is_called_one(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 1, rows_like_training(built, served, 50, 1))
    found = look(served.name, MonitorConfig(), built)
    (estimate,) = found.estimates
    assert estimate.metric == "accuracy" and estimate.value == pytest.approx(0.95, abs=0.02)
    assert any(
        line.startswith("  estimated accuracy 0.9") and "if its probabilities are right" in line for line in found.lines()
    )


def test_a_model_that_is_not_in_production_is_named_with_the_near_miss(served: Recipe, built: Project) -> None:
    with pytest.raises(UsageError, match=r"no version of .* is in production"):
        look(served.name[:-1] + "x", MonitorConfig(), built)


def test_other_settings_begin_the_alarm_again(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 3, rows_like_training(built, served, 50, 1))
    assert look(served.name, MonitorConfig(), built).new_hours == 1
    assert look(served.name, MonitorConfig(alpha=0.01), built).new_hours == 1


def test_one_row_is_compared_and_is_no_alarm(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 3, rows_like_training(built, served, 1, 1))
    found = look(served.name, MonitorConfig(), built)
    assert (found.rows, found.new_hours, found.is_alarming) == (1, 1, False)
    assert found.drift and "  1 sampled row of the last day:" in list(found.lines())


def test_hours_of_a_clock_that_is_ahead_are_shown_and_count_once_they_have_come(
    served: Recipe, built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(built, served.name, -5, rows_like_training(built, served, 40, 1))
    sampled(built, served.name, 3, rows_like_training(built, served, 30, 2))
    found = look(served.name, MonitorConfig(), built)
    assert (found.rows, found.new_hours) == (70, 1)
    assert found.notes == ["samples of an hour in the future, by a clock that was ahead: they count once it has come"]
    real = time.time
    with monkeypatch.context() as moved:
        moved.setattr(time, "time", lambda: real() + 7 * HOUR)
        later = look(served.name, MonitorConfig(), built)
        assert (later.new_hours, later.notes) == (1, [])
    back = look(served.name, MonitorConfig(), built)
    assert back.new_hours == 0 and back.alarm is not None and back.alarm.windows == 2, (
        "a clock that goes back counts nothing twice"
    )


def test_a_truth_twice_counts_once_the_latest_of_several_counts_and_one_of_an_unknown_id_does_not(
    served: Recipe, built: Project
) -> None:
    truths(built, served.name, right=60, wrong=0)
    truths(built, served.name, right=60, wrong=0)
    store = FeedbackStore(built, 90)
    for number in range(2):
        record = RecordedAnswer(time.time(), f"{served.name}-{number}", "acme", served.name, "1", ["big"])
        store.add([Truth("acme", served.name, "1", f"{served.name}-{number}", 0, "small")], record)
    store.add([Truth("acme", served.name, "1", "never-asked", 0, "big")], None)
    store.close()
    found = look(served.name, MonitorConfig(), built)
    (quality,) = found.quality
    assert quality.all_rows == 60 and quality.value == pytest.approx(58 / 60)
    assert "2 rows have several different true answers: the latest one counts" in found.notes


def test_a_damaged_profile_is_fetched_again_and_a_damaged_state_names_its_file(served: Recipe, built: Project) -> None:
    sampled(built, served.name, 3, rows_like_training(built, served, 30, 1))
    first = look(served.name, MonitorConfig(), built)
    folder = built.state / "monitoring" / served.name / "1"
    for content in ("{", '{"schema_version": 1}'):
        (folder / "profile.json").write_text(content)
        assert look(served.name, MonitorConfig(), built).drift == first.drift
    (folder / "hours.json").write_text("{")
    assert look(served.name, MonitorConfig(), built).drift == first.drift
    (folder / "alarm.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"alarm\.json"):
        look(served.name, MonitorConfig(), built)


def test_the_series_has_each_hour_once(served: Recipe, built: Project) -> None:
    for hour in (4, 3):
        sampled(built, served.name, hour, rows_like_training(built, served, 30, hour, length=1000.0))
    for _ in range(2):
        look(served.name, MonitorConfig(), built)
        stored = json.loads((built.state / "monitoring" / served.name / "1" / "hours.json").read_text())["hours"]
        assert [(hour["rows"], hour["features"]["length"]["unseen"]) for hour in stored] == [(30, 1.0), (30, 1.0)]


def test_worse_answers_are_a_reason_to_train_again(served: Recipe, built: Project) -> None:
    truths(built, served.name, right=0, wrong=200)
    monitor = MonitorConfig(retrain=RetrainConfig())
    found = look(served.name, monitor, built, metric="accuracy")
    assert found.worse[0].startswith("accuracy: the error 1 is more than 5% above the reference")
    assert found.worse[0] in retraining.decide(monitor, found, built).reason
    train(found, built, now=time.time())
    again = look(served.name, monitor, built)
    assert again.worse == [] and again.is_alarming, "the alarm stays, and a training has answered it"
    assert "not worth it yet" in retraining.decide(monitor, again, built).reason


@pytest.fixture
def alarm() -> Callable[..., MonitorReport]:
    quality = {
        "metric": "accuracy",
        "rows": 9,
        "all_rows": 9,
        "value": 0.1,
        "low": 0.0,
        "high": 0.2,
        "reference": 0.9,
        "has_fallen": True,
    }
    return lambda **changed: MonitorReport.model_validate(
        {
            "model": "m",
            "version": "1",
            "at": "now",
            "new_hours": 0,
            "rows": 0,
            "quality": [quality],
            "worse": ["accuracy: it is worse"],
            **changed,
        }
    )


def test_training_again_keeps_to_its_limits(project: Project, alarm: Callable[..., MonitorReport]) -> None:
    monitor, found, day = MonitorConfig(retrain=RetrainConfig(cooldown="2d", per_week=2)), alarm(), 24 * HOUR
    assert retraining.decide(monitor, found, project, now=0.0).retrain
    train(found, project, now=0.0)
    assert "less than 2d ago" in retraining.decide(monitor, found, project, now=day).reason
    assert retraining.decide(monitor, found, project, now=2 * day).retrain
    train(found, project, now=2 * day)
    assert "2 times within a week" in retraining.decide(monitor, found, project, now=6 * day).reason
    assert retraining.decide(monitor, found, project, now=8 * day).retrain
    assert not retraining.decide(monitor, found, project, now=-5 * day).retrain, (
        "a clock that was set back trains no more often"
    )


class Cancelled(BaseException):
    """Raised when a person cancels a run."""


def train(found: MonitorReport, project: Project, now: float, error: BaseException | None = None) -> None:
    """Begins a training, and ends it, with an error or without."""
    retraining.count_attempt(found, project, now)
    with retraining.attempt(found.model, project, Cancelled):
        if error is not None:
            raise error


def test_a_training_that_was_interrupted_is_continued_as_the_same_attempt(
    project: Project, alarm: Callable[..., MonitorReport]
) -> None:
    monitor, found = MonitorConfig(retrain=RetrainConfig(cooldown="2d", per_week=2)), alarm()
    retraining.count_attempt(found, project, now=0.0)  # killed
    with release_lock("m", project):
        assert "an earlier look" in retraining.decide(monitor, found, project, now=HOUR).reason
    calm = alarm(quality=[], worse=[])  # for example since the new version serves already
    assert retraining.decide(monitor, calm, project, now=HOUR).retrain
    with pytest.raises(ServiceError):
        train(calm, project, HOUR, ServiceError("Prefect's server was killed"))
    assert "was interrupted" in retraining.decide(monitor, found, project, now=2 * HOUR).reason
    train(found, project, now=2 * HOUR)
    assert "less than 2d ago; the next time is in 45.0 hours" in retraining.decide(monitor, found, project, now=3 * HOUR).reason


@pytest.mark.parametrize("error", [ModelRefused("the gate refused it"), DataRejected("a batch"), Cancelled()])
def test_a_training_that_was_decided_about_or_cancelled_is_over(
    project: Project, alarm: Callable[..., MonitorReport], error: BaseException
) -> None:
    monitor, found = MonitorConfig(retrain=RetrainConfig(cooldown="2d")), alarm()
    with pytest.raises(type(error)):
        train(found, project, 0.0, error)
    assert "less than 2d ago" in retraining.decide(monitor, found, project, now=HOUR).reason


def test_a_training_that_never_ends_is_not_begun_at_every_look(project: Project, alarm: Callable[..., MonitorReport]) -> None:
    monitor, found = MonitorConfig(retrain=RetrainConfig(cooldown="2d")), alarm()
    for _ in range(retraining.MOST_RUNS):
        assert retraining.decide(monitor, found, project, now=0.0).retrain
        retraining.count_attempt(found, project, now=0.0)  # killed each time
    assert "less than 2d ago" in retraining.decide(monitor, found, project, now=HOUR).reason


def test_without_limits_a_person_decides_and_a_calm_model_is_left_alone(
    project: Project, alarm: Callable[..., MonitorReport]
) -> None:
    assert "a person decides: headrace run m" in retraining.decide(MonitorConfig(), alarm(), project).reason
    assert not retraining.decide(MonitorConfig(retrain=RetrainConfig()), alarm(quality=[], worse=[]), project).retrain


def test_an_alarm_is_announced_once(project: Project, alarm: Callable[..., MonitorReport]) -> None:
    found = alarm()
    assert retraining.is_new_alarm(found, project)
    retraining.mark_announced(found, project)
    assert not retraining.is_new_alarm(found, project)
    assert retraining.is_new_alarm(alarm(version="2"), project)


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ({"every": "10s"}, "at least a minute"),
        ({"every": "daily"}, "for example 15m, 1h or 7d"),
        ({"retrain": {"cooldown": "x"}}, "for example 15m"),
        ({"retrain": {"per_week": 0}}, "greater than or equal to 1"),
        ({"alpha": 1}, "less than 1"),
        ({"evry": "1h"}, "every"),
    ],
)
def test_wrong_fields_are_refused(served: Recipe, built: Project, monitor: dict[str, Any], said: str) -> None:
    text = (built.recipes / f"{served.name}.yaml").read_text() + f"\nmonitor: {json.dumps(monitor)}\n"
    with pytest.raises(RecipeError, match=said):
        parse_recipe(text, "recipes/x.yaml")
