"""Models of the Hugging Face hub, with its own client against a server on loopback that speaks its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from headrace.errors import SourceError, SourceUnreachable
from headrace.importing.hub import Hub, parse
from headrace.importing.source import Fetched, fetch_model
from headrace.project import Project
from tests.importing.made import LABELS, network, write_external
from tests.importing.model_hub import REVISION, ModelHub, model_hub

MODEL = network(metadata={"made": "x" * 200_000}).SerializeToString()
CONFIG = json.dumps({"id2label": {"0": LABELS[0], "1": LABELS[1], "2": LABELS[2]}}).encode()


@pytest.fixture(autouse=True)
def _no_hub_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def fetched(uri: str, hub: ModelHub, project: Project, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> Fetched:
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    folder = project.state / "incoming" / "test"
    folder.mkdir(parents=True)
    return fetch_model(uri, sha256, folder, project, lambda line: None)


def test_revision_licence_and_labels_come_with_the_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with model_hub({"onnx/model.onnx": MODEL, "config.json": CONFIG, "README.md": b"hi"}) as hub:
        found = fetched("hf://acme/flowers", hub, project, monkeypatch)
    assert found.file.read_bytes() == MODEL and found.files == ("model.onnx",)
    assert (found.revision, found.licence, found.labels) == (REVISION, "apache-2.0", LABELS)


def test_a_private_repository_needs_the_token(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with model_hub({"model.onnx": MODEL}, token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for token, reason in ((None, "HF_TOKEN is not set"), ("hf_wrong", "the token in HF_TOKEN may not read it")):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(SourceError, match=reason) as caught:
                Hub("hf://acme/flowers", project.state / "hub")
            assert "hf_wrong" not in str(caught.value)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert fetched("hf://acme/flowers/model.onnx@main", hub, project, monkeypatch).file.read_bytes() == MODEL


def test_a_download_that_broke_is_resumed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept of a broken download is a multiple of it
    with model_hub({"model.onnx": MODEL}, broken=1) as hub:
        assert fetched("hf://acme/flowers", hub, project, monkeypatch).file.read_bytes() == MODEL
    starts = [int(one.removeprefix("bytes=").rstrip("-") or 0) for one in hub.ranges if one]
    assert starts and starts[-1] >= len(MODEL) // 4, hub.ranges


def test_weights_beside_a_graph_come_from_the_same_revision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.root / "made"
    folder.mkdir()
    write_external(folder / "m.onnx")
    files = {f"onnx/{name}": (folder / name).read_bytes() for name in ("m.onnx", "weights.bin")}
    with model_hub(files) as hub:
        found = fetched("hf://acme/flowers/onnx/m.onnx", hub, project, monkeypatch)
    assert found.files == ("m.onnx", "weights.bin") and (found.file.parent / "weights.bin").is_file()


def test_what_does_not_exist_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = project.state / "hub"
    with model_hub({"model.safetensors": b"x", "config.json": b"{}", "a.onnx": MODEL, "b.onnx": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        with pytest.raises(SourceError, match="acme/roses does not exist, or is private"):
            Hub("hf://acme/roses", cache)
        with pytest.raises(SourceError, match="has no revision 'v9'"):
            Hub("hf://acme/flowers@v9", cache)
        with pytest.raises(SourceError, match=r"no file 'c\.onnx'; did you mean '[ab]\.onnx'"):
            Hub("hf://acme/flowers/c.onnx", cache).model()
        with pytest.raises(SourceError, match=r"has 2 models: a\.onnx, b\.onnx"):
            Hub("hf://acme/flowers", cache).model()
        hub.files["tiny.gguf"] = hub.files.pop("a.onnx")
        del hub.files["b.onnx"]
        assert Hub("hf://acme/flowers", cache).model().name == "tiny.gguf"
        del hub.files["tiny.gguf"]
        with pytest.raises(SourceError, match="no model that can be imported") as caught:
            Hub("hf://acme/flowers", cache).model()
        assert "optimum-cli export onnx" in str(caught.value)
    with pytest.raises(SourceUnreachable, match="cannot be fetched"):
        Hub("hf://acme/flowers", cache)


@pytest.mark.parametrize("uri", ["hf://flowers", "hf://acme/flowers/../x.onnx", "hf://acme/flowers@", "hf:///x"])
def test_a_malformed_address_shows_the_form(uri: str) -> None:
    with pytest.raises(SourceError, match="is not the address of a model") as caught:
        parse(uri)
    assert "hf://ORGANISATION/REPOSITORY" in str(caught.value)


def test_an_address_has_file_and_revision() -> None:
    found = parse("hf://acme/flowers/onnx/model.onnx@v1.0")
    assert (found.name, found.file, found.revision) == ("acme/flowers", "onnx/model.onnx", "v1.0")
    assert parse("hf://acme/flowers@main").file is None
