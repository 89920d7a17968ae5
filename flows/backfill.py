"""Scores past data with a version: the deployment `backfill` in Prefect's UI, or on a schedule. `headrace backfill` does it
without Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.cancellation import supervised_run
from headrace.backfill.run import Request, backfill_lock
from headrace.project import find_project
from tasks.backfill import join, prepare, score


@flow(name="backfill", flow_run_name="backfill-{recipe_name}")
def backfill(
    recipe_name: str,
    data: str,
    out: str,
    version: str | None = None,
    workers: int | None = None,
    query: str | None = None,
    restart: bool = False,
) -> dict[str, Any]:
    """Scores `data` with `version` of the model (by default the one in production) and writes `out`; paths are relative to the
    project. A run of the same parameters continues one that was killed or cancelled; rows that were refused have their error
    beside them. Returns the record of the backfill."""
    project = find_project()
    request = Request(
        model=recipe_name,
        data=data,
        out=project.root / Path(out).expanduser(),
        is_folder=out.endswith("/"),
        version=version or None,
        query=query or None,
        restart=restart,
    )
    with supervised_run(), backfill_lock(request.out, project):
        plan = prepare(request, project)
        score(plan, workers, project)
        return join(plan, project)
