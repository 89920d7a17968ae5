"""Batches through the real gateway are complete and in order, also after kills, with bad files and with used-up quotas."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.client import Batch, Client, Forbidden, InvalidInput, NotFound
from headrace.runtime.usage import read_usage
from headrace.serving.access import tokens
from tests.services.api.server import LocalService, until

JSON_LINES = "application/x-ndjson"
BATCH_SECONDS = 180
"""Seconds that a batch of a few rows may take on a busy machine."""


@pytest.fixture(scope="module")
def acme(service: LocalService) -> Iterator[Client]:
    with service.client("acme", "trips", "halves", "letters") as client:
        yield client


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def trips(count: int) -> list[Any]:
    return [{"distance": i, "carrier": "AA"} for i in range(count)]


def done(client: Client, file: Path, to: Path, model: str = "trips") -> tuple[Batch, list[Any]]:
    """The batch after its end, and the lines of its result."""
    batch = client.wait(model, client.submit(model, file).id, BATCH_SECONDS)
    assert batch.state == "done", batch
    client.result(model, batch.id, to)
    return batch, [json.loads(line) for line in to.read_text().splitlines()]


def test_rows_are_answered_in_order_and_each_bad_row_gets_its_own_error(
    service: LocalService, acme: Client, tmp_path: Path
) -> None:
    rows = trips(2300)
    rows[3], rows[1200], rows[2299] = "{broken", {"distance": "far", "carrier": "AA"}, [1, 2]
    batch, found = done(acme, lines(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl")
    assert (batch.rows_done, batch.rows_total, batch.rows_failed) == (2300, 2300, 3)
    assert [line["row"] for line in found] == list(range(2300))
    assert [line["error"]["code"] for line in found if "error" in line] == ["bad_json", *["contract_violation"] * 2]
    assert found[1200]["error"]["path"] == "row.distance"
    until(lambda: not (service.project.state / "batches" / batch.id / "input").exists())
    assert all(line["prediction"] == {"minutes": 2.0 * line["row"] + 10} for line in found if "prediction" in line)


def test_a_file_of_bad_rows_only_is_processed_to_its_end(acme: Client, tmp_path: Path) -> None:
    batch, found = done(acme, lines(tmp_path / "rows.jsonl", [{"carrier": "AA"}] * 60), tmp_path / "answers.jsonl")
    assert (batch.rows_failed, {line["error"]["path"] for line in found}) == (60, {"row.distance"})


def test_the_result_of_parquet_is_parquet(acme: Client, tmp_path: Path) -> None:
    table = pa.table({"carrier": ["AA", "BB", None, "AA"] * 300, "distance": pa.array(range(1200), pa.int16())})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=170)
    batch = acme.wait("trips", acme.submit("trips", tmp_path / "rows.parquet").id, BATCH_SECONDS)
    found = pq.read_table(acme.result("trips", batch.id, tmp_path / "answers.parquet")).to_pydict()
    assert found["row"] == list(range(1200))
    assert found["minutes"][:4] == [10.0, 22.0, None, 16.0]
    assert found["error"][2] == "contract_violation: row.carrier: expected text, got null"
    assert batch.rows_failed == 300


def test_images_are_nested_lists_or_bytes(acme: Client, tmp_path: Path) -> None:
    upper = [[255] * 4, [255] * 4, [0] * 4, [0] * 4]
    lower = bytes([0] * 8 + [255] * 8)
    table = pa.table({"pixels": [upper, upper[::-1]]})
    pq.write_table(table, tmp_path / "lists.parquet")
    pq.write_table(pa.table({"pixels": [lower]}), tmp_path / "bytes.parquet")
    for name, labels in (("lists", ["upper", "lower"]), ("bytes", ["lower"])):
        batch = acme.wait("halves", acme.submit("halves", tmp_path / f"{name}.parquet").id, BATCH_SECONDS)
        found = pq.read_table(acme.result("halves", batch.id, tmp_path / "answers.parquet"))
        assert found["label"].to_pylist() == labels


def test_text_generation_works_in_a_batch(acme: Client, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "max_tokens": 2, "temperature": 0}] * 40
    batch, found = done(acme, lines(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl", "letters")
    assert batch.rows_failed == 0, found
    assert {line["prediction"]["text"] for line in found} == {acme.predict("letters", rows[0]).predictions[0]["text"]}


def test_a_restarted_api_server_continues_a_batch_without_losing_or_repeating_rows(
    service: LocalService, acme: Client, tmp_path: Path
) -> None:
    rows = [{**row, "carrier": "AA" if row["distance"] % 7 else "ZZ"} for row in trips(20_000)]
    submitted = acme.submit("trips", lines(tmp_path / "rows.jsonl", rows))
    until(lambda: acme.batch("trips", submitted.id).rows_done)
    service.stop("api-server")
    service.start_api_server()
    before = acme.batch("trips", submitted.id)
    assert before.state != "done" and before.rows_done > 0
    batch = acme.wait("trips", submitted.id, BATCH_SECONDS)
    assert (batch.state, batch.rows_done, batch.rows_failed) == ("done", 20_000, 0)
    found = [json.loads(line) for line in acme.result("trips", batch.id, tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["row"], line["prediction"]["minutes"]) for line in found] == [
        (i, 2.0 * i + (10 if i % 7 else 0)) for i in range(20_000)
    ]
    assert [line["row"] for line in found if "warnings" in line] == list(range(0, 20_000, 7))
    assert found[0]["warnings"][0]["path"] == "row.carrier" and batch.warnings == {"carrier": 2858}


def test_a_batch_that_is_told_to_yield_keeps_its_answers_and_goes_on(
    service: LocalService, acme: Client, tmp_path: Path
) -> None:
    submitted = acme.submit("trips", lines(tmp_path / "rows.jsonl", trips(6000)))
    until(lambda: acme.batch("trips", submitted.id).rows_done)
    server = psutil.Process(service.processes["api-server"].pid)
    (worker,) = (child for child in server.children() if any(submitted.id in part for part in child.cmdline()))
    worker.terminate()
    until(lambda: not worker.is_running())
    batch = acme.wait("trips", submitted.id, BATCH_SECONDS)
    assert (batch.state, batch.rows_done, batch.rows_failed) == ("done", 6000, 0)
    found = [json.loads(line) for line in acme.result("trips", batch.id, tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["row"] for line in found] == list(range(6000))
    assert f"the process of batch {submitted.id} ended" not in (service.project.root / "api-server.log").read_text()


def test_a_batch_waits_for_a_stopped_replica_and_continues_when_it_is_back(
    service: LocalService, acme: Client, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    service.stop("halves-v1-0001")
    rows = [{"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}] * 3
    submitted = acme.submit("halves", lines(tmp_path / "rows.jsonl", rows))
    service.start_replica(service.models["halves"], "halves-v1-0001", service.sockets["halves"])
    assert acme.wait("halves", submitted.id, BATCH_SECONDS).state == "done"


def test_the_rows_of_a_batch_count_as_usage_of_its_tenant(service: LocalService, tmp_path: Path) -> None:
    with service.client("counted", "trips") as client:
        done(client, lines(tmp_path / "rows.jsonl", trips(250)), tmp_path / "answers.jsonl")

    def rows() -> int:
        return sum(record.rows for record in read_usage(service.project.usage) if record.tenant == "counted")

    until(lambda: rows() == 250)


def test_beyond_its_daily_quota_a_batch_keeps_its_answers_and_waits_for_the_next_day(
    service: LocalService, tmp_path: Path
) -> None:
    with service.client("small", "trips", rows_per_day=40) as client:
        submitted = client.submit("trips", lines(tmp_path / "rows.jsonl", trips(2000)))
        until(lambda: client.batch("trips", submitted.id).state == "waiting")
        batch = client.batch("trips", submitted.id)
        assert batch.error is not None and batch.error["code"] == "quota_exceeded"
        assert batch.waits_until is not None and batch.waits_until % 86_400 < 60
        assert 16 <= batch.rows_done <= 40
        with pytest.raises(InvalidInput) as caught:
            client.result("trips", batch.id, tmp_path / "answers.jsonl")
        assert (caught.value.status, caught.value.code) == (409, "not_done")
        assert client.cancel("trips", batch.id).state == "cancelled"


def test_a_batch_fails_when_its_token_is_revoked(service: LocalService, tmp_path: Path) -> None:
    token, facts = tokens.issue(service.project, "gone", ["trips"], 3600)
    with Client(service.gateway, token) as client, service.client("gone", "trips") as other:
        submitted = client.submit("trips", lines(tmp_path / "rows.jsonl", trips(20_000)))
        until(lambda: client.batch("trips", submitted.id).rows_done)
        tokens.revoke(service.project, facts.jti)
        batch = other.wait("trips", submitted.id, BATCH_SECONDS)
    assert batch.state == "failed" and batch.error is not None
    assert batch.error["code"] == "unauthorized"


def test_only_its_tenant_and_the_operator_see_a_batch(service: LocalService, acme: Client, tmp_path: Path) -> None:
    submitted = acme.submit("trips", lines(tmp_path / "rows.jsonl", trips(3)))
    assert submitted.id in [batch.id for batch in acme.batches("trips")]
    with service.client("rival", "trips") as rival:
        assert rival.batches("trips") == []
        for act in (rival.batch, rival.cancel, lambda m, b: rival.result(m, b, tmp_path / "stolen")):
            with pytest.raises(NotFound, match="no such batch"):
                act("trips", submitted.id)
    assert not (tmp_path / "stolen").exists()
    assert acme.wait("trips", submitted.id, BATCH_SECONDS).state == "done"
    with Client(service.gateway, tokens.operator_token(service.project)) as operator:
        assert (submitted.id, "acme") in [(batch.id, batch.more["tenant"]) for batch in operator.batches("trips")]
        with pytest.raises(Forbidden, match="only the tenant"):
            operator.result("trips", submitted.id, tmp_path / "stolen")
        assert operator.cancel("trips", submitted.id).id == submitted.id
    assert submitted.id not in [batch.id for batch in acme.batches("trips")]


@pytest.mark.parametrize("name", ["..%2f..%2fkeys", "batch.json", "0" * 31, "G" * 32, "%00" * 4])
def test_a_batch_id_cannot_address_other_files(service: LocalService, name: str) -> None:
    headers = {"authorization": f"Bearer {service.token('acme', 'trips')}"}
    for path in (f"/v1/models/trips/batches/{name}", f"/v1/models/trips/batches/{name}/result"):
        with service.direct() as direct, httpx.Client(base_url=service.gateway) as through:
            assert {client.get(path, headers=headers).status_code for client in (direct, through)} <= {400, 403, 404, 405}


def test_the_same_idempotency_key_gives_the_same_batch_and_another_file_is_refused(acme: Client, tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", trips(5))
    first, second = (acme.submit("trips", file, key="monday") for _ in range(2))
    assert first.id == second.id
    with pytest.raises(InvalidInput) as caught:
        acme.submit("trips", lines(tmp_path / "others.jsonl", trips(6)), key="monday")
    assert (caught.value.status, caught.value.code) == (409, "idempotency_key_reused")


def test_a_cancelled_batch_leaves_no_rows_and_is_removed_when_it_is_cancelled_again(
    service: LocalService, acme: Client, tmp_path: Path
) -> None:
    submitted = acme.submit("trips", lines(tmp_path / "rows.jsonl", trips(20_000)))
    until(lambda: acme.batch("trips", submitted.id).rows_done)
    assert acme.cancel("trips", submitted.id).state == "cancelled"
    folder = service.project.state / "batches" / submitted.id
    assert not (folder / "input").exists() and not (folder / "parts").exists()
    acme.cancel("trips", submitted.id)
    assert not folder.exists()
    with pytest.raises(NotFound):
        acme.batch("trips", submitted.id)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"PAR1 and nothing more", "bad_parquet"),
        (b"PAR1" + b"\xff" * 400 + b"\xff\xff\xff\x7fPAR1", "bad_parquet"),
        (b"", "no_rows"),
    ],
)
def test_a_file_that_is_not_parquet_fails_with_the_reason(acme: Client, tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    if not content:
        with pytest.raises(InvalidInput, match="the body is empty"):
            acme.submit("trips", tmp_path / "rows.parquet")
        return
    batch = acme.wait("trips", acme.submit("trips", tmp_path / "rows.parquet").id, BATCH_SECONDS)
    assert batch.state == "failed" and batch.error is not None
    assert batch.error["code"] == code


def test_parquet_with_unknown_columns_fails_with_the_closest_name(acme: Client, tmp_path: Path) -> None:
    pq.write_table(pa.table({"distanse": [1.0], "carrier": ["AA"]}), tmp_path / "rows.parquet")
    batch = acme.wait("trips", acme.submit("trips", tmp_path / "rows.parquet").id, BATCH_SECONDS)
    assert batch.state == "failed" and batch.error is not None
    assert batch.error == {
        "code": "wrong_columns",
        "message": "the model has no field 'distanse'; did you mean 'distance'?; leave the column out of the file",
    }


def test_a_damaged_parquet_page_fails_the_batch_and_not_the_api_server(acme: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"distance": [float(i) for i in range(5000)], "carrier": ["AA"] * 5000}), path)
    content = bytearray(path.read_bytes())
    content[40:4000] = b"\xa5" * 3960
    path.write_bytes(bytes(content))
    batch = acme.wait("trips", acme.submit("trips", path).id, BATCH_SECONDS)
    assert (batch.state, (batch.error or {})["code"]) == ("failed", "bad_parquet")
    assert acme.models()


def test_unsupported_and_too_large_files_are_refused_and_leave_nothing_behind(
    service: LocalService, acme: Client, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        acme.submit("trips", lines(tmp_path / "rows.jsonl", trips(1)), media_type="text/html")
    assert caught.value.status == 415
    (tmp_path / "large.jsonl").write_bytes(b"x" * (4 * 1024 * 1024 + 1))
    with pytest.raises(InvalidInput) as caught:
        acme.submit("trips", tmp_path / "large.jsonl")
    assert (caught.value.status, caught.value.code) == (413, "too_large")
    headers = {"authorization": f"Bearer {service.token('acme', 'trips')}", "content-type": JSON_LINES}
    with service.direct() as direct:
        unsized = direct.post("/v1/models/trips/batches", content=iter([b"x" * 1_000_000] * 6), headers=headers)
    assert unsized.status_code == 413
    assert left_over(service) == []


@pytest.mark.parametrize(("media_type", "status"), [(JSON_LINES, 413), ("text/html", 415)])
def test_a_client_that_is_still_uploading_gets_the_error(
    service: LocalService, tmp_path: Path, media_type: str, status: int
) -> None:
    (tmp_path / "large.jsonl").write_bytes(b"x" * 6_000_000)
    with Client(service.gateway, service.token("acme", "trips"), retries=0) as client:
        for _ in range(20):
            with pytest.raises(InvalidInput) as caught:
                client.submit("trips", tmp_path / "large.jsonl", media_type=media_type)
            assert caught.value.status == status


def test_a_client_that_disconnects_during_an_upload_leaves_nothing_behind(service: LocalService) -> None:
    where = urlsplit(service.gateway)
    head = (
        f"POST /v1/models/trips/batches HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.token('acme', 'trips')}\r\n"
        f"content-type: {JSON_LINES}\r\ncontent-length: 3000000\r\n\r\n"
    )
    with socket.create_connection((str(where.hostname), where.port or 80)) as connection:
        connection.sendall(head.encode() + b'{"distance": 1, "carrier": "AA"}\n' * 40_000)
        until(lambda: left_over(service))
    until(lambda: not left_over(service))


def test_a_slow_upload_is_accepted_and_a_stalled_one_is_refused_and_leaves_nothing(service: LocalService) -> None:
    where = urlsplit(service.gateway)
    row = b'{"distance": 1, "carrier": "AA"}\n'
    responses = []
    for pauses in ([0.8] * 3, [2.8]):
        head = (
            f"POST /v1/models/trips/batches HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.token('acme', 'trips')}\r\n"
            f"content-type: {JSON_LINES}\r\ncontent-length: {len(row) * (len(pauses) + 1)}\r\n\r\n"
        )
        with socket.create_connection((str(where.hostname), where.port or 80), timeout=60) as connection:
            connection.sendall(head.encode() + row)
            for pause in pauses:
                time.sleep(pause)
                with contextlib.suppress(OSError):  # already refused
                    connection.sendall(row)
            response = HTTPResponse(connection)
            response.begin()
            body = json.loads(response.read())
            responses.append((response.status, (body["error"] or {}).get("message")))
    assert responses == [(202, None), (408, "no data arrived for 2 s")]
    assert left_over(service) == []


def test_a_full_disk_is_reported_and_leaves_nothing_behind(service: LocalService, acme: Client, tmp_path: Path) -> None:
    import resource

    file = lines(tmp_path / "rows.jsonl", trips(60_000))
    pid = service.processes["api-server"].pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
    try:
        with pytest.raises(Exception, match="no space is left") as caught:
            acme.submit("trips", file)
        assert caught.value.status == 507  # type: ignore[attr-defined]
        assert left_over(service) == []
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    assert acme.wait("trips", acme.submit("trips", lines(tmp_path / "few.jsonl", trips(2))).id, BATCH_SECONDS).state == "done"


def left_over(service: LocalService) -> list[Path]:
    """Incomplete uploads."""
    return list((service.project.state / "batches").glob(".incoming-*"))
