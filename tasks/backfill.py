"""Backfills: prepares one, scores its chunks, and joins their parts."""

from __future__ import annotations

from typing import Any

from prefect import task

from headrace import console
from headrace.backfill import run
from headrace.backfill.plan import Plan
from headrace.backfill.progress import Progress
from headrace.backfill.run import Request
from headrace.project import Project
from headrace.scoring.refusals import describe
from tasks.reporting import report, step
from tasks.settings import PLAIN


@task(name="prepare backfill", **PLAIN)
def prepare(request: Request, project: Project) -> Plan:
    """Finds the version and the data, and divides the rows into chunks; an earlier run of the same backfill continues."""
    step("prepare", f"rows for {request.model}")
    return run.prepare(request, project, report)


@task(name="score", **PLAIN)  # without a time limit: it takes as long as there are rows
def score(plan: Plan, workers: int | None, project: Project) -> None:
    """Scores the chunks that are not done."""
    step("score", f"{plan.rows:,} rows with {plan.name}")
    with console.bar("score", plan.rows) as bar:
        progress = Progress(plan.rows, bar)
        run.score(plan, workers or run.workers_by_default(), project, progress.add, report)


@task(name="join", **PLAIN)
def join(plan: Plan, project: Project) -> dict[str, Any]:
    """Joins the parts to the result, and writes its record."""
    step("join", plan.out)
    record = run.finish(plan, project)
    report(f"{record['rows']:,} rows: {record['answered']:,} answered, {record['refused']:,} refused")
    for refusal in record["refusals"]:
        report(describe(refusal))
    return {name: value for name, value in record.items() if name != "plan"}
