"""What callers see of batches, without a gateway or replicas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.project import Project
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.scoring.rows import JSON_LINES
from headrace.services.api.batch_store import BatchFolder, BatchStore, Progress, Submitted, now
from headrace.services.api.batches import BatchRoutes

ID = "0123456789abcdef" * 2
UNUSED: Any = None
"""In place of the catalogue, which these routes do not ask."""


def request(batch: str, tenant: str = "acme", models: str = "m") -> TrackedRequest:
    path = {"name": "m", "batch": batch}
    found = TrackedRequest({"type": "http", "headers": [], "path_params": path}, UNUSED)
    found.caller = Caller(tenant, frozenset({models}), "t1", float("inf"))
    return found


def body(response: Any) -> Any:
    return json.loads(bytes(response.body))


def accepted(project: Project) -> BatchFolder:
    store = BatchStore(project)
    incoming = store.incoming()
    (incoming / "parts").mkdir()
    folder = store.accept(incoming, Submitted(ID, "m", "acme", "t1", None, JSON_LINES, 3, "", now()))
    assert folder is not None
    return folder


def test_a_batch_that_was_set_aside_has_failed_and_the_api_server_starts(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (accepted(project).path / "batch.json").write_text("")

    async def scenario() -> Any:
        async with BatchRoutes(project, UNUSED) as routes:
            with pytest.raises(Refused) as unknown:
                await routes.show(request("f" * 32))
            assert unknown.value.status == 404
            with pytest.raises(Refused) as other_model:
                await routes.show(request(ID, models="other"))
            assert other_model.value.status == 403
            return body(await routes.show(request(ID)))

    found = asyncio.run(scenario())
    assert (found["id"], found["state"], found["error"]["code"]) == (ID, "failed", "damaged")


def test_a_result_with_a_missing_part_is_an_error_and_not_a_shorter_result(tmp_path: Path) -> None:
    project = Project(tmp_path)
    folder = accepted(project)
    for index in range(2):
        folder.part_path(index, 1, 0).write_text(f'{{"row":{index}}}\n')
    folder.write_progress(Progress("done", 2, rows_total=2, changed_at=now()))

    async def scenario() -> None:
        async with BatchRoutes(project, UNUSED) as routes:
            assert (await routes.result(request(ID))).headers["content-length"] == "20"
            folder.part_path(1, 1, 0).unlink()
            with pytest.raises(Refused, match="parts of the result are missing") as refused:
                await routes.result(request(ID))
            assert (refused.value.status, refused.value.code) == (500, "damaged")

    asyncio.run(scenario())


def test_the_operator_sees_and_cancels_the_batches_of_all_tenants_and_nobody_else_does(tmp_path: Path) -> None:
    project = Project(tmp_path)
    accepted(project).write_progress(Progress("waiting", waits_until=now() + 3600, changed_at=now()))

    async def scenario() -> None:
        async with BatchRoutes(project, UNUSED) as routes:
            for stranger in (request(ID, "rival", "*"), request(ID, "operator", "m")):
                assert body(await routes.list(stranger)) == {"batches": []}
                for act in (routes.show, routes.cancel, routes.result):
                    with pytest.raises(Refused) as refused:
                        await act(stranger)
                    assert refused.value.status == 404
            operator = request(ID, "operator", "*")
            assert [found["tenant"] for found in body(await routes.list(operator))["batches"]] == ["acme"]
            with pytest.raises(Refused, match="only the tenant"):
                await routes.result(operator)
            assert body(await routes.cancel(operator))["state"] == "cancelled"
            assert body(await routes.show(request(ID)))["state"] == "cancelled"

    asyncio.run(scenario())
