"""Language models in GGUF: imported as they are, once llama.cpp has answered, and refused with the reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from bentos.models.runtimes import llama_cpp
from headrace.errors import RecipeError, ServiceError
from headrace.importing.build import build, facts_shown
from headrace.importing.errors import ImportRefused
from headrace.importing.wanted import Wanted
from headrace.recipe.models import ImportedConfig
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.runtime.contract import Contract
from headrace.serving.packaging import build_image, package
from headrace.tracking.artifact import content_hash
from tests.asgi import make_project, serve
from tests.tiny_gguf import CONTEXT, write_export, write_tiny_gguf


def wanted(task: str | None = None, **fields: Any) -> Wanted:
    return Wanted("tiny", task, ImportedConfig(source="tiny.gguf", **fields))


def recipe(task: str = "text-generation", serve: dict[str, Any] | None = None) -> Recipe:
    fields = {"name": "tiny", "task": task, "model": {"source": "tiny.gguf"}, "serve": serve or {}}
    return parse_recipe(json.dumps(fields), "recipes/tiny.yaml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_a_language_model_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    found = build(tiny, "tiny.gguf", wanted(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contract.json", "import.json", "model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == tiny.read_bytes()
    contract = Contract.read(tmp_path / "contract.json")
    assert contract == found.contract and (contract.task, contract.output) == ("text-generation", "text")
    assert contract.context is None and contract.parallel is None
    facts = found.facts
    assert (facts["format"], facts["licence"], facts["context"], facts["chats"]) == ("GGUF", "apache-2.0", CONTEXT, True)
    assert "it has a chat template" in " ".join(facts_shown(facts))


def test_a_damaged_file_is_refused_and_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1000])
    with pytest.raises(ImportRefused, match="not a complete GGUF file: it is truncated"):
        build(cut, "cut.gguf", wanted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_too_large_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "free_memory", lambda: 1)
    with pytest.raises(ImportRefused, match=r"needs .* MB of memory .* 0 MB are free"):
        build(tiny, "tiny.gguf", wanted(), tmp_path)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "regression"}, "is a language model, and the task is regression"),
        ({"labels": ["a", "b"]}, "labels does not apply to a language model"),
        ({"activation": "softmax"}, "activation does not apply"),
        ({"targets": ["a"]}, "targets does not apply"),
    ],
)
def test_what_does_not_apply_is_refused(tiny: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        build(tiny, "tiny.gguf", wanted(**fields), tmp_path)


def test_the_recipe_says_how_it_is_served() -> None:
    serve = recipe(serve={"context": 512, "parallel": 2, "runtime": "llama.cpp"}).serve
    assert (serve.context, serve.parallel) == (512, 2)


@pytest.mark.parametrize(
    ("task", "serve", "message"),
    [
        ("text-generation", {"runtime": "onnx"}, "is served by llama.cpp"),
        ("regression", {"runtime": "llama.cpp"}, "serve.runtime: applies to imported language models"),
        ("regression", {"context": 512}, "serve.context: applies to imported language models"),
        ("classification", {"parallel": 2}, "serve.parallel: applies to imported language models"),
        ("text-generation", {"context": 1}, "256"),
    ],
)
def test_fields_of_language_models_are_for_them_alone(task: str, serve: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(task, serve)


def test_its_bento_serves_it(tmp_path: Path) -> None:
    project, folder = make_project(tmp_path / "project"), write_export(tmp_path / "export", parallel=2)
    bento = package(folder, "tiny", "3", {"data_md5": "d41d", "git_commit": "f00d", "run_id": "r1"}, project)
    assert content_hash(bento.model_path) == content_hash(folder)
    assert package(folder, "tiny", "3", {"data_md5": "d41d", "git_commit": "f00d", "run_id": "r1"}, project) == bento
    with pytest.raises(ServiceError, match=r"images of replicas have no llama\.cpp"):
        build_image(project, bento)
    with serve(project, bento) as served:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 1}
        found = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30)
        assert found.json()["system_fingerprint"] == "tiny@3" and found.headers["x-model-version"] == "3"
        too_long = httpx.post(f"{served.url}/v1/completions", json={"model": "tiny", "prompt": "a" * 300}, timeout=30)
        assert too_long.status_code == 400 and f"at most {CONTEXT} tokens" in too_long.text
        runtime = subprocess.run(["pgrep", "-P", str(served.process.pid)], capture_output=True, text=True).stdout.split()
        assert len(runtime) == 1
        served.process.terminate()
        assert served.process.wait(20) == 0
        assert not Path("/proc", runtime[0]).exists() and "Traceback" not in served.log.read_text()
