"""What Prometheus and Grafana read: checked by promtool, and held against the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bentos.telemetry.metrics import Metrics
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "headrace.json"
INTERVAL = "$__rate_interval"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def queries() -> list[tuple[str, str]]:
    """Title and expression of every query of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_prometheus_takes_the_configuration(promtool: str) -> None:
    subprocess.run([promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")], check=True)


def test_each_alert_is_raised_when_it_should_be_and_not_otherwise(promtool: str) -> None:
    tests = DEPLOY / "prometheus" / "alerts.test.yml"
    done = subprocess.run([promtool, "test", "rules", str(tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {case["alertname"] for test in yaml.safe_load(tests.read_text())["tests"] for case in test["alert_rule_test"]}
    assert tried == {rule["alert"] for rule in rules()}


def test_every_query_of_the_dashboard_is_one(promtool: str, tmp_path: Path) -> None:
    as_rules = [
        {"record": f"panel:{number}", "expr": expr.replace(INTERVAL, "1m").replace("$model", ".*").replace("$tenant", ".*")}
        for number, (_, expr) in enumerate(queries())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": as_rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_ask_for_metrics_that_a_replica_has() -> None:
    collected = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    kinds = {family.name for family in Metrics().registry.collect()}
    known = collected | {f"{kind}{suffix}" for kind in kinds for suffix in ("", "_total", "_bucket", "_sum", "_count")}
    asked = set(re.findall(r"\bheadrace_\w+", " ".join([expr for _, expr in queries()] + [rule["expr"] for rule in rules()])))
    assert asked, "nothing is asked for"
    assert asked - known == set()


def test_every_alert_says_what_mends_it() -> None:
    assert all({"summary", "hint"} <= rule["annotations"].keys() for rule in rules())
