"""The application in front of MLflow and Prefect, over real connections, with a small application behind it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from headrace.runtime.token_verifier import RELOAD_SECONDS, TokenVerifier
from headrace.services.authentication import sessions
from headrace.services.authentication.app import Authenticated, Receive, Scope, Send
from headrace.services.authentication.credentials import basic
from headrace.services.authentication.login_page import CODES_PATH, LOGIN_PATH
from headrace.services.authentication.peer import uid_of
from headrace.services.authentication.reading import is_read
from tests.other_user import as_other_user, needs_root
from tests.token_issuer import TokenIssuer

SECRET = "headrace:a-secret-of-the-test"
BROWSER = {"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


async def behind(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was sent. Its pages' settings are those of Prefect; a WebSocket gets its first message back."""
    sent = {name.decode(): value.decode() for name, value in scope.get("headers", [])}
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        first = await receive()
        await send({"type": "websocket.send", "text": json.dumps([sent.get("authorization"), json.loads(first["text"])])})
        await send({"type": "websocket.close", "code": 1000})
    elif scope["type"] == "http":
        is_settings = scope["path"] == "/ui-settings"
        body = json.dumps({"auth": "BASIC", "csrf_enabled": True} if is_settings else sent).encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html"), length]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """A server of the test, and requests to it."""

    name: str
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str = "/", method: str = "GET", content: str = "", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.request(method, self.address + path, content=content, headers=named, timeout=60, trust_env=False)

    def code(self) -> str:
        return str(self.ask(CODES_PATH, "POST", authorization=basic(SECRET)).json()["code"])

    def session(self) -> str:
        """The cookie of a new session."""
        answer = self.ask(LOGIN_PATH, "POST", self.code(), origin=self.address)
        assert answer.status_code == 204
        return answer.headers["set-cookie"].partition(";")[0]


@contextlib.contextmanager
def served(name: str, tokens: TokenVerifier | None = None) -> Iterator[Running]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
        config = uvicorn.Config(Authenticated(behind, name, port, SECRET, tokens), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(name, port)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def prefect() -> Iterator[Running]:
    with served("prefect") as running:
        yield running


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> TokenIssuer:
    return TokenIssuer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def mlflow(issuer: TokenIssuer) -> Iterator[Running]:
    with served("mlflow", TokenVerifier(issuer.folder)) as running:
        yield running


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/health", "/health", CODES_PATH, f"{LOGIN_PATH}/../api/health", f"//{LOGIN_PATH}"])
def test_nothing_is_answered_without_the_secret(method: str, path: str, mlflow: Running) -> None:
    wrong = ["", basic("headrace:"), basic(SECRET + "x"), "Bearer " + SECRET, basic(SECRET).replace("Basic", "basic ")]
    for authorization in wrong:
        answer = mlflow.ask(path, method, authorization=authorization)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Headrace ")


def test_the_secret_is_accepted_and_only_once_in_a_request(mlflow: Running) -> None:
    assert mlflow.ask(authorization=basic(SECRET)).status_code == 200
    twice = [("authorization", basic("a:b")), ("authorization", basic(SECRET))]
    assert httpx.get(mlflow.address, headers=twice, trust_env=False).status_code == 401
    answer = mlflow.ask(authorization=basic(SECRET))
    assert (answer.headers["x-frame-options"], answer.headers["x-content-type-options"]) == ("SAMEORIGIN", "nosniff")


@pytest.mark.parametrize(
    "foreign",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_a_page_of_another_site_is_refused_whatever_it_brings(foreign: dict[str, str], mlflow: Running) -> None:
    for secret in ({}, {"authorization": basic(SECRET)}, {"cookie": mlflow.session()}):
        for method, path in (("GET", "/"), ("POST", "/api"), ("OPTIONS", "/api"), ("POST", LOGIN_PATH)):
            answer = mlflow.ask(path, method, **secret, **foreign)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers


def test_a_browser_logs_in_once_with_a_code(mlflow: Running) -> None:
    page = mlflow.ask(**BROWSER)
    assert page.status_code == 401 and "headrace open mlflow" in page.text
    code = mlflow.code()
    answer = mlflow.ask(LOGIN_PATH, "POST", code, origin=mlflow.address)
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 204 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert mlflow.ask(LOGIN_PATH, "POST", code, origin=mlflow.address).status_code == 403
    seen = mlflow.ask("/api", "POST", cookie=cookie.partition(";")[0], origin=mlflow.address).json()
    assert seen["authorization"] == basic(SECRET) and "cookie" not in seen
    assert mlflow.ask(CODES_PATH, "POST", cookie=cookie.partition(";")[0]).status_code == 403
    assert mlflow.ask(cookie=cookie.partition(";")[0][:-1]).status_code == 401


@pytest.mark.parametrize("code", ["", "x", "x" * 5000])
def test_a_wrong_code_is_refused(code: str, mlflow: Running) -> None:
    assert mlflow.ask(LOGIN_PATH, "POST", code).status_code == 403


READS = [
    ("GET", "/"),
    ("HEAD", "/static-files/static/js/main.js"),
    ("GET", "/get-artifact"),
    ("GET", "/ajax-api/2.0/mlflow/registered-models/search"),
    ("POST", "/ajax-api/2.0/mlflow/runs/search"),
    ("POST", "/api/2.0/mlflow/runs/search"),
    ("POST", "/graphql"),
]
CHANGES = [
    ("POST", "/api/2.0/mlflow/model-versions/set-tag"),
    ("POST", "/ajax-api/2.0/mlflow/registered-models/alias"),
    ("DELETE", "/api/2.0/mlflow/registered-models/delete"),
    ("PATCH", "/api/2.0/mlflow/registered-models/update"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/model.onnx"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
    ("POST", "/ajax-api/3.0/mlflow/review-queues/get-or-create-user"),
    ("GET", "/ajax-api/3.0/mlflow/gateway/secrets/list"),
    ("GET", "/ajax-api/2.0/mlflow/webhooks"),
    ("GET", "/get-artifact/../api"),
    ("GET", "/headrace/codes"),
    ("POST", "/headrace/codes"),
]


@pytest.mark.parametrize("role", ["viewer", "reviewer"])
def test_a_person_looks_at_mlflow_and_changes_nothing(role: str, mlflow: Running, issuer: TokenIssuer) -> None:
    token = issuer.token("ada", (), role=role)
    answers = [mlflow.ask(path, method, authorization=f"Bearer {token}").status_code for method, path in READS]
    assert answers == [200] * len(READS)
    for method, path in CHANGES:
        answer = mlflow.ask(path, method, authorization=f"Bearer {token}")
        assert answer.status_code == 403, (method, path)
    assert f"the role {role} of ada may look at MLflow" in answer.json()["detail"]
    assert (answer.json()["error_code"], answer.json()["message"]) == ("PERMISSION_DENIED", answer.json()["detail"])
    assert [is_read(method, path) for method, path in READS + CHANGES] == [True] * len(READS) + [False] * len(CHANGES)


def test_only_a_token_with_a_role_is_accepted_and_by_mlflow_alone(
    mlflow: Running, prefect: Running, issuer: TokenIssuer, tmp_path: Path
) -> None:
    operator = issuer.header("operator", role="operator")
    assert mlflow.ask("/api/2.0/mlflow/model-versions/set-tag", "POST", **operator).status_code == 200
    refused = [issuer.header("acme"), issuer.header(role="admin"), issuer.header(role="viewer", exp=1)]
    refused.append(TokenIssuer(tmp_path / "other").header(role="viewer"))
    assert [mlflow.ask(**header).status_code for header in refused] == [401] * 4
    assert prefect.ask("/api/flows", **operator).status_code == 401


def test_a_browser_logs_in_with_a_token_until_it_is_revoked(mlflow: Running, issuer: TokenIssuer) -> None:
    token = issuer.token("ada", (), role="reviewer")
    assert LOGIN_PATH in mlflow.ask(**BROWSER).text and "<form" in mlflow.ask(LOGIN_PATH, **BROWSER).text
    answer = mlflow.ask(LOGIN_PATH, "POST", token, origin=mlflow.address)
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert mlflow.ask(cookie=cookie).status_code == 200
    assert mlflow.ask("/api/2.0/mlflow/model-versions/set-tag", "POST", cookie=cookie).status_code == 403
    assert mlflow.ask(LOGIN_PATH, "POST", issuer.token("acme"), origin=mlflow.address).status_code == 403, "a tenant's token"
    issuer.revoke(token)
    time.sleep(RELOAD_SECONDS + 0.1)
    assert mlflow.ask(cookie=cookie).status_code == 401


@needs_root
def test_another_user_cannot_use_the_session_of_a_token(mlflow: Running, issuer: TokenIssuer) -> None:
    token, port = issuer.token("ada", (), role="viewer"), mlflow.port

    def send(request: str, body: str = "", cookie: str = "") -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(f"{request}\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n".encode())
            connection.sendall(f"cookie: {cookie}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            return connection.recv(4096).decode()

    answer = as_other_user(lambda: send(f"POST {LOGIN_PATH} HTTP/1.1", token))
    cookie = answer.partition("set-cookie: ")[2].partition(";")[0]
    assert " 204 " in answer and cookie, "a person who has an account of their own, or comes through a tunnel"
    assert " 200 " in as_other_user(lambda: send("GET / HTTP/1.1", cookie=cookie))
    assert " 401 " in send("GET / HTTP/1.1", cookie=cookie)


def test_codes_and_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    known, now = sessions.Sessions(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    late, code = known.new_code(), known.new_code()
    assert known.accept(code) and not known.accept(code)
    session = known.start(sessions.Session(1000))
    assert known.find(session) == sessions.Session(1000)
    now[0] += sessions.CODE_SECONDS + 1
    assert not known.accept(late) and known.find(session) is not None
    now[0] += sessions.SESSION_SECONDS
    assert known.find(session) is None
    codes = [known.new_code() for _ in range(sessions.MAX_CODES + 1)]
    assert not known.accept(codes[0]) and known.accept(codes[-1])


@needs_root
def test_another_user_cannot_use_a_stolen_session_or_code(mlflow: Running) -> None:
    """A browser sends a cookie to every port of a host, so that another user's server on this machine can read it."""
    cookie, code, port = mlflow.session(), mlflow.code(), mlflow.port

    def send(request: str) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(f"{request}\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n".encode())
            connection.sendall(f"cookie: {cookie}\r\ncontent-length: {len(code)}\r\n\r\n{code}".encode())
            return int(connection.recv(64).split()[1])

    requests = ("GET / HTTP/1.1", f"POST {LOGIN_PATH} HTTP/1.1")
    assert as_other_user(lambda: [send(request) for request in requests]) == [401, 403]
    assert [send(request) for request in requests] == [200, 204]


