"""Configuration of Prometheus and Grafana: checked by promtool, and compared with the metrics of replicas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from bentos.telemetry.metrics import Metrics
from headrace.services.monitoring.metrics import MonitoringMetrics
from tests.paths import ROOT
from tests.services.monitoring.reports import report

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


def test_the_configuration_is_valid(promtool: str, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "deploy" / "prometheus")
    token = tmp_path / ".headrace" / "keys" / "operator.token"  # promtool looks whether it is there
    token.parent.mkdir(parents=True)
    token.write_text("a token")
    subprocess.run([promtool, "check", "config", str(tmp_path / "deploy" / "prometheus" / "prometheus.yml")], check=True)


def test_each_alert_fires_when_it_should_and_not_otherwise(promtool: str) -> None:
    tests = DEPLOY / "prometheus" / "alerts.test.yml"
    done = subprocess.run([promtool, "test", "rules", str(tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {case["alertname"] for test in yaml.safe_load(tests.read_text())["tests"] for case in test["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in rules()}


def test_every_query_of_the_dashboard_is_valid(promtool: str, tmp_path: Path) -> None:
    as_rules = [
        {"record": f"panel:{number}", "expr": expr.replace(INTERVAL, "1m").replace("$model", ".*").replace("$tenant", ".*")}
        for number, (_, expr) in enumerate(queries())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": as_rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_use_existing_metrics() -> None:
    metrics = Metrics()
    metrics.observe_text(0.2, 1.0, 30)  # its histograms are shown by replicas that generate text only
    found = [*metrics.registry.collect(), *MonitoringMetrics([report()]).collect()]
    collected = {sample.name for family in found for sample in family.samples}
    families = {family.name for family in found}
    known = collected | {f"{family}{suffix}" for family in families for suffix in ("", "_total", "_bucket", "_sum", "_count")}
    used = set(re.findall(r"\bheadrace_\w+", " ".join([expr for _, expr in queries()] + [rule["expr"] for rule in rules()])))
    assert used, "no metric is used"
    assert used - known == set()


def test_every_alert_has_a_summary_and_a_hint() -> None:
    assert all({"summary", "hint"} <= rule["annotations"].keys() for rule in rules())


def test_metrics_of_the_monitoring_are_valid_and_have_a_series_for_each_feature(promtool: str) -> None:
    registry = CollectorRegistry()
    registry.register(MonitoringMetrics([report(), report(model="other", alarm=None, drift=[], quality=[])]))
    text = generate_latest(registry)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    lines = text.decode().splitlines()
    assert 'headrace_monitor_alarm{model="trips",version="3"} 1.0' in lines
    assert 'headrace_monitor_evidence{feature="distance",model="trips",version="3"} 9.0' in lines
    assert 'headrace_monitor_quality_low{metric="accuracy",model="trips",version="3"} 0.74' in lines
    assert 'headrace_monitor_estimated_quality{metric="accuracy",model="trips",version="3"} 0.9' in lines
    assert 'headrace_monitor_looked_at_seconds{model="other",version="3"} 1.79604e+09' in lines
    assert sum(line.startswith("headrace_monitor_distance{") for line in lines) == 3
