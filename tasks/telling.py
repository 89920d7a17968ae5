"""One line for the terminal and for Prefect's log alike."""

from __future__ import annotations

from prefect import get_run_logger

from headrace import console
from headrace.pipeline.dvc import StageResult


def step(name: str, detail: str = "") -> None:
    console.step(name, detail)
    get_run_logger().info("%s %s", name, detail)


def report(line: str) -> None:
    console.report(line)
    get_run_logger().info("%s", line)


def told(result: StageResult) -> StageResult:
    """Says whether a stage ran or was unchanged, and passes its result on."""
    report(f"done in {result.seconds:.1f} s" if result.ran else "unchanged")
    return result
