"""The report of one look at a model: for machines as JSON, for people as lines of a terminal and as a page."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace.files import read_cached_json, write_json, write_text
from headrace.monitoring.drift import FeatureDrift
from headrace.monitoring.performance import Estimate
from headrace.project import Project

REPORT_VERSION = 1
MOST_SHOWN = 10


class Quality(BaseModel):
    """The quality of a version by the true answers that are known."""

    model_config = ConfigDict(frozen=True)
    metric: str
    rows: int
    """The newest true answers, which are judged together."""
    all_rows: int
    value: float
    low: float
    high: float
    """An interval that holds at every look together."""
    reference: float
    """The metric on the test rows, before the release."""
    has_fallen: bool
    """Whether the interval, and that of the test rows, show that the quality is worse than at the release."""

    @property
    def sentence(self) -> str:
        verdict = "has fallen" if self.has_fallen else "as before"
        rows = f"the newest {self.rows:,} of {self.all_rows:,} true answers"
        interval = f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.metric} {self.value:.4g} ({interval}) on {rows}, {self.reference:.4g} at the release: {verdict}"


class AlarmReport(BaseModel):
    """What the alarm says."""

    model_config = ConfigDict(frozen=True)
    raised: bool
    since: str | None = None
    """The hour of the alarm."""
    features: list[str] = []
    p_value: float
    """A bound on the chance of this much evidence at any time, if nothing has changed."""
    alpha: float
    windows: int
    """Hours with rows since the version was released, or since the last restart."""


class MonitorReport(BaseModel):
    """One look at a model."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = REPORT_VERSION
    model: str
    version: str
    at: str
    new_hours: int
    rows: int
    """Sampled rows of the last day, which `drift` describes."""
    alarm: AlarmReport | None = None
    drift: list[FeatureDrift] = []
    """Features with their distance from training, the largest first."""
    estimate: Estimate | None = None
    """Of the accuracy in the last day, from the model's own probabilities."""
    quality: Quality | None = None
    notes: list[str] = []

    @property
    def is_alarming(self) -> bool:
        return bool(self.alarm and self.alarm.raised) or bool(self.quality and self.quality.has_fallen)

    @property
    def reasons(self) -> list[str]:
        """Why the model should be looked at, in sentences; empty if nothing is wrong."""
        found = []
        if self.alarm and self.alarm.raised:
            found.append(f"the rows differ from training since {self.alarm.since}: {', '.join(self.alarm.features)}")
        if self.quality and self.quality.has_fallen:
            found.append(self.quality.sentence)
        return found

    def lines(self) -> Iterator[str]:
        """What a terminal shows."""
        yield f"{self.model}@{self.version}: {self._state}"
        if self.drift:
            yield f"  {self.rows:,} sampled row{'' if self.rows == 1 else 's'} of the last day:"
            yield f"  {'feature':<28} {'distance':>8} {'by chance':>9} {'PSI':>7} {'missing':>8} {'unseen':>7}"
            for one in self.drift[:MOST_SHOWN]:
                values = (one.total_variation, one.expected_by_chance, one.psi, one.missing)
                unseen = one.unseen if one.unseen is not None else one.outside_range
                shown = " ".join(f"{_number(value):>{width}}" for value, width in zip(values, (8, 9, 7, 8), strict=True))
                yield f"  {one.name[:28]:<28} {shown} {_number(unseen):>7}"
        if self.quality:
            yield f"  {self.quality.sentence}"
        if self.estimate and self.estimate.value is not None:
            low, high = self.estimate.low or 0.0, self.estimate.high or 0.0
            value = f"{self.estimate.value:.4g} ({low:.4g} to {high:.4g})"
            yield f"  estimated {self.estimate.metric} {value}, if its probabilities are right"
        for note in self.notes:
            yield f"  {note}"

    @property
    def _state(self) -> str:
        if self.is_alarming:
            return "ALARM: " + "; ".join(self.reasons)
        if self.alarm is None:
            return "not compared with training"
        return (
            f"no alarm in {self.alarm.windows:,} hours (p = {self.alarm.p_value:.2g}; at most {self.alarm.alpha:.0%} of models "
            "whose rows do not change ever raise one)"
        )


def folder_of(model: str, project: Project) -> Path:
    """Returns the folder with the reports and the state of the monitoring of a model."""
    return project.state / "monitoring" / model


def last_report(model: str, project: Project) -> MonitorReport | None:
    """Returns the newest report; None before the first one, or if its file is damaged."""
    stored = read_cached_json(folder_of(model, project) / "report.json")
    if not isinstance(stored, dict) or stored.get("schema_version") != REPORT_VERSION:
        return None
    return MonitorReport.model_validate(stored)


def write_report(found: MonitorReport, project: Project) -> Path:
    """Writes `report.json` and `report.html`; returns the page."""
    folder = folder_of(found.model, project)
    write_json(folder / "report.json", found.model_dump(mode="json"))
    write_text(folder / "report.html", page_of(found))
    return folder / "report.html"


def page_of(found: MonitorReport) -> str:
    """Returns the report as a page in one file, which needs no network."""
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td>"
        + "".join(
            f"<td>{_number(value)}</td>"
            for value in (one.total_variation, one.expected_by_chance, one.psi, one.missing, one.outside_range, one.unseen)
        )
        + "</tr>"
        for one in found.drift
    )
    table = (
        f"<table><tr><th>feature<th>distance<th>by chance<th>PSI<th>missing<th>outside of training<th>unseen</tr>{rows}</table>"
        if rows
        else ""
    )
    state = "alarm" if found.is_alarming else "calm"
    others = [found.quality.sentence] if found.quality else []
    if found.estimate and found.estimate.value is not None:
        estimate = f"estimated {found.estimate.metric} of the last day: {found.estimate.value:.4g}"
        others.append(f"{estimate}, if the model's probabilities are right")
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in [*others, *found.notes])
    title = html.escape(f"{found.model}@{found.version}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: monitoring</title><style>{STYLE}</style>'
        f'<h1>{title}</h1><p class="{state}">{html.escape(found._state)}</p>'
        f"<p>{found.rows:,} sampled rows of the last day, {html.escape(found.at)}</p>{lines}{table}{_picture(found)}</html>\n"
    )


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.alarm{background:#fde8df;padding:.6rem;border-left:4px solid #D55E00}"
    ".calm{background:#eef4ee;padding:.6rem;border-left:4px solid #2e7d32}img{max-width:100%}"
)


def _picture(found: MonitorReport) -> str:
    shown = [one for one in found.drift if one.buckets and one.excess > 0]
    if not shown:
        return ""
    from headrace.monitoring.pictures import draw_distributions

    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        path = draw_distributions(shown, "training and the last day", ("training", "last day"), Path(folder) / "drift.png")
        encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="distributions in training and in the last day" src="data:image/png;base64,{encoded}">'


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"
