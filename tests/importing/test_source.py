"""Where imported models come from, and that the bytes stay those that were imported."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from headrace.data.versions import data_version
from headrace.errors import DiskFull, SourceError
from headrace.importing import source as sources
from headrace.importing.errors import ImportRefused
from headrace.importing.kept import kept_model
from headrace.importing.source import Fetched, fetch_model
from headrace.importing.store import bring_model, require_licence
from headrace.project import Project
from headrace.recipe.models import ImportedConfig
from headrace.settings import Settings
from tests.exhaustive import exhaustive
from tests.importing.made import network, probabilities, web_server, write_external, write_network
from tests.tiny_gguf import write_tiny_gguf
from tests.web_servers import npm_package

MODEL = network(**probabilities()).SerializeToString()
SHA256 = hashlib.sha256(MODEL).hexdigest()
OTHER = network(opset=16, **probabilities()).SerializeToString()


def fetched(uri: str, project: Project, sha256: str | None = None) -> Fetched:
    folder = project.state / "incoming" / "test"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return fetch_model(uri, sha256, folder, project, lambda line: None)


def bring(project: Project, source: str = "m.onnx", **fields: Any) -> str:
    """Brings the model of the recipe `imp`; returns the data version."""
    return bring_model("imp", ImportedConfig(source=source, **fields), project, lambda line: None).md5


def test_a_path_and_a_web_address_give_the_same_model(project: Project) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    assert fetched("m.onnx", project, SHA256).sha256 == SHA256
    with web_server(project.root) as address:
        found = fetched(f"{address}/m.onnx?signature=secret", project)
    assert found.sha256 == SHA256 and found.files == ("m.onnx",)


def test_a_model_of_a_package_has_its_licence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    links = project.root / "links"
    links.mkdir()
    about = "Metadata-Version: 2.4\nName: tinymodel\nVersion: 1.0\nLicense-Expression: BSD-3-Clause\n"
    with zipfile.ZipFile(links / "tinymodel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinymodel/m.onnx", MODEL)
        wheel.writestr("tinymodel-1.0.dist-info/METADATA", about)
        wheel.writestr("tinymodel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinymodel-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_FIND_LINKS": str(links), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    found = fetched("pypi://tinymodel==1.0/tinymodel/m.onnx", project)
    assert (found.sha256, found.licence) == (SHA256, "BSD-3-Clause")


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
@pytest.mark.parametrize("licence", ["MIT", exhaustive({"type": "MIT"})])
def test_a_model_of_a_package_of_npm_has_its_licence(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, licence: Any
) -> None:
    with npm_package("tinymodel", {"m.onnx": MODEL}, tmp_path / "npm", monkeypatch, license=licence):
        found = fetched("npm://tinymodel@1.0.0/package/m.onnx", project)
    assert (found.sha256, found.licence) == (SHA256, "MIT")


def test_weights_beside_the_graph_are_fetched_and_hashed_with_it(project: Project) -> None:
    folder = project.root / "made"
    folder.mkdir()
    write_external(folder / "m.onnx")
    found = fetched("made/m.onnx", project)
    lines = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in ("m.onnx", "weights.bin"))
    assert found.files == ("m.onnx", "weights.bin") and found.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    with web_server(folder) as address:
        assert fetched(f"{address}/m.onnx", project).sha256 == found.sha256
    (folder / "weights.bin").rename(project.root / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(project.root / "elsewhere.bin")
    with pytest.raises(ImportRefused, match="are a link out of its folder"):
        fetched("made/m.onnx", project)


def test_what_is_not_there_is_named_with_the_near_miss(project: Project) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    with pytest.raises(SourceError, match=r"no such file: n\.onnx; did you mean 'm\.onnx'") as caught:
        fetched("n.onnx", project)
    assert caught.value.where == "model.source"
    with pytest.raises(SourceError, match="unknown source ft://"):
        fetched("ft://host/m.onnx", project)
    with web_server(project.root) as address, pytest.raises(SourceError, match="404") as caught:
        fetched(f"{address}/n.onnx", project)
    assert caught.value.where == "model.source" and "data.source" not in str(caught.value)
    with pytest.raises(SourceError, match="is not a version of a registered model"):
        fetched("mlflow:models:/digits@champion", project)


def test_a_folder_says_which_file_or_what_is_supported(project: Project) -> None:
    folder = project.root / "bert"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ImportRefused, match="a folder of transformers") as caught:
        fetched("bert", project)
    assert "ONNX (.onnx)" in str(caught.value)
    (folder / "model.onnx").write_bytes(MODEL)
    with pytest.raises(ImportRefused, match="is a folder") as caught:
        fetched("bert", project)
    assert "bert/model.onnx" in str(caught.value)


def test_a_model_of_mlflow_is_fetched_whoever_registered_it(project: Project) -> None:
    import mlflow
    import mlflow.onnx
    import onnx

    from headrace.tracking.runs import client

    store = client(project)
    store.create_registered_model("theirs")
    with mlflow.start_run() as run:
        logged = mlflow.onnx.log_model(onnx.load_from_string(MODEL), name="model", save_as_external_data=False)
    store.create_model_version("theirs", logged.model_uri, run.info.run_id, tags={"license": "MIT"})
    found = fetched("mlflow:models:/theirs/1", project)
    assert found.licence == "MIT" and found.revision == f"run {run.info.run_id}" and found.file.suffix == ".onnx"
    with pytest.raises(SourceError, match="no version 2 of 'theirs'"):
        fetched("mlflow:models:/theirs/2", project)


def test_the_bytes_are_pinned_by_the_first_import(project: Project) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    first = bring(project)
    kept = kept_model("imp", project)
    assert kept is not None and kept.record["sha256"] == SHA256 and kept.file.read_bytes() == MODEL
    assert bring(project) == first
    (project.root / "m.onnx").write_bytes(OTHER)
    new = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(SourceError, match=f"has sha256 {new}, and {SHA256} was imported") as caught:
        bring(project)
    assert f"sha256: {new}" in str(caught.value)
    with pytest.raises(SourceError, match=f"has sha256 {new}, and {SHA256}"):
        bring(project, sha256=SHA256)
    assert data_version(project, "imp").md5 == first
    assert bring(project, sha256=new) != first


def test_a_deleted_copy_comes_back_from_the_cache_without_the_source(project: Project) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    first = bring(project)
    shutil.rmtree(project.raw_data("imp"))
    (project.root / "m.onnx").unlink()
    assert bring(project) == first


def test_nothing_is_left_of_a_model_that_is_refused_or_has_no_room(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    with pytest.raises(SourceError, match="was imported"):
        bring(project, sha256="0" * 64)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskFull):
        patch.setattr(sources.shutil, "copyfile", full)
        bring(project)
    assert not project.raw_data("imp").exists() and not list((project.state / "incoming").iterdir())


def test_licences_are_compared_with_the_settings(project: Project) -> None:
    (project.root / "m.onnx").write_bytes(MODEL)
    strict = project.using(Settings(licences_allowed=("MIT", "Apache-2.0")))
    with pytest.raises(ImportRefused, match=r"licence is not known, and licences_allowed names MIT, Apache-2\.0") as caught:
        bring(strict)
    assert "--licence" in str(caught.value) and not project.raw_data("imp").exists()
    bring(strict, licence="apache-2.0")
    with pytest.raises(ImportRefused, match=r"is GPL-3\.0, which licences_refused names"):
        require_licence("GPL-3.0", Settings(licences_refused=("gpl-3.0",)))
    require_licence(None, Settings(licences_refused=("gpl-3.0",)))


def test_the_licence_within_a_file_is_compared_too(project: Project) -> None:
    write_network(project.root / "m.onnx", metadata={"license": "GPL-3.0"}, **probabilities())
    write_tiny_gguf(project.root / "m.gguf")
    for source, licence in (("m.onnx", "GPL-3.0"), ("m.gguf", "apache-2.0")):
        with pytest.raises(ImportRefused, match=f"is {licence}, which licences_refused names"):
            bring(project.using(Settings(licences_refused=(licence,))), source)
    bring(project.using(Settings(licences_allowed=("GPL-3.0",))))


def test_a_file_with_the_name_of_the_record_is_refused(project: Project) -> None:
    (project.root / "source.json").write_text('{"learner": {}}')
    with pytest.raises(ImportRefused, match=r"a file is called source\.json"):
        bring(project, "source.json")


def test_the_record_names_source_and_files(project: Project) -> None:
    write_network(project.root / "m.onnx", **probabilities())
    bring(project)
    record = json.loads((project.imported_model("imp") / "source.json").read_text())
    assert record["source"] == "m.onnx" and record["files"] == ["m.onnx"]
    (project.imported_model("imp") / "m.onnx").unlink()
    assert kept_model("imp", project) is None


@pytest.mark.exhaustive
def test_an_object_store_is_read_as_for_data(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
        for name, value in zip(names, ("k", "s", "us-east-1", f"http://{host}:{port}"), strict=True):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        client.put_object(Bucket="lake", Key="in/m.onnx", Body=MODEL)
        assert fetched("s3://lake/in/m.onnx", project, SHA256).sha256 == SHA256
    finally:
        server.stop()
