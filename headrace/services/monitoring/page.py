"""The report as a page in one file, which needs no network and no script: pictures are SVG."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.files import write_json, write_text
from headrace.monitoring.drift import Bucket, FeatureDrift
from headrace.project import Project
from headrace.services.monitoring.hours import FeatureHour, Hour
from headrace.services.monitoring.report import MonitorReport, folder_of

MOST_CARDS = 60
"""Features with pictures; further ones are in the table alone."""
MOST_BARS = 26
MOST_LABELS = 13
"""Names below the bars; of more bars every second or third has one."""
BARS = (300, 140)
SERIES = (300, 120)
"""Width and height of the pictures of one feature."""
TRAINING, SERVED, MISSING, UNSEEN = "#9aa5b1", "#d9480f", "#1971c2", "#7048a8"


def write_report(found: MonitorReport, series: Sequence[Hour], project: Project) -> Path:
    """Writes `report.json` and `report.html`; returns the page."""
    folder = folder_of(found.model, project)
    write_json(folder / "report.json", found.model_dump(mode="json"))
    write_text(folder / "report.html", page_of(found, series))
    return folder / "report.html"


def page_of(found: MonitorReport, series: Sequence[Hour]) -> str:
    """Returns the page: the verdict, the quality, the requests, and a card for each feature, the worst first.

    Args:
        series: the hours of the version, oldest first.
    """
    title = html.escape(f"{found.model}@{found.version}")
    state = "alarm" if found.is_alarming else "calm"
    raised = found.alarm.features if found.alarm else []
    cards = "".join(_card(one, series, one.name in raised) for one in found.drift[:MOST_CARDS])
    rows = f"{found.rows:,} sampled row{'' if found.rows == 1 else 's'} of the last day"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}: monitoring</title><style>{STYLE}</style><main>"
        f"<header><h1>{title}</h1><p>{rows} · looked at {html.escape(found.at)}</p></header>"
        f'<p class="{state}">{html.escape(_capital(found.state))}</p>'
        f"{_sentences(found)}{_requests(found)}"
        f"{_legend() if cards else ''}<div class=cards>{cards}</div>{_table(found.drift)}</main></html>\n"
    )


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:0;background:#f6f7f8;color:#1f2933}"
    "main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 3rem}header{margin-bottom:1rem}"
    "h1{font-size:1.6rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}header p{margin:0;color:#616e7c}"
    ".alarm,.calm{padding:.7rem 1rem;border-radius:6px;border-left:5px solid}"
    ".alarm{background:#fdebe3;border-color:#d9480f}.calm{background:#e9f4ec;border-color:#2b8a3e}"
    "ul{padding-left:1.2rem}.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}"
    ".card{background:#fff;border:1px solid #e1e5e9;border-radius:8px;padding:.8rem 1rem}"
    ".card.raised{border-color:#d9480f;box-shadow:0 0 0 1px #d9480f}.card h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}"
    ".card p{margin:.1rem 0 .4rem;color:#616e7c;font-size:.82rem}svg{width:100%;height:auto;display:block;overflow:visible}"
    "svg text{font:9.5px system-ui,sans-serif;fill:#616e7c}"
    ".legend{display:flex;flex-wrap:wrap;gap:1rem;font-size:.85rem;color:#616e7c;margin:.2rem 0 .8rem}"
    ".legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}"
    "table{border-collapse:collapse;width:100%;background:#fff;font-size:.88rem}"
    ".wide{overflow-x:auto}td,th{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #e1e5e9;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}"
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentences(found: MonitorReport) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in found.sentences)
    return f"<h2>Quality and requests</h2><ul>{items}</ul>" if items else ""


def _requests(found: MonitorReport) -> str:
    """The share of refused requests over time, where any was refused."""
    counts = [one for one in found.requests if one.requests]
    if len(counts) < 2 or not any(one.refused for one in counts):
        return ""
    shares = [(one.at, sum(one.refused.values()) / one.requests) for one in counts]
    svg = _lines([(shares, SERVED, True)], 1000, 110)
    return f'<div class="card"><h3>Refused requests</h3><p>share of the requests between two looks</p>{svg}</div>'


def _legend() -> str:
    entries = (
        (TRAINING, "training"),
        (SERVED, "last day, and distance from training by hour"),
        (MISSING, "missing by hour"),
        (UNSEEN, "unseen or outside of training by hour"),
    )
    items = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for colour, name in entries)
    return f"<h2>Features, the largest change first</h2><div class=legend>{items}</div>"


def _card(one: FeatureDrift, series: Sequence[Hour], is_raised: bool) -> str:
    distance = f"distance {_number(one.total_variation)}, {_number(one.expected_by_chance)} by chance"
    alarm = " · in the alarm" if is_raised else ""
    return (
        f'<div class="card{" raised" if is_raised else ""}"><h3>{html.escape(one.name)}</h3>'
        f"<p>{distance}{alarm}</p>{_bars(one.buckets)}{_history(one.name, series)}</div>"
    )


def _bars(buckets: Sequence[Bucket]) -> str:
    """The distributions in training and in the last day, side by side."""
    shown = [bucket for bucket in buckets if bucket.reference or bucket.window]
    if len(shown) > MOST_BARS:
        rest = shown[MOST_BARS - 1 :]
        others = Bucket(name="others", reference=sum(b.reference for b in rest), window=sum(b.window for b in rest))
        shown = [*shown[: MOST_BARS - 1], others]
    width, height = BARS
    most = max((max(bucket.reference, bucket.window) for bucket in shown), default=0.0) or 1.0
    step, floor, every = width / max(1, len(shown)), height - 40, -(-len(shown) // MOST_LABELS)
    parts = []
    for i, bucket in enumerate(shown):
        title = f"{bucket.name}: {bucket.reference:.1%} in training, {bucket.window:.1%} in the last day"
        bars = "".join(
            f'<rect x="{i * step + offset * step:.1f}" y="{floor - value / most * (floor - 6):.1f}" width="{step * 0.38:.1f}" '
            f'height="{value / most * (floor - 6):.1f}" fill="{colour}"/>'
            for offset, value, colour in ((0.1, bucket.reference, TRAINING), (0.5, bucket.window, SERVED))
        )
        at = i * step + step / 2
        name = html.escape(_short(bucket.name)) if i % every == 0 else ""
        label = (
            f'<text x="{at:.1f}" y="{floor + 11}" text-anchor="end" transform="rotate(-28 {at:.1f} {floor + 11})">{name}</text>'
        )
        parts.append(f"<g><title>{html.escape(title)}</title>{bars}{label}</g>")
    line = f'<line x1="0" x2="{width}" y1="{floor}" y2="{floor}" stroke="#cbd2d9"/>'
    return f'<svg viewBox="0 0 {width} {height}" role="img">{line}{"".join(parts)}</svg>'


def _history(name: str, series: Sequence[Hour]) -> str:
    """The distance from training, and missing and unseen values, hour by hour."""

    def line(measure: Callable[[FeatureHour], float | None]) -> list[tuple[float, float]]:
        points = ((hour.hour, hour.features.get(name)) for hour in series)
        return [(_seconds(at), value) for at, one in points if one is not None and (value := measure(one)) is not None]

    missing, unseen = line(lambda one: one.missing), line(lambda one: one.unseen)
    lines = [(line(lambda one: one.distance), SERVED, True)]
    lines += [(points, colour, False) for points, colour in ((missing, MISSING), (unseen, UNSEEN)) if any(y for _, y in points)]
    return _lines(lines, *SERIES) if len(lines[0][0]) > 1 else ""


def _lines(lines: Sequence[tuple[Sequence[tuple[float, float]], str, bool]], width: int, height: int) -> str:
    """Shares over time: each line has its points (seconds, share), its colour, and whether the area below it is filled."""
    times = [x for points, _, _ in lines for x, _ in points]
    first, last = min(times), max(times)
    most = max(0.1, *(y for points, _, _ in lines for _, y in points))
    left, floor, top = 30, height - 18, 8

    def place(x: float, y: float) -> str:
        return f"{left + (x - first) / max(1.0, last - first) * (width - left - 4):.1f},{floor - y / most * (floor - top):.1f}"

    drawn = []
    for points, colour, is_filled in lines:
        path = " ".join(place(x, y) for x, y in points)
        if is_filled:
            area = f"{place(points[0][0], 0)} {path} {place(points[-1][0], 0)}"
            drawn.append(f'<polygon points="{area}" fill="{colour}" opacity=".12"/>')
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img">'
        f'<line x1="{left}" x2="{width}" y1="{floor}" y2="{floor}" stroke="#cbd2d9"/>'
        f'<text x="{left - 4}" y="{floor + 3}" text-anchor="end">0</text>'
        f'<text x="{left - 4}" y="{top + 4}" text-anchor="end">{most:.0%}</text>'
        f'<text x="{left}" y="{height - 4}">{_day(first)}</text>'
        f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">{_day(last)}</text>{"".join(drawn)}</svg>'
    )


def _table(drift: Sequence[FeatureDrift]) -> str:
    if not drift:
        return ""
    head = "".join(
        f"<th>{name}" for name in ("feature", "distance", "by chance", "PSI", "missing", "outside of training", "unseen")
    )
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(one))}</tr>" for one in drift)
    return f"<h2>All figures of the last day</h2><div class=wide><table><tr>{head}</tr>{rows}</table></div>"


def _cells(one: FeatureDrift) -> Iterator[str]:
    yield html.escape(one.name)
    for value in (one.total_variation, one.expected_by_chance, one.psi, one.missing, one.outside_range, one.unseen):
        yield _number(value)


def _seconds(hour: str) -> float:
    return datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %H:%M}"


def _short(name: str) -> str:
    name = name.partition(" to ")[0]  # of a bin of numbers its lower edge
    return name if len(name) <= 11 else name[:10] + "…"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"
