"""Servers on loopback: of answers by their paths, and a registry of npm with one package."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def serving(answers: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server on loopback; gives its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = answers.get(self.path.split("?")[0])
            if callable(body):
                body = body()
            self.send_response(200 if body is not None else 404)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def npm_package(
    name: str, files: Mapping[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch, **fields: object
) -> Iterator[None]:
    """A registry, which npm is configured to use, with the version 1.0.0 of a package.

    Args:
        files: by their names in the package; `package.json` is added.
        cache: a folder for npm.
        fields: further fields of `package.json`.
    """
    about = {"name": name, "version": "1.0.0"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file, content in {"package.json": json.dumps({**about, **fields}).encode(), **files}.items():
            info = tarfile.TarInfo(f"package/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    tarball = f"/{name}/-/{name}-1.0.0.tgz"
    answers = {tarball: packed.getvalue()}
    with serving(answers) as (address, _):
        dist = {"tarball": f"{address}{tarball}", "shasum": hashlib.sha1(packed.getvalue()).hexdigest()}
        listing = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**about, "dist": dist}}}
        answers[f"/{name}"] = json.dumps(listing).encode()
        monkeypatch.setenv("npm_config_registry", address)
        monkeypatch.setenv("npm_config_cache", str(cache))
        yield
