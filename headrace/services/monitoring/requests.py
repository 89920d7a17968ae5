"""Which requests to a version were refused since the last look, and how often its values were unseen: from the metrics of its
replicas, which count every request and not only those that are sampled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.serving.gateway import gateway
from headrace.serving.local_http import request as send

STATE_VERSION = 1
ANSWER_SECONDS = 5.0
KEPT_SECONDS = 14 * 24 * 3600.0
"""Age at which counts are removed."""
REASONS = {
    "400": "not readable",
    "401": "no valid token",
    "403": "not allowed",
    "404": "not found",
    "405": "wrong method",
    "408": "too slow",
    "413": "too large",
    "415": "wrong media type",
    "422": "against the contract",
    "429": "quota used up",
    "499": "client disconnected",
    "503": "overloaded",
    "504": "took too long",
}
"""Why requests have no answer, by status."""
REQUESTS, UNSEEN = "headrace_requests_total", "headrace_unseen_values_total"


class RequestCounts(BaseModel):
    """The requests that were counted between two looks."""

    model_config = ConfigDict(frozen=True)
    at: float
    """The later look, in seconds since 1970."""
    requests: int
    refused: dict[str, int] = {}
    """By reason."""
    unseen: int = 0
    """Values that no training row had."""


def count_requests(project: Project, model: str, version: str, path: Path, now: float | None = None) -> list[RequestCounts]:
    """Adds what the replicas of a version counted since the last look to the file at `path`; returns its counts, oldest first.

    A replica that restarted counts from 0 again. What one counted between the last look and its end is lost. Replicas that do
    not answer are left out until the next look.
    """
    now = time.time() if now is None else now
    before, found = _read(path)
    totals = {**before, **dict(_totals(project, model, version))}
    new = Counter[str]()
    for replica, counts in totals.items():
        new.update(_increase(before.get(replica, {}), counts))
    if not totals:
        return found
    statuses = {key: count for key, count in new.items() if key != UNSEEN and count}
    refused = Counter[str]()
    for status, count in statuses.items():
        if status >= "400":
            refused[REASONS.get(status, f"status {status}")] += count
    added = RequestCounts(at=now, requests=sum(statuses.values()), refused=dict(refused), unseen=new[UNSEEN])
    found = [*(one for one in found if now - one.at < KEPT_SECONDS), *([added] if added.requests or added.unseen else [])]
    kept = [one.model_dump(mode="json") for one in found]
    write_json(path, {"schema_version": STATE_VERSION, "replicas": totals, "counts": kept})
    return found


def _totals(project: Project, model: str, version: str) -> Iterable[tuple[str, dict[str, int]]]:
    """Yields what each replica has counted since its start: requests by status, and unseen values."""
    for replica in gateway.endpoints_by_model(project).get(model, []):
        if replica.version != version:
            continue
        try:
            answer = send(replica.address_in(project), "/metrics", timeout_seconds=ANSWER_SECONDS)
            if answer.status == 200:
                yield replica.id, counts_in(answer.text)
        except (OSError, ValueError):  # it does not answer, or not with metrics
            continue


def counts_in(metrics: str) -> dict[str, int]:
    """Returns the requests by status, and the unseen values, of metrics in the text format of Prometheus."""
    from prometheus_client.parser import text_string_to_metric_families

    counts = Counter[str]()
    for sample in (sample for family in text_string_to_metric_families(metrics) for sample in family.samples):
        if sample.name in (REQUESTS, UNSEEN):
            counts[sample.labels["status"] if sample.name == REQUESTS else UNSEEN] += int(sample.value)
    return dict(counts)


def _increase(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Returns what was counted since `before`; all of it if the counters began again."""
    began_again = any(now.get(key, 0) < count for key, count in before.items())
    return {key: count - (0 if began_again else before.get(key, 0)) for key, count in now.items()}


def _read(path: Path) -> tuple[dict[str, dict[str, int]], list[RequestCounts]]:
    """Returns the last totals of each replica, and the counts; nothing from a damaged file."""
    stored = read_cached_json(path)
    if not isinstance(stored, dict) or stored.get("schema_version") != STATE_VERSION:
        return {}, []
    try:
        totals = {str(replica): {str(k): int(v) for k, v in counts.items()} for replica, counts in stored["replicas"].items()}
        return totals, [RequestCounts.model_validate(one) for one in stored["counts"]]
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError):
        return {}, []
