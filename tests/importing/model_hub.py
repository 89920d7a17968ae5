"""A server on loopback that speaks the protocol of the Hugging Face hub: models, files by revision, ranges, tokens."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

REVISION = "1234567890abcdef1234567890abcdef12345678"


@dataclass
class ModelHub:
    """One repository `acme/flowers`."""

    files: dict[str, bytes]
    token: str | None = None
    """Requests without it are answered as for a private repository."""
    licence: str | None = "apache-2.0"
    broken: int = 0
    """How many further downloads end after half of their bytes."""
    address: str = ""
    ranges: list[str] = field(default_factory=list)
    """The `Range` of each download."""


@contextmanager
def model_hub(files: dict[str, bytes], **options: Any) -> Iterator[ModelHub]:
    """Serves the files as the repository `acme/flowers` with one revision, `main`."""
    hub = ModelHub(files, **options)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.token is not None and self.headers.get("authorization") != f"Bearer {hub.token}":
                return self._answer(401, b"{}", {"x-error-code": "RepoNotFound"})
            if re.fullmatch(r"/api/models/acme/flowers(/revision/[\w-]+)?", self.path.partition("?")[0]):
                return self._describe(self.path.partition("?")[0].partition("/revision/")[2] or "main")
            if found := re.fullmatch(rf"/acme/flowers/resolve/{REVISION}/(.+)", self.path):
                return self._file(found[1])
            return self._answer(404, b"{}", {"x-error-code": "RepoNotFound"})

        def _describe(self, revision: str) -> None:
            if revision not in ("main", REVISION):
                return self._answer(404, b"{}", {"x-error-code": "RevisionNotFound"})
            card = {} if hub.licence is None else {"license": hub.licence}
            found = {
                "id": "acme/flowers",
                "modelId": "acme/flowers",
                "sha": REVISION,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            siblings = [{"rfilename": name} for name in hub.files]
            return self._answer(200, json.dumps({**found, "cardData": card, "siblings": siblings}).encode(), {})

        def _file(self, name: str) -> None:
            if name not in hub.files:
                return self._answer(404, b"{}", {"x-error-code": "EntryNotFound"})
            content = hub.files[name]
            headers = {"etag": f'"{hashlib.sha256(content).hexdigest()}"', "x-repo-commit": REVISION, "accept-ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
            start = int(wanted[1]) if wanted else 0
            if self.command == "GET":
                hub.ranges.append(self.headers.get("range") or "")
            if wanted:
                headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._answer(206 if wanted else 200, content[start:], headers, may_break=True)

        def _answer(self, status: int, body: bytes, headers: dict[str, str], may_break: bool = False) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if may_break and hub.broken:
                hub.broken -= 1
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
        server.shutdown()
        thread.join()
