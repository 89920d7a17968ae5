"""Progress lines, printed in the terminal and written to Prefect's log."""

from __future__ import annotations

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from headrace import console
from headrace.pipeline.dvc import StageResult


def step(name: str, detail: str = "") -> None:
    """Reports that a step begins."""
    console.step(name, detail)
    get_run_logger().info("%s %s", name, detail)


def report(line: str) -> None:
    """Reports one line about the current step."""
    console.report(line)
    get_run_logger().info("%s", line)


def report_result(result: StageResult) -> StageResult | State[StageResult]:
    """Reports whether a stage ran or was unchanged. Returns its result, or the state `Unchanged` of a step that did nothing."""
    report(f"done in {result.seconds:.1f} s" if result.ran else "unchanged")
    return result if result.ran else Completed(name="Unchanged", message="neither code nor inputs have changed", data=result)
