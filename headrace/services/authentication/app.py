"""An ASGI application that lets only authenticated requests through to another one, from its own address only.

A request is accepted with the server's user and password (HTTP Basic), or with the cookie of a browser's session. MLflow also
takes tokens with a role: those of reviewers and viewers read only. Before that `Host` and `Origin` are checked, so that no page
of another site or another port can send a request in somebody's name.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from headrace.runtime.token_verifier import LONGEST_TOKEN, SEE, Caller, InvalidToken, TokenVerifier, bearer
from headrace.services.authentication import peer
from headrace.services.authentication.credentials import basic
from headrace.services.authentication.login_page import CODES_PATH, HEADERS, LOGIN_PATH, login_page, refusal_page
from headrace.services.authentication.reading import is_read
from headrace.services.authentication.sessions import SESSION_SECONDS, Session, Sessions
from headrace.serving.access.tokens import OPERATOR

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

ERROR_CODES = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}
PROTECTED = {"x-frame-options": "SAMEORIGIN", "x-content-type-options": "nosniff", "referrer-policy": "same-origin"}
"""Added to every response that has no such header: another page cannot frame this one and lead the operator's clicks."""


class Authenticated:
    """Checks each request for `app`, and logs browsers in."""

    def __init__(self, app: Asgi, server: str, port: int, user_and_password: str, tokens: TokenVerifier | None = None) -> None:
        """
        Args:
            server: `mlflow` or `prefect`, as in `headrace open`.
            port: the port on loopback that clients connect to.
            user_and_password: the secret, `user:password`.
            tokens: verifies tokens with a role; None to take none. `is_read` knows MLflow's requests only.
        """
        self._app, self._server, self._tokens = app, server, tokens
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._cookie = f"headrace-{server}-{port}"
        self._credential, self._authorization = user_and_password, basic(user_and_password)
        self._sessions = Sessions()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope)
        if reason := self._foreign(scope, headers):
            await _refuse(scope, send, 403, reason)
        elif scope["type"] == "http" and scope["path"] == LOGIN_PATH:
            await self._log_in(scope, receive, send)
        elif self._has_credential(headers):
            await self._answer(scope, receive, send)
        elif (caller := self._caller(scope, headers)) is not None and not _may(caller, scope):
            await _refuse(scope, send, 403, f"the role {caller.role} of {caller.tenant} may look at MLflow, and change nothing")
        elif caller is not None or self._has_session(scope, headers):
            await self._answer_browser(scope, receive, send)
        elif scope["type"] == "websocket" and self._server == "prefect":
            await self._app(scope, receive, send)  # Prefect reads the secret of a WebSocket from its first message
        else:
            await self._demand_login(scope, headers, send)

    # -- checks

    def _foreign(self, scope: Scope, headers: Headers) -> str | None:
        """Returns why a request does not come from a page of this server, or a client other than a browser; else None."""
        host, origin, site = headers.one("host"), headers.one("origin"), headers.one("sec-fetch-site")
        if host not in self._hosts:
            return "the Host header names another server"
        if origin and origin not in self._origins:
            return "the request comes from a page of another origin"
        is_visit = headers.one("sec-fetch-mode") == "navigate" and headers.one("sec-fetch-dest") == "document"
        if site in ("cross-site", "same-site") and not (is_visit and scope.get("method") == "GET"):
            return "the request comes from a page of another origin"
        return None

    def _has_credential(self, headers: Headers) -> bool:
        return hmac.compare_digest(headers.one("authorization").encode(), self._authorization.encode())

    def _has_session(self, scope: Scope, headers: Headers) -> bool:
        """Whether it is a session of the operator, in a connection of this user.

        A browser sends cookies to every port of a host, where another user's server can read them.
        """
        session = self._session(headers)
        return session is not None and session.token is None and _is_own_connection(scope)

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        """Returns whose token a request or its session has; a session counts in connections of the user who began it only."""
        session = self._session(headers)
        if session is not None and session.token is not None:
            return self._person(session.token) if session.uid == _uid(scope) else None
        return self._person(bearer(headers.one("authorization").encode()))

    def _session(self, headers: Headers) -> Session | None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.one("cookie"))
        except CookieError:
            return None
        cookie = cookies.get(self._cookie)
        return None if cookie is None else self._sessions.find(cookie.value)

    def _person(self, token: str) -> Caller | None:
        """Returns the person whose role the token names; None for any other token."""
        if self._tokens is None or not token:
            return None
        try:
            caller = self._tokens.verify(token)
        except InvalidToken:
            return None
        return caller if caller.role in SEE else None

    # -- answers

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == CODES_PATH:
            code = self._sessions.new_code() if scope["method"] == "POST" else None
            await _respond(send, 200 if code else 405, json.dumps({"code": code}), {"content-type": "application/json"})
        else:
            await self._app(scope, receive, _adding(PROTECTED, send))

    async def _answer_browser(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request of a session or a token on with the secret itself, which its sender does not know."""
        if scope["type"] == "http" and scope["path"] == CODES_PATH:
            await _refuse(scope, send, 403, "a browser makes no login codes")
            return
        own = [(b"authorization", self._authorization.encode())]
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"authorization", b"cookie")]
        if scope["type"] == "websocket":
            await self._app({**scope, "headers": own + kept}, _with_token(receive, self._credential), send)
        elif self._server == "prefect" and scope["path"].endswith("/ui-settings"):
            plain = [(name, value) for name, value in kept if name != b"accept-encoding"]
            await self._app({**scope, "headers": own + plain}, receive, _without_login_form(send))
        else:
            await self._app({**scope, "headers": own + kept}, receive, _adding(PROTECTED, send))

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await _respond(send, 200, login_page(self._server, takes_tokens=self._tokens is not None), HEADERS)
            return
        given = await _read(receive, LONGEST_TOKEN)
        session = self._new_session(scope, given) if scope["method"] == "POST" else None
        if session is None:
            reason = "the link has been used or is too old, or the token is not valid or has no role"
            await _respond(send, 403, reason, {"content-type": "text/plain"})
            return
        id = self._sessions.start(session)
        cookie = f"{self._cookie}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS:.0f}"
        await _respond(send, 204, "", {"set-cookie": cookie, "cache-control": "no-store"})

    def _new_session(self, scope: Scope, given: str) -> Session | None:
        """Returns who logs in with a code or a token; None if neither is valid here."""
        uid = _uid(scope)
        if _is_own_connection(scope) and self._sessions.accept(given):
            return Session(uid)
        is_known = uid is not None or not peer.is_known()
        return Session(uid, given) if is_known and self._person(given) is not None else None

    async def _demand_login(self, scope: Scope, headers: Headers, send: Send) -> None:
        # A scheme of its own: with `Basic` a browser would ask for a password and then send it with every request.
        challenge = {"www-authenticate": f'Headrace realm="{self._server}"', "cache-control": "no-store"}
        if scope["type"] == "http" and "text/html" in headers.one("accept"):
            await _respond(
                send, 401, refusal_page(self._server, takes_tokens=self._tokens is not None), {**HEADERS, **challenge}
            )
        else:
            await _refuse(scope, send, 401, "a user and a password are needed", challenge)


class Headers:
    """The headers of a request."""

    def __init__(self, scope: Scope) -> None:
        self._pairs: list[tuple[bytes, bytes]] = list(scope["headers"])

    def one(self, name: str) -> str:
        """Returns the value of a header; empty when there is none, and all values when there are several, which none equals."""
        return ", ".join(value.decode("latin-1") for key, value in self._pairs if key == name.encode())


def _may(caller: Caller, scope: Scope) -> bool:
    """Whether a person may send this request: the operator any, others those that only read."""
    return caller.role == OPERATOR or (scope["type"] == "http" and is_read(scope["method"], scope["path"]))


def _uid(scope: Scope) -> int | None:
    """The user of this machine whose connection it is; None where that is not known."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or server[1] is None:
        return None
    return peer.uid_of((client[0], client[1]), (server[0], server[1]))


def _is_own_connection(scope: Scope) -> bool:
    """Whether the other end belongs to this user, where the system says it."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or server[1] is None:
        return False
    return peer.is_own((client[0], client[1]), (server[0], server[1]))


def _adding(headers: dict[str, str], send: Send) -> Send:
    """Adds headers to the response, unless it has them."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            missing = [(k.encode(), v.encode()) for k, v in headers.items() if k.encode() not in present]
            message = {**message, "headers": [*message.get("headers", []), *missing]}
        await send(message)

    return add


def _with_token(receive: Receive, token: str) -> Receive:
    """Puts the secret into the message with which a page of Prefect authenticates its WebSocket."""

    async def replace() -> Message:
        message = await receive()
        try:
            content = json.loads(message.get("text") or "null")
        except ValueError:
            content = None
        if isinstance(content, dict) and content.get("type") == "auth":
            return {**message, "text": json.dumps({**content, "token": token})}
        return message

    return replace


def _without_login_form(send: Send) -> Send:
    """Changes what Prefect's pages read first: they need not ask for a password."""
    start: Message = {}
    body = b""

    async def change(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
            return
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        changed = json.dumps({**json.loads(body), "auth": None}).encode() if start["status"] == 200 else body
        kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*kept, (b"content-length", str(len(changed)).encode())]})
        await send({"type": "http.response.body", "body": changed})

    return change


async def _read(receive: Receive, limit: int) -> str:
    """Returns the request's body; empty when it is longer than `limit` bytes."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > limit or message["type"] == "http.disconnect":
            return ""
        if not message.get("more_body"):
            return body.decode("latin-1")


async def _refuse(scope: Scope, send: Send, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
    if scope["type"] == "websocket":  # before it is accepted: the client gets 403
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
    else:
        body = {"detail": reason, "error_code": ERROR_CODES[status], "message": reason}  # Prefect's form, and MLflow's
        await _respond(send, status, json.dumps(body), {"content-type": "application/json", **(headers or {})})


async def _respond(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    body = text.encode()
    pairs = [*headers.items(), *([] if status == 204 else [("content-length", str(len(body)))])]
    found = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})
