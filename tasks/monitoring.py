"""Monitoring: looks at a model, announces alarms, and decides whether to train again."""

from __future__ import annotations

from prefect import task

from headrace.events.publish import publish
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.services.monitoring import look as looking
from headrace.services.monitoring import retraining
from headrace.services.monitoring.report import MonitorReport
from tasks.reporting import report, step
from tasks.settings import HOUR, PLAIN


@task(name="look", timeout_seconds=HOUR, **PLAIN)
def look(recipe: Recipe, project: Project) -> MonitorReport:
    """Counts the hours that are new, and compares the last day with training."""
    step("look", "at what is asked and answered, beside the training rows")
    found = looking.look(recipe.name, recipe.monitor, project, report, metric=recipe.gate.main_metric)
    for line in found.lines():
        report(line)
    return found


@task(name="announce", timeout_seconds=HOUR, **PLAIN)
def announce(recipe: Recipe, found: MonitorReport, project: Project) -> None:
    """Publishes an alarm, once for each alarm."""
    if not found.is_alarming or not retraining.is_new_alarm(found, project):
        return
    step("announce", "the alarm")
    data = {"version": found.version, "reasons": found.reasons}
    if publish(project, "alarm", found.model, data, report=report):
        retraining.mark_announced(found, project)


@task(name="decide on training", timeout_seconds=HOUR, **PLAIN)
def decide_retraining(recipe: Recipe, found: MonitorReport, project: Project) -> bool:
    """Whether the model is trained again now, by the limits of `monitor.retrain`, or goes on with a training that was
    interrupted; an attempt is counted before it begins."""
    decision = retraining.decide(recipe.monitor, found, project)
    if found.is_alarming or found.worse or decision.retrain:
        report(decision.reason)
    if decision.retrain:
        retraining.count_attempt(found, project)
    return decision.retrain
