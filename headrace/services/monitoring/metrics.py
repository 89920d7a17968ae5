"""The last look at each model as metrics for Prometheus. The number of series is bounded by the features of the models that
serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.project import Project
from headrace.release import history, journal
from headrace.services.monitoring.report import MonitorReport, last_report

LABELS = ("model", "version")
MOST_FEATURES = 200
"""Features of a model with series of their own, those with the largest change."""


def render(project: Project) -> bytes:
    """Returns the metrics of the last look at each version in production; nothing of one that was not looked at yet."""
    serving = history.production(journal.entries(project))
    looked = [(entry, last_report(model, project)) for model, entry in sorted(serving.items())]
    reports = [found for entry, found in looked if found is not None and found.version == entry.version]
    registry = CollectorRegistry()
    registry.register(MonitoringMetrics(reports))
    return generate_latest(registry)


class MonitoringMetrics(Collector):
    """The metrics of some reports."""

    def __init__(self, reports: Iterable[MonitorReport]) -> None:
        self._reports = list(reports)

    def collect(self) -> Iterator[Metric]:
        looked = _gauge("looked_at_seconds", "Time of the last look, in seconds since 1970")
        rows = _gauge("rows", "Sampled rows of the last day at the last look")
        alarm = _gauge("alarm", "Whether the rows differ from training: 1 if the alarm is raised")
        p_value = _gauge("p_value", "A bound on the chance of this much evidence at any time, if nothing has changed")
        evidence = _gauge("evidence", "Base-10 logarithm of the wealth won by betting that a feature has changed", "feature")
        distance = _gauge("distance", "Total variation from training in the last day, 0 to 1", "feature")
        by_chance = _gauge("distance_by_chance", "The distance that chance explains", "feature")
        missing = _gauge("missing", "Share of missing values in the last day", "feature")
        for found in self._reports:
            labels = [found.model, found.version]
            looked.add_metric(labels, datetime.fromisoformat(found.at).timestamp())
            rows.add_metric(labels, found.rows)
            if found.alarm is not None:
                alarm.add_metric(labels, float(found.alarm.raised))
                p_value.add_metric(labels, found.alarm.p_value)
            wealth = found.alarm.by_feature if found.alarm is not None else {}
            for one in found.drift[:MOST_FEATURES]:
                distance.add_metric([*labels, one.name], one.total_variation or 0.0)
                by_chance.add_metric([*labels, one.name], one.expected_by_chance or 0.0)
                missing.add_metric([*labels, one.name], one.missing or 0.0)
                if one.name in wealth:
                    evidence.add_metric([*labels, one.name], wealth[one.name])
        yield from (looked, rows, alarm, p_value, evidence, distance, by_chance, missing)
        yield from self._of_quality()

    def _of_quality(self) -> Iterator[Metric]:
        quality = _gauge("quality", "A metric by the newest true answers", "metric")
        low = _gauge("quality_low", "Lower bound of the quality, at every look together", "metric")
        high = _gauge("quality_high", "Upper bound of the quality, at every look together", "metric")
        reference = _gauge("quality_reference", "The metric on the test rows at the release", "metric")
        fallen = _gauge("quality_has_fallen", "Whether the quality is worse than at the release: 1 if it is", "metric")
        estimate = _gauge("estimated_quality", "A metric as the probabilities of the last day promise it", "metric")
        estimate_low = _gauge("estimated_quality_low", "Lower bound of the estimate", "metric")
        estimate_high = _gauge("estimated_quality_high", "Upper bound of the estimate", "metric")
        for found in self._reports:
            for one in found.quality:
                labels = [found.model, found.version, one.metric]
                values = (one.value, one.low, one.high, one.reference, float(one.has_fallen))
                for family, value in zip((quality, low, high, reference, fallen), values, strict=True):
                    family.add_metric(labels, value)
            for guess in found.estimates:
                labels = [found.model, found.version, guess.metric]
                bounds = ((estimate, guess.value), (estimate_low, guess.low), (estimate_high, guess.high))
                for family, bound in bounds:
                    if bound is not None:
                        family.add_metric(labels, bound)
        yield from (quality, low, high, reference, fallen, estimate, estimate_low, estimate_high)


def _gauge(name: str, documentation: str, label: str | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_monitor_{name}", documentation, labels=[*LABELS, *([label] if label else [])])
