"""Prometheus metrics of one replica. The number of label values is limited, so that memory is too.

Requests are counted in plain numbers, ten times cheaper than prometheus_client's own objects, and converted to metric
families on a scrape. Everything here is called from the event loop.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKEN_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MAX_TENANTS = 1000
"""Tenants with a label of their own; later ones share the label `other`."""
Answer = str | int | float | list[str | int] | dict[str, float]
"""A label, a value, several labels, or several values by name."""
NO_LABEL = "(none)"


class Histogram:
    """Counts observations by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Returns cumulative counts by bound, in the form of Prometheus."""
        total, found = 0, []
        for bound, count in zip([*map(str, map(float, self.bounds)), "+Inf"], self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Metrics(Collector):
    """Metrics of one replica, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight: Callable[[], float] = lambda: 0
        self.queue_rows: Callable[[], float] = lambda: 0
        self._model = ("none", "0")
        self._tenants: dict[str, str] = {}
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._seconds: dict[str, Histogram] = {}
        self._rows: defaultdict[str, int] = defaultdict(int)
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self._prompt_tokens: defaultdict[str, int] = defaultdict(int)
        self._first_token, self._token_rate = Histogram(SECONDS), Histogram(TOKEN_RATES)
        self._answers: defaultdict[str, int] = defaultdict(int)
        self._quota_refused: defaultdict[str, int] = defaultdict(int)
        self._batches = Histogram(ROWS)
        self._quota_unchecked = 0
        self._no_answers = 0
        self._unseen: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.registry.register(self)

    def set_model(self, model: str, version: str) -> None:
        """Sets the labels of all metrics."""
        self._model = (model, version)

    def count(self, tenant: str, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests[self._label(tenant), route, status] += 1
        found = self._seconds.get(route)
        if found is None:
            found = self._seconds[route] = Histogram(SECONDS)
        found.observe(seconds)

    def count_work(self, tenant: str, rows: int, tokens: int, prompt_tokens: int = 0) -> None:
        label = self._label(tenant)
        if rows:
            self._rows[label] += rows
        if tokens:
            self._tokens[label] += tokens
        if prompt_tokens:
            self._prompt_tokens[label] += prompt_tokens

    def observe_text(self, first_seconds: float, further_seconds: float, tokens: int) -> None:
        """Observes a streamed text of `tokens`: the seconds to its first token, and those from there to its last one."""
        self._first_token.observe(first_seconds)
        if further_seconds > 0 and tokens > 1:
            self._token_rate.observe((tokens - 1) / further_seconds)

    def count_answers(self, answers: Iterable[Answer]) -> None:
        """Counts labels by name, and values by bucket; of several values each with the name of its target."""
        for answer in answers:
            if isinstance(answer, list):
                for label in answer or [NO_LABEL]:
                    self._answers[str(label)] += 1
            elif isinstance(answer, dict):
                for name, value in answer.items():
                    self._answers[f"{name} {bucket_of(value)}"] += 1
            else:
                self._answers[bucket_of(answer) if type(answer) is float else str(answer)] += 1

    def count_batch(self, rows: int) -> None:
        self._batches.observe(rows)

    def count_no_answer(self) -> None:
        """Counts a request to which the model had no finite answer."""
        self._no_answers += 1

    def count_unseen(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Counts values that no training row had, by field and kind (`unknown_level`, `out_of_range`)."""
        for key, count in counts.items():
            self._unseen[key] += count

    def count_refused_quota(self, tenant: str) -> None:
        self._quota_refused[self._label(tenant)] += 1

    def count_unchecked_quota(self) -> None:
        """Counts a request that was served while the quota store did not answer."""
        self._quota_unchecked += 1

    def render(self) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    def collect(self) -> Iterator[Metric]:
        names = ["model", "version"]
        requests = CounterMetricFamily("headrace_requests", "Answered requests", labels=[*names, "tenant", "route", "status"])
        for (tenant, route, status), count in self._requests.items():
            requests.add_metric([*self._model, tenant, route, str(status)], count)
        yield requests
        seconds = HistogramMetricFamily("headrace_request_seconds", "From headers to answer", labels=[*names, "route"])
        for route, found in self._seconds.items():
            seconds.add_metric([*self._model, route], found.buckets(), found.sum)
        yield seconds
        for name, documentation, counts in (
            ("rows", "Rows predicted", self._rows),
            ("tokens", "Tokens generated", self._tokens),
            ("prompt_tokens", "Tokens of prompts", self._prompt_tokens),
            ("quota_refused", "Requests refused by a daily quota", self._quota_refused),
        ):
            family = CounterMetricFamily(f"headrace_{name}", documentation, labels=[*names, "tenant"])
            for tenant, count in counts.items():
                family.add_metric([*self._model, tenant], count)
            yield family
        answers = CounterMetricFamily("headrace_answers", "Answers by label, or bucket of a value", labels=[*names, "answer"])
        for answer, count in self._answers.items():
            answers.add_metric([*self._model, answer], count)
        yield answers
        batches = HistogramMetricFamily("headrace_batch_rows", "Rows of one batch", labels=names)
        batches.add_metric(self._model, self._batches.buckets(), self._batches.sum)
        yield batches
        for name, documentation, observed in (
            ("first_token_seconds", "From headers to the first token of a text", self._first_token),
            ("tokens_per_second", "Tokens a second after the first one of a text", self._token_rate),
        ):
            if any(observed.counts):
                texts = HistogramMetricFamily(f"headrace_{name}", documentation, labels=names)
                texts.add_metric(self._model, observed.buckets(), observed.sum)
                yield texts
        unchecked = CounterMetricFamily(
            "headrace_quota_unchecked", "Requests served while the quota store did not answer", labels=names
        )
        unchecked.add_metric(self._model, self._quota_unchecked)
        yield unchecked
        no_answers = CounterMetricFamily("headrace_no_answers", "Requests without a finite answer", labels=names)
        no_answers.add_metric(self._model, self._no_answers)
        yield no_answers
        unseen = CounterMetricFamily(
            "headrace_unseen_values", "Values that no training row had", labels=[*names, "field", "kind"]
        )
        for (field, kind), count in self._unseen.items():
            unseen.add_metric([*self._model, field, kind], count)
        yield unseen
        for name, documentation, value in (
            ("requests_in_flight", "Requests in flight", self.in_flight),
            ("queue_rows", "Rows waiting for the model", self.queue_rows),
        ):
            gauge = GaugeMetricFamily(f"headrace_{name}", documentation, labels=names)
            gauge.add_metric(self._model, value())
            yield gauge

    def _label(self, tenant: str) -> str:
        found = self._tenants.get(tenant)
        if found is None:
            if len(self._tenants) >= MAX_TENANTS:
                return "other"
            found = self._tenants[tenant] = tenant
        return found


def bucket_of(value: float) -> str:
    """Returns the lower bound of the value's bucket: 1, 2, 5, 10, 20, ... and their negatives; at most 110 buckets.

    >>> bucket_of(37.5), bucket_of(-0.7), bucket_of(0.0)
    ('20', '-0.5', '0')
    """
    size = min(abs(value), 1e12)
    if not size >= 1e-6:  # NaN too
        return "0"
    power = math.floor(math.log10(size))
    first = size / 10**power
    bound = (5 if first >= 5 else 2 if first >= 2 else 1) * 10.0**power
    return f"{math.copysign(bound, value):g}"
