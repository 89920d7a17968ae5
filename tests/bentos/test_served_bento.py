"""A built bento over HTTP, started as replicas start it."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import psutil
import pytest

from headrace.project import Project
from headrace.serving.local_http import try_request
from headrace.serving.packaging import Bento, package, serve_command
from headrace.serving.replicas.connections import has_connections
from tests.asgi import Served, make_project, serve
from tests.tiny_models import image_model

PREDICT = "/v1/models/halves/predict"
IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("served") / "project")


@pytest.fixture(scope="module")
def bento(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    return package(image_model(tmp_path_factory.mktemp("halves")), "halves", "3", {"data_md5": "d41d"}, project)


@pytest.fixture(scope="module")
def server(project: Project, bento: Bento) -> Iterator[Served]:
    with serve(project, bento) as served:
        yield served


def test_a_bento_answers_with_its_identity(server: Served) -> None:
    answer = httpx.post(server.url + PREDICT, json={"instances": [IMAGE]})
    assert answer.json()["predictions"][0]["label"] == "upper"
    described = httpx.get(f"{server.url}/v1/models/halves").json()
    assert described["identity"] == {"data_md5": "d41d", "model": "halves", "version": "3"}


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/metrics"])
def test_health_and_metrics_answer(server: Served, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/models/halves/nothing", "/docs.json"])
def test_unknown_paths_answer_in_json(server: Served, path: str) -> None:
    response = httpx.get(server.url + path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_one_process_serves(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    assert process.children(recursive=True) == []
    assert process.memory_info().rss < 200e6


def test_a_body_over_the_limit_is_refused_while_most_of_it_is_unsent(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            "content-length: 999999999\r\n\r\n[".encode()
        )
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in reply


def test_a_refusal_reaches_a_client_that_sends_its_whole_body(server: Served) -> None:
    for _ in range(5):
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", PREDICT, b"x" * 20_000_000, {"content-type": "application/json"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "too_large")
        connection.close()


def test_many_clients_at_once_each_get_their_own_answer(server: Served) -> None:
    def predict(i: int) -> bool:
        upper = i % 2 == 0
        pixels = [[255 if upper else 0] * 4] * 2 + [[0 if upper else 255] * 4] * 2
        rows = 1 + (i % 7) * 100  # small ones on the event loop, large ones in the thread
        answer = client.post(PREDICT, json={"instances": [{"pixels": pixels}] * rows}, headers={"x-request-id": f"r{i}"}).json()
        labels = {row["label"] for row in answer["predictions"]}
        expected = (f"r{i}", rows, {"upper" if upper else "lower"})
        return (answer["request_id"], len(answer["predictions"]), labels) == expected

    with httpx.Client(base_url=server.url, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(predict, range(160)))


def test_the_service_runs_from_the_bento_not_from_the_working_tree(project: Project, bento: Bento) -> None:
    source = bento.path / "src" / "bentos" / "protocols" / "v1.py"
    original = source.read_text()
    try:
        source.write_text(original.replace('"predictions": predictions', '"from_bento": predictions'))
        with serve(project, bento) as served:
            assert "from_bento" in httpx.post(served.url + PREDICT, json=IMAGE).json()
    finally:
        source.write_text(original)


def test_sigterm_ends_requests_in_flight_and_exits_with_zero(project: Project, bento: Bento) -> None:
    body = json.dumps({"instances": [IMAGE] * 9000}).encode()
    with serve(project, bento) as served, socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-1])
        time.sleep(0.2)  # the request is under way: its last byte is still to come
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert served.process.poll() is None
        connection.sendall(body[-1:])
        reply = b""
        while chunk := connection.recv(1 << 20):
            reply += chunk
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert len(json.loads(reply.partition(b"\r\n\r\n")[2])["predictions"]) == 9000
        assert served.process.wait(20) == 0


def test_nothing_listens_until_the_sample_was_predicted(project: Project, bento: Bento) -> None:
    """Whoever connects too early is refused at once instead of left waiting; the first answer of /readyz is 200."""
    seen: list[int] = []
    with serve(project, bento, wait=False) as served:
        end = time.monotonic() + 60
        while not seen and time.monotonic() < end:
            try:
                seen.append(httpx.get(f"{served.url}/readyz", timeout=0.5).status_code)
            except httpx.ConnectError:
                time.sleep(0.01)
    assert seen == [200]


def test_a_model_that_fails_its_sample_never_becomes_ready(project: Project, tmp_path: Path) -> None:
    folder = image_model(tmp_path / "bad")
    text = (folder / "contract.json").read_text().replace('"labels": [\n  "upper",', '"labels": [\n  "third",\n  "upper",')
    (folder / "contract.json").write_text(text)
    bad = package(folder, "halves", "4", {}, project)
    with serve(project, bad, wait=False) as served:
        assert served.process.wait(60) != 0
        assert "sample cannot be predicted" in served.log.read_text()


def test_a_taken_port_is_reported_in_one_line(project: Project, bento: Bento, server: Served) -> None:
    argv, env = serve_command(project, bento.tag, ("127.0.0.1", server.port), 1)
    done = subprocess.run(argv, env={**env, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{server.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_on_a_unix_socket_it_keeps_connections_and_completes_a_request_after_sigterm(
    project: Project, bento: Bento, tmp_path: Path
) -> None:
    path = tmp_path / "sockets" / "replica.sock"
    argv, env = serve_command(project, bento.tag, path, 1)
    process = subprocess.Popen(argv, env={**env, "PATH": "/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while (ready := try_request(path, "/readyz")) is None or ready.status != 200:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
        body = json.dumps(IMAGE).encode()
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            for _ in range(2):
                connection.sendall(head.encode() + body)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert has_connections(path, process.pid)
            connection.sendall(head.encode() + body[:-1])
            time.sleep(0.3)
            process.terminate()
            time.sleep(0.5)
            connection.sendall(body[-1:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


def test_a_folder_that_others_can_enter_is_reported_in_one_line(project: Project, bento: Bento, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    argv, env = serve_command(project, bento.tag, tmp_path / "replica.sock", 1)
    done = subprocess.run(argv, env={**env, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and not (tmp_path / "replica.sock").exists()
    assert done.stderr.startswith(f"cannot listen in the folder {tmp_path}: it has mode 755, which lets other users in")
    assert "Traceback" not in done.stderr


def test_bentoml_itself_serves_the_same_bento(project: Project, bento: Bento) -> None:
    """The bento is an ordinary one: BentoML's own loader and its own stack give the same answer."""
    program = """
import sys, asyncio, json, bentoml, httpx
service = bentoml.load(sys.argv[1], standalone_load=True)
async def main():
    app = service.to_asgi()
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            print((await client.post("/v1/models/halves/predict", json=json.loads(sys.argv[2]))).text)
            print((await client.get("/readyz")).status_code)
asyncio.run(main())
"""
    argv, env = serve_command(project, bento.tag, ("127.0.0.1", 1), 1)
    done = subprocess.run(
        [argv[0], "-P", "-c", program, bento.tag, json.dumps(IMAGE)],
        env={**env, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer, ready = done.stdout.strip().splitlines()
    assert json.loads(answer)["predictions"][0]["label"] == "upper"
    assert ready == "200"


def test_a_slow_sender_does_not_delay_other_clients(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
        slow.sendall(head.encode() + b"{")
        assert httpx.post(server.url + PREDICT, json=IMAGE, timeout=20).status_code == 200


def test_a_body_of_100_megabytes_of_unknown_length_is_refused_and_not_kept(server: Served) -> None:
    before = psutil.Process(server.process.pid).memory_info().rss
    piece = b"10000\r\n" + b"1" * 65_536 + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection, suppress(OSError):
        head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(1600):
            connection.sendall(piece)
            sent += 65_536
    assert sent < 100e6
    assert psutil.Process(server.process.pid).memory_info().rss < before + 60e6
    assert httpx.post(server.url + PREDICT, json=IMAGE).status_code == 200


@pytest.mark.parametrize("answered", [False, True], ids=["amid its body", "before its answer"])
def test_a_disconnected_client_leaves_no_running_work(server: Served, answered: bool) -> None:
    body = json.dumps({"instances": [IMAGE] * 5000}).encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            head = (
                f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + (body if answered else body[: len(body) // 2]))
    end = time.monotonic() + 20
    while (under_way := in_flight(server)) and time.monotonic() < end:
        time.sleep(0.02)
    assert under_way == 0
    assert httpx.post(server.url + PREDICT, json=IMAGE).status_code == 200


def in_flight(server: Served) -> float:
    line = next(
        line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith("headrace_requests_in_flight{")
    )
    return float(line.rpartition(" ")[2])
