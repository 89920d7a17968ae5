"""What a release prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bentos.protocols.v1 import to_instances
from headrace.cli.summary import curl
from headrace.project import Project
from headrace.serving.access.tokens import operator_token
from headrace.settings import Settings


def test_the_printed_request_works_with_a_field_called_as_the_protocols_own(tmp_path: Path) -> None:
    line = curl("x", Project(tmp_path).using(Settings(access="open")))
    program = re.search(r'python3 -c "(.*?)" \|', line)
    assert program is not None
    sample = {"instances": "pro", "stream": 1, "row": 2, "label": "a"}
    described = json.dumps({"contract": {"sample": sample}})
    sent = subprocess.run([sys.executable, "-c", program[1]], input=described, capture_output=True, text=True, check=True)
    assert to_instances(json.loads(sent.stdout)) == [sample]


RECORD = """\
#!/bin/bash
tr '\\0' '\\n' < /proc/$PPID/cmdline >> "$ARGUMENTS"
printf '%s\\n' "$0" "$@" >> "$ARGUMENTS"
exec {program} "$@"
"""
"""Runs a program and records its arguments and those of the shell that started it."""


class Gateway(BaseHTTPRequestHandler):
    """In place of the gateway: remembers the tokens that arrive, and describes or echoes."""

    authorization: list[str | None] = []

    def do_GET(self) -> None:
        self._answer(json.dumps({"contract": {"sample": {"a": 1}}}).encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def _answer(self, body: bytes) -> None:
        self.authorization.append(self.headers["authorization"])
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_printed_request_has_its_token_in_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.console.command_name", lambda: str(Path(sys.executable).with_name("headrace")))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "programs").mkdir()
    for name in ("curl", "python3"):
        wrapper = tmp_path / "programs" / name
        wrapper.write_text(RECORD.format(program=shutil.which(name)))
        wrapper.chmod(0o755)
    project = Project(tmp_path).using(Settings())
    token = operator_token(project)
    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = curl("x", project.using(Settings(gateway_port=server.server_port)))
        path, arguments = f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}", tmp_path / "arguments.txt"
        environment = {**os.environ, "PATH": path, "ARGUMENTS": str(arguments)}
        pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
        server.shutdown()
    assert json.loads(pasted.stdout) == {"instances": [{"a": 1}]}, pasted.stderr
    assert Gateway.authorization == [f"Bearer {token}"] * 2
    seen = arguments.read_text()
    assert seen.count("/programs/curl") == 2 and "-H\n@/dev/fd/" in seen
    assert token not in seen