def test_the_kernel_says_whose_a_connection_is() -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as listening:
            listening.bind((host, 0))
            listening.listen()
            server = listening.getsockname()[:2]
            client = socket.create_connection(server)
            accepted, _ = listening.accept()
            with client, accepted:
                assert uid_of(client.getsockname()[:2], server) == os.getuid()
                assert uid_of((host, 1), server) is None
            assert uid_of(client.getsockname()[:2] if client.fileno() >= 0 else (host, 2), server) is None


def test_the_pages_of_prefect_need_no_password(prefect: Running) -> None:
    cookie = prefect.session()
    assert prefect.ask("/ui-settings", cookie=cookie, accept_encoding="gzip").json() == {"auth": None, "csrf_enabled": True}
    assert prefect.ask("/ui-settings", authorization=basic(SECRET)).json()["auth"] == "BASIC"
    address = f"ws://127.0.0.1:{prefect.port}/api/events/out"
    with connect(address, additional_headers={"cookie": cookie, "origin": prefect.address}, proxy=None) as page:
        page.send('{"type": "auth", "token": null}')
        assert json.loads(page.recv()) == [basic(SECRET), {"type": "auth", "token": SECRET}]
    with connect(address, proxy=None) as client:  # a client of Prefect sends the secret itself, in this message
        client.send('{"type": "auth", "token": "wrong"}')
        assert json.loads(client.recv()) == [None, {"type": "auth", "token": "wrong"}]


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"host": "evil.example"}, {}])
def test_websockets_of_others_are_refused(headers: dict[str, str], prefect: Running, mlflow: Running) -> None:
    server = prefect if headers else mlflow  # MLflow has no WebSockets that check a secret
    sent: dict[str, Any] = {"additional_headers": headers} if "origin" in headers else {}
    address = f"ws://{headers.get('host', '127.0.0.1')}:{server.port}/api/events/out"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, sock=socket.create_connection(("127.0.0.1", server.port)), proxy=None, **sent)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_real_browser_logs_in_from_a_file(mlflow: Running, tmp_path: Path) -> None:
    page = tmp_path / "login.html"
    link = f"{mlflow.address}{LOGIN_PATH}#{mlflow.code()}"
    page.write_text(f"<meta http-equiv='refresh' content='0; url={link}'>")
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--timeout=20000", "--virtual-time-budget=15000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    assert basic(SECRET) in shown, shown  # the page behind shows the headers that it was sent
