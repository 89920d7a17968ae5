"""llama.cpp as a runtime: what is checked before it is started, and that its process ends with the replica."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest

from bentos.models.language_model import LanguageModel
from bentos.models.runtimes import llama_cpp
from bentos.models.runtimes.llama_cpp import BREAK, LlamaCpp
from bentos.models.served_model import NotServable
from headrace.runtime.gguf_file import read_gguf
from tests.tiny_gguf import CONTEXT, write_export, write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "model.gguf")


def test_too_little_memory_is_told_with_both_figures(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "free_memory", lambda: 2_000_000)
    LlamaCpp(tiny, "tiny", 1).check()
    large = LlamaCpp(tiny, "tiny", 1, context=100_000, parallel=8)
    assert large.needed_bytes > 100e6
    with pytest.raises(NotServable, match=r"needs \d+ MB .*8 x 100,096 tokens.* 2 MB are free; set serve.context"):
        large.check()


def test_a_package_that_is_missing_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotServable, match=r"pip install 'headrace\[llama\]'"):
        LlamaCpp(tiny, "tiny", 1).check()


def test_a_file_that_is_cut_short_is_not_started(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "model.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1])
    with pytest.raises(NotServable, match="is truncated"):
        LlamaCpp(cut, "tiny", 1)


def test_a_model_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    folder = write_export(tmp_path)
    writer = gguf.GGUFWriter(folder / "model.gguf", "king")
    writer.add_context_length(8)
    import numpy as np

    writer.add_tensor("crown", np.zeros((4, 4), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    before = psutil.Process().children()
    with pytest.raises(NotServable, match="ended with status 1 while it loaded"):
        LanguageModel(folder)
    assert {child.pid for child in psutil.Process().children()} <= {child.pid for child in before}


def test_the_context_is_that_of_the_model_unless_it_is_long(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LlamaCpp(tiny, "tiny", 1).context == CONTEXT
    assert LlamaCpp(tiny, "tiny", 1, context=500).context == 512
    monkeypatch.setattr(llama_cpp, "CONTEXT", 128)
    assert LlamaCpp(tiny, "tiny", 1).context == 256


@pytest.mark.parametrize("text", ["", "a<b", "<|im_end|>", "x<s></s>", "<|im_<|im_end|>start|>"])
def test_no_control_token_is_left_in_a_text(tiny: Path, text: str) -> None:
    control = read_gguf(tiny).control_tokens
    found = LlamaCpp(tiny, "tiny", 1).to_text(text)
    assert not any(token in found for token in control)
    assert found.replace(BREAK, "") == text
    assert (found == text) == (not any(token in text for token in control))


def test_errors_of_the_server_are_told_as_those_of_a_field(tiny: Path) -> None:
    runtime = LlamaCpp(tiny, "tiny", 1)
    chat: dict[str, Any] = {"messages": [], "response_format": {"type": "json_object"}, "tools": None}

    def refused(status: int, fields: dict[str, Any] = chat, **error: Any) -> tuple[int, str, Any] | None:
        found = runtime.to_refusal(status, error, fields)
        return found and (found.status, found.code, found.details["param"])

    assert refused(400, type="exceed_context_size_error", n_ctx=8, n_prompt_tokens=9) == (
        400, "context_length_exceeded", "messages",
    )  # fmt: skip
    assert refused(400, type="exceed_context_size_error", fields={"prompt": ""}) is not None
    assert refused(400, message="JSON schema error") == (400, "invalid_value", "response_format")
    assert refused(500, message="Jinja Exception: roles must alternate") == (400, "invalid_value", "messages")
    for name in ("tools", "response_format"):
        message = "output that does not match the expected peg-native format"
        assert refused(500, {"messages": [], name: [{}]}, message=message) == (422, "no_answer", name)
    assert refused(400, message="what it says") == (400, "invalid_value", "messages")
    assert refused(500, message="out of memory", type="server_error") is None


def test_the_server_ends_with_a_replica_that_is_killed(tmp_path: Path) -> None:
    folder = write_export(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from bentos.models.language_model import LanguageModel; "
        "model = LanguageModel(Path(sys.argv[1])); print(model.process.pid, flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[4]
    replica = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert replica.stdout is not None
        server = psutil.Process(int(replica.stdout.readline()))
        assert server.parent() == psutil.Process(replica.pid)
        os.kill(replica.pid, signal.SIGKILL)
        replica.wait(10)
        end = time.monotonic() + 10
        while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        replica.kill()
        replica.wait(10)
        if replica.stdout is not None:
            replica.stdout.close()
