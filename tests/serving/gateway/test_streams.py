"""Texts streamed through the gateway: longer than the idle limit, stuck, or abandoned by the client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from headrace.cli.main import cli
from headrace.project import Project
from headrace.runtime.tokenizer import END, START
from headrace.serving.gateway import admin, gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import Argv, ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.paths import ROOT
from tests.ports import lease
from tests.serving.letters_replica import PACE_SECONDS
from tests.tiny_models import language_model

IDLE_SECONDS = 1.0
LONGER = int(2.5 * IDLE_SECONDS / PACE_SECONDS)
"""Tokens that take longer than the idle limit."""
FOREVER = 10_000
HEADRACE = [sys.executable, "-c", "from headrace.cli.main import main; main()"]


class Letters(NamedTuple):
    """A gateway with one replica behind it, which generates "abc abc " for as many tokens as requested."""

    project: Project
    settings: Settings
    runner: ProcessRunner

    @property
    def url(self) -> str:
        return gateway.address(self.settings, "letters") + "/predict"

    @property
    def pid(self) -> int:
        (replica,) = self.runner.list("letters")
        assert replica.pid is not None
        return replica.pid


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Letters]:
    folder = endless(tmp_path_factory.mktemp("model"))
    root = tmp_path_factory.mktemp("streams")
    (root / "recipes").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)

    def command(spec: ReplicaSpec, socket: Path) -> Argv:
        replica = Path(__file__).parents[1] / "letters_replica.py"
        return [sys.executable, str(replica), spec.bento_tag, str(socket)], {"PYTHONPATH": str(ROOT)}

    with lease() as ports:
        settings = Settings(
            gateway_port=ports[0],
            gateway_admin_port=ports[1],
            request_seconds=IDLE_SECONDS,
            drain_seconds=1.0,
            access="open",
        )
        runner = ProcessRunner(project.using(settings), command)
        try:
            rolling.roll_out(ReplicaSpec("letters", "1", str(folder)), 1, project.using(settings), runner, lambda line: None)
            yield Letters(project, settings, runner)
        finally:
            supervisor.shutdown(project, stop_seconds=2.0)


def endless(folder: Path) -> Path:
    """The model of `language_model`, whose texts never end; it fails for an empty prompt."""
    language_model(folder)
    model = onnx.load(folder / "model.onnx")
    (table,) = model.graph.initializer
    logits = numpy_helper.to_array(table).copy()
    logits[:, END] = -1e9
    logits[START] = np.nan
    table.CopyFrom(numpy_helper.from_array(logits.astype(np.float32), "table"))
    onnx.save(model, folder / "model.onnx")
    (folder / "identity.json").write_text('{"version": "1"}')
    return folder


@pytest.fixture
def shell(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> Letters:
    """Makes the `headrace` command find the gateway."""
    monkeypatch.chdir(letters.project.root)
    monkeypatch.setenv("HEADRACE_GATEWAY_PORT", str(letters.settings.gateway_port))
    monkeypatch.setenv("HEADRACE_ACCESS", "open")
    monkeypatch.setenv("HEADRACE_REQUEST_SECONDS", str(IDLE_SECONDS))
    return letters


def payload(tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "a", "max_tokens": tokens, "temperature": 0, "stream": True, **more}


def ask(letters: Letters, request: dict[str, Any]) -> httpx.Response:
    """Repeats the request until the replica is free."""
    deadline = time.monotonic() + 20
    while (response := httpx.post(letters.url, json=request, timeout=20)).status_code == 503:
        assert time.monotonic() < deadline, "the replica does not become free"
        time.sleep(0.05)
    return response


def last(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.text.rstrip("\n").rpartition("data: ")[2])
    return found


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *arguments])


def test_a_text_may_take_longer_than_the_idle_limit(letters: Letters) -> None:
    response = ask(letters, payload(LONGER))
    assert (last(response)["finish_reason"], last(response)["tokens"]) == ("length", LONGER)


def test_a_text_that_sends_nothing_for_long_is_not_cut_off(letters: Letters) -> None:
    """All of it may turn out to be `stop`, until its last character."""
    response = ask(letters, payload(LONGER, stop="bc a" * (100 // 4)))
    assert response.text.startswith(": writing\n\n")
    assert (last(response)["finish_reason"], last(response)["text"]) == ("stop", "")


def test_an_unstreamed_answer_that_takes_too_long_is_aborted(letters: Letters) -> None:
    response = ask(letters, payload(FOREVER, stream=False))
    assert response.status_code == 504
    assert response.json()["error"]["code"] in (
        "timeout",
        "too_slow",
    )  # from the gateway or from the replica, whichever is first
    assert ask(letters, payload(1)).status_code == 200


def test_a_client_that_leaves_frees_the_replica(letters: Letters) -> None:
    with httpx.stream("POST", letters.url, json=payload(FOREVER), timeout=20) as response:
        pieces = response.iter_bytes()
        next(pieces)
        assert httpx.post(letters.url, json=payload(1)).status_code == 503
    assert ask(letters, payload(1)).status_code == 200


def test_a_stuck_text_is_ended_and_the_replica_freed(letters: Letters) -> None:
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("POST", letters.url, json=payload(FOREVER), timeout=20) as response,
    ):
        pieces = response.iter_bytes()
        next(pieces)
        os.kill(letters.pid, signal.SIGSTOP)
        try:
            for _ in pieces:
                pass
        finally:
            os.kill(letters.pid, signal.SIGCONT)
    assert ask(letters, payload(1)).status_code == 200


def test_predict_prints_the_bare_text_as_it_comes(shell: Letters) -> None:
    ask(shell, payload(1))
    done = command("letters", "prompt=a", "max_tokens=8", "temperature=0", "--stream")
    assert (done.exit_code, done.stdout) == (0, "bc abc a\n"), done.output
    assert done.stderr.startswith("letters@1  id letters@1:")


def test_predict_prints_events_as_lines_of_json(shell: Letters) -> None:
    ask(shell, payload(1))
    done = command("letters", "--instance", '{"prompt": "a", "max_tokens": 2, "temperature": 0}', "--stream", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {"text": "b"}
    assert (second["text"], second["finish_reason"]) == ("c", "length")


def test_predict_prints_the_complete_answer_without_a_terminal(shell: Letters) -> None:
    ask(shell, payload(1))
    done = command("letters", "prompt=a", "max_tokens=2", "temperature=0")
    assert json.loads(done.stdout) == {"text": "bc", "finish_reason": "length", "tokens": 2}


def test_predict_streams_on_a_terminal(shell: Letters) -> None:
    ask(shell, payload(1))
    ours, theirs = os.openpty()
    argv = [*HEADRACE, "predict", "letters", "--sample"]
    done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == b"bc \r\n", done.stderr
    os.close(ours)


def test_predict_names_what_cannot_be_streamed(shell: Letters) -> None:
    ask(shell, payload(1))
    done = command("letters", "--instance", '[{"prompt": "a"}, {"prompt": "b"}]', "--stream")
    assert "only one input can be streamed, got 2" in str(done.exception)
    done = command("letters", "--text", "abcab", "--stream")
    assert "at most 4 tokens" in str(done.exception)


def test_predict_reports_a_model_that_fails_during_a_text(shell: Letters) -> None:
    ask(shell, payload(1))
    done = command("letters", "--text", "", "--stream")
    assert "the server failed; see its log for this request id" in str(done.exception)
    assert getattr(done.exception, "hint", None) == "headrace logs letters"


def test_predict_reports_a_text_that_broke_off(shell: Letters) -> None:
    ask(shell, payload(1))
    argv = [*HEADRACE, "predict", "letters", "prompt=a", f"max_tokens={FOREVER}", "--stream"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4)
        os.kill(shell.pid, signal.SIGKILL)
        error = process.stderr.read().decode()
    assert process.returncode == 5
    assert "the stream was interrupted" in error and "headrace logs letters" in error
    admin.wait_until_healthy(
        shell.project, "letters", {e.address for e in gateway.endpoints_by_model(shell.project)["letters"]}
    )


def examples() -> list[tuple[str, str]]:
    """Language and code of the examples about streaming in the documentation."""
    page = (ROOT / "docs" / "calling.md").read_text(encoding="utf-8")
    section = page.partition("## Streaming text\n")[2].partition("\n## ")[0]
    return re.findall(r"```(sh|python)\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize(("language", "code"), examples(), ids=[language for language, _ in examples()])
def test_the_examples_of_the_documentation_run(language: str, code: str, letters: Letters, tmp_path: Path) -> None:
    ask(letters, payload(1))
    (tmp_path / "token.txt").write_text("authorization: Bearer token\n")
    code = code.replace("127.0.0.1:8080", f"127.0.0.1:{letters.settings.gateway_port}").replace("shakespeare", "letters")
    code = code.replace("To be", "a")  # the letters that this model knows
    argv = ["bash", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    environment = {**os.environ, "HEADRACE_TOKEN": "token"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    if language == "sh":
        pieces = [json.loads(block.removeprefix("data: ")) for block in done.stdout.rstrip("\n").split("\n\n")]
        assert [piece["text"] for piece in pieces] == ["b", "c", " "]
        assert pieces[-1]["finish_reason"] == "length" and pieces[-1]["id"].startswith("letters@1:")
    else:
        assert len(done.stdout) == 200


def test_there_are_examples() -> None:
    assert {language for language, _ in examples()} == {"sh", "python"}
