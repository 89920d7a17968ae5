"""The state in which a flow leaves a project, without what differs from run to run: times, ids, and the way there.

What a run that was killed may leave in addition, and nothing else:

- the journal's entries `rollout-abandoned`: a roll-out that was undone is in the journal by design;
- files of later looks: a look after the kill is of the version that is in production then (its report, its profile);
- events: that a run crashed is one, and the first event of a project makes the outbox.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx

from headrace.data.versions import data_version, is_tracked
from headrace.release import journal
from headrace.serving.gateway import gateway
from headrace.serving.replicas import runners
from headrace.serving.samples import read_window
from headrace.tracking import registry
from headrace.tracking.runs import client
from tests.kills.scenarios import RECIPE, RESULTS
from tests.release.live import INSTANCE, Live

FACTS = (
    "data_md5",
    "data_rows",
    "content_sha256",
    "metrics",
    "test_rows",
    "replicas",
    "threads",
    "runner",
    "validation",
    "verdict",
)
"""Facts of the journal that do not depend on times and ids."""
SHOWN = 300
"""Characters of a value in a message."""
OUTPUTS = ("train/model.pt", "export/model.onnx", "export/contract.json", "evaluation/metrics.json")
NOT_COMPARED = re.compile(
    r"\.headrace/(logs|events|prefect|gateway|locks|supervisor|run|sockets|usage|keys|quotas|cache|data_docs|great_expectations|replicas|dvc)/"
    r"|\.headrace/bentoml/tmp|\.headrace/monitoring/[^/]+/(2|report)|/__pycache__/|^mlruns/mlflow\.db-|\.lock$"
)
"""What the servers hold, what is a cache, and what a further look at a model writes."""
ID = re.compile(r"[0-9a-f]{32}|(?<=/m-)[0-9a-f]+|(?<=[-/])[0-9a-f]{8}(?=/|$)|(?<=[-/:])[0-9a-z]{12,16}(?=/|$)")


def end_state(live: Live) -> dict[str, Any]:
    """All that is compared, by subject."""
    return {
        "versions": _versions(live),
        "training runs": _training_runs(live),
        "journal": _journal(live),
        "serving": _serving(live),
        "answer": _answer(live),
        "data": _data(live),
        "outputs": {name: _digest(live.project.artifacts(RECIPE) / name) for name in OUTPUTS},
        "monitoring": _monitoring(live),
        "sampled rows": _sampled_rows(live),
        "results": _results(live),
        "files": _files(live),
    }


def _versions(live: Live) -> list[Any]:
    found = registry.versions(RECIPE, live.project)
    return [(one.version, one.aliases, one.tags.get("headrace.content_sha256"), one.identity.get("data_md5")) for one in found]


def _training_runs(live: Live) -> list[str]:
    experiment = client(live.project).get_experiment_by_name(RECIPE)
    found = client(live.project).search_runs([experiment.experiment_id]) if experiment else []
    return sorted(run.info.status for run in found)


def _journal(live: Live) -> list[Any]:
    found = [entry for entry in journal.entries(live.project, RECIPE) if entry.event != "rollout-abandoned"]
    return [(one.event, one.version, {name: one.facts.get(name) for name in FACTS}) for one in found]


def _serving(live: Live) -> Any:
    route = gateway.read_routes(live.project).get(RECIPE)
    started = len(runners.runner_for(live.project).list(RECIPE))
    return route and ([(one.version, one.pool) for one in route.endpoints], len(route.previous), started)


def _answer(live: Live) -> Any:
    body = {"instances": [{**INSTANCE, "month": 1}]}
    answer = httpx.post(f"{live.gateway}/v1/models/{RECIPE}/predict", json=body, headers=live.headers, timeout=30)
    return {name: value for name, value in answer.json().items() if name not in ("id", "request_id")}


def _data(live: Live) -> Any:
    version = data_version(live.project, RECIPE)
    return version.md5, [(batch.name, batch.rows) for batch in version.batches], is_tracked(live.project)


def _monitoring(live: Live) -> Any:
    folder = live.project.state / "monitoring" / RECIPE
    stored = json.loads(text) if (text := _text(folder / "retraining.json")) else {}
    alarm = json.loads(_text(folder / "1" / "alarm.json") or "null")
    return {
        "alarm": alarm,
        "attempts": len(stored.get("attempts", [])),
        "runs": stored.get("runs"),
        "announced": stored.get("announced"),
    }


def _sampled_rows(live: Live) -> list[Any]:
    """The rows that were asked before the flow; the other ones are this module's."""
    window = read_window(live.project, RECIPE, "1", 0.0, float("inf"))
    return sorted(
        (key.request_id, at) for key, at in zip(window.keys, window.times.tolist(), strict=True) if key.tenant == "acme"
    )


def _results(live: Live) -> dict[str, Any]:
    """Digests of what flows have written for people; of records, which have times, only that they are there."""
    folder = live.project.root / RESULTS
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.suffix == ".json" or _digest(path) for path in paths}


def _files(live: Live) -> list[str]:
    """Paths below the project, with digits in place of ids."""
    root = live.project.root
    folders = [root / name for name in (".headrace", "data", "artifacts", "mlruns")]
    paths = [path.relative_to(root).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted(ID.sub("ID", path) for path in paths if not NOT_COMPARED.search(path))


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """A line for each value that differs; of lists, what is missing and what is too much."""
    if wanted == found:
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        names = [*wanted, *(name for name in found if name not in wanted)]
        return [line for name in names for line in differences(wanted.get(name), found.get(name), f"{where} {name}")]
    if isinstance(wanted, list) and isinstance(found, list):
        lines = [f"{where.strip()}: missing: {_short(one)}" for one in wanted if one not in found]
        lines += [f"{where.strip()}: too much: {_short(one)}" for one in found if one not in wanted]
        if lines:
            return lines
    return [f"{where.strip()}: expected {_short(wanted)}, found {_short(found)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
