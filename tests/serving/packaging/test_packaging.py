"""Bentos and images: tags, contents, and what an interrupted or repeated build leaves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import requires
from io import BytesIO
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headrace.errors import EngineMissing, HeadraceError, RegistryError, ServiceError
from headrace.project import Project
from headrace.release import deploy
from headrace.release.journal import Entry
from headrace.serving.packaging import Bento, Image, build_image, find_bento, package, serve_command
from headrace.serving.packaging.code_files import CODE, REQUIREMENTS, served_files
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.image import bento_layer
from headrace.serving.packaging.sbom import IN_IMAGE
from headrace.settings import Settings
from headrace.tracking.artifact import content_hash, file_hashes
from tests.asgi import make_project
from tests.tiny_models import image_model, table_model

IDENTITY = {"data_md5": "d41d", "git_commit": "f00d", "run_id": "r1"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("packaging") / "project")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_model(tmp_path_factory.mktemp("halves"))


@pytest.fixture(scope="module")
def bento(project: Project, model_dir: Path) -> Bento:
    return package(model_dir, "halves", "3", IDENTITY, project)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_tag_names_model_version_and_content(bento: Bento) -> None:
    assert re.fullmatch(r"halves:3-[0-9a-f]{8}", bento.tag)
    assert (bento.name, bento.version) == ("halves", "3")
    assert bento.identity == {**IDENTITY, "model": "halves", "version": "3"}


def test_packaging_again_finds_the_bento(bento: Bento, project: Project, model_dir: Path) -> None:
    before = contents(project.bentoml_home)
    assert package(model_dir, "halves", "3", IDENTITY, project) == bento
    assert contents(project.bentoml_home) == before


def test_another_project_gives_the_same_tag(bento: Bento, model_dir: Path, tmp_path: Path) -> None:
    other = package(model_dir, "halves", "3", dict(reversed(IDENTITY.items())), make_project(tmp_path / "other"))
    assert other.tag == bento.tag
    assert bento_layer(other, b"") == bento_layer(bento, b"")


@pytest.mark.parametrize("change", ["model", "identity", "version"])
def test_each_change_gives_another_tag(bento: Bento, project: Project, tmp_path: Path, change: str) -> None:
    folder = image_model(tmp_path, bias=1.0 if change == "model" else 0.0)
    identity = {**IDENTITY, "data_md5": "other"} if change == "identity" else IDENTITY
    assert package(folder, "halves", "4" if change == "version" else "3", identity, project).tag != bento.tag


def entry_of(bento: Bento, model_dir: Path, **facts: object) -> Entry:
    """The journal's entry of a release of `bento`."""
    content = {"content_sha256": content_hash(model_dir), "files": file_hashes(model_dir)}
    served = {"bento": bento.tag, "image": None, "image_digest": None, "runner": "process", "threads": 1, "replicas": 1}
    return Entry(at="now", event="released", model="halves", version="3", facts={**served, **content, **facts}, previous="")


def test_files_other_than_those_in_the_journal_are_not_packaged(project: Project, tmp_path: Path) -> None:
    folder = image_model(tmp_path / "changed", bias=2.0)
    content = content_hash(folder)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(RegistryError, match=r"contract\.json, model\.onnx of halves@7 changed: .* was registered") as caught:
        package(folder, "halves", "7", IDENTITY, project, content_sha256=content)
    assert "restore" in str(caught.value.hint) and "headrace run halves" in str(caught.value.hint)
    assert not list((project.bentoml_home / "bentos" / "halves").glob("7-*"))
    assert package(folder, "halves", "7", IDENTITY, project, content_sha256=content_hash(folder)).version == "7"


def test_a_bento_whose_model_was_changed_is_neither_served_nor_taken_for_built(
    bento: Bento, project: Project, model_dir: Path
) -> None:
    released = entry_of(bento, model_dir)
    deploy.require_released_bytes(released, project)
    graph = bento.model_path / "model.onnx"
    original = graph.read_bytes()
    try:
        graph.write_bytes(original + b"\0")
        for use in (
            lambda: deploy.serve_released(released, project, print),
            lambda: package(model_dir, "halves", "3", IDENTITY, project),
        ):
            with pytest.raises(RegistryError, match=r"model\.onnx of halves@3 changed") as caught:
                use()
            assert f"move '{bento.path}' and '{bento.model_path}' out of the store, then headrace run halves" in str(
                caught.value.hint
            )
        with pytest.raises(RegistryError, match=r"model\.onnx: model\.onnx of halves@3 changed") as caught:
            deploy.require_released_bytes(released, project)
        assert caught.value.where == str(graph)
    finally:
        graph.write_bytes(original)
    early = entry_of(bento, model_dir)
    del early.facts["content_sha256"]
    deploy.require_released_bytes(early, project)


def test_bentoml_finds_the_bento_and_its_model(bento: Bento, project: Project) -> None:
    program = "import bentoml, sys; print(bentoml.bentos.get(sys.argv[1]).tag, bentoml.models.get('halves:latest').tag)"
    environment = {**os.environ, "BENTOML_HOME": str(project.bentoml_home), "BENTOML_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-c", program, bento.tag]
    found, latest = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert found == bento.tag
    assert latest.startswith("halves:")


def test_a_bento_contains_the_service_and_no_training_code(bento: Bento) -> None:
    code = {name for name in contents(bento.path / "src") if name.endswith(".py")}
    assert code == {name for name in served_files("bentos.models.onnx_model:OnnxModel", CODE) if name.endswith(".py")}
    shared = {name for name in code if name.startswith("headrace/")}
    assert {name for name in shared if not name.startswith("headrace/runtime/")} == {
        "headrace/__init__.py",
        "headrace/errors.py",
    }


def test_served_code_imports_only_the_shared_part_of_headrace() -> None:
    for name, file in served_files("bentos.models.onnx_model:OnnxModel", CODE).items():
        if name.endswith(".py"):
            imported = set(re.findall(r"^\s*(?:from|import)\s+(headrace[\w.]*)", file.read_text(), re.MULTILINE))
            allowed = {"headrace.runtime"} if name.startswith("bentos/") else {"headrace.runtime", "headrace.errors"}
            assert {".".join(module.split(".")[:2]) for module in imported} <= allowed, name


def test_serving_packages_are_pinned_to_the_versions_of_the_lock() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = path.read_text().splitlines()
        return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", "\n".join(lines).lower(), re.MULTILINE))

    locked = pins(CODE / "requirements.lock")
    serving = pins(REQUIREMENTS)
    assert serving.keys() <= locked.keys()
    assert serving == {name: locked[name] for name in serving}
    assert not serving.keys() & {"torch", "mlflow", "prefect", "dvc", "pandas", "great-expectations", "scikit-learn"}


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.15"])
def test_pinned_serving_packages_include_all_dependencies_on_every_python(python: str) -> None:
    """They are installed with --no-deps, and a base image's Python may be older than this one (Debian 12: 3.11.2)."""
    on_linux = {"python_version": "3.11", "python_full_version": python, "extra": ""}
    pinned = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", REQUIREMENTS.read_text(), re.MULTILINE)}
    locked = map(Requirement, re.findall(r"^([\w.-]+==[^\\\n]+)", (CODE / "requirements.lock").read_text(), re.MULTILINE))
    of_other_pythons = {canonicalize_name(one.name) for one in locked if one.marker and not one.marker.evaluate()}
    needed = [(name, Requirement(line)) for name in pinned - of_other_pythons for line in requires(name) or []]
    missing = {(name, one.name) for name, one in needed if one.marker is None or one.marker.evaluate(on_linux)}
    missing = {(name, other) for name, other in missing if canonicalize_name(other) not in pinned}
    assert missing == {("tokenizers", "huggingface-hub")}, "tokenizers loads files only"


def test_a_killed_build_leaves_no_incomplete_bento(model_dir: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments: there is either no bento or a complete one, and the next run completes it."""
    project = make_project(tmp_path / "killed")
    program = (
        f"from pathlib import Path; from headrace.serving.packaging import package; from headrace.project import Project\n"
        f"package(Path({str(model_dir)!r}), 'halves', '3', {IDENTITY!r}, Project(Path({str(project.root)!r})))"
    )
    for tenth in (3, 6, 9, 12, 15):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=CODE, start_new_session=True)
        try:
            process.wait(tenth / 10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        for place in ("models", "bentos"):
            for built in (project.bentoml_home / place).glob("halves/3-*"):
                record = built / ("model.yaml" if place == "models" else "bento.yaml")
                assert record.is_file()
                assert (built / ("model.onnx" if place == "models" else "src/bentos/serve.py")).is_file()
        if (project.bentoml_home / "bentos" / "halves").is_dir():
            break
    done = package(model_dir, "halves", "3", IDENTITY, project)
    assert find_bento(project, done.tag) == done
    package(model_dir, "halves", "5", IDENTITY, project)
    assert list((project.bentoml_home / "building").iterdir()) == []


def test_concurrent_builds_give_one_bento(model_dir: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "twice")
    program = (
        f"from pathlib import Path; from headrace.serving.packaging import package; from headrace.project import Project\n"
        f"print(package(Path({str(model_dir)!r}), 'halves', '3', {{}}, Project(Path({str(project.root)!r}))).tag)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], cwd=CODE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    tags = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(tags) == 1
    assert find_bento(project, tags.pop())


def test_a_missing_file_or_the_contract_of_another_model_is_an_error(project: Project, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=r"model\.onnx is missing"):
        package(tmp_path, "halves", "3", {}, project)
    with pytest.raises(HeadraceError, match="for model 'trips', not 'halves'"):
        package(table_model(tmp_path / "trips"), "halves", "3", {}, project)


def test_a_missing_bento_is_an_error_with_the_command_that_builds_it(project: Project) -> None:
    with pytest.raises(HeadraceError, match=r"halves:9-00000000.*\n.*headrace run halves"):
        serve_command(project, "halves:9-00000000", ("127.0.0.1", 3000), 1)


def test_a_layer_does_not_depend_on_times_or_paths(bento: Bento) -> None:
    first = bento_layer(bento, b"")
    for file in bento.path.rglob("*.py"):
        os.utime(file, (time.time() + 1000,) * 2)
    assert bento_layer(bento, b"") == first
    with tarfile.open(fileobj=BytesIO(first)) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 0)}
    assert all(member.name.startswith("opt") for member in members)


def test_without_an_engine_the_error_has_a_hint(project: Project, bento: Bento, tmp_path: Path) -> None:
    settings = Settings(docker_host=f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineMissing, match="hint: "):
        build_image(project.using(settings), bento)


@pytest.fixture(scope="module")
def image(docker_engine: Settings, project: Project, bento: Bento) -> Iterator[Image]:
    (project.root / "wheelhouse").symlink_to(CODE / "wheelhouse")
    built = build_image(project.using(docker_engine), bento)
    yield built
    Docker.connect(docker_engine).run("image", "rm", "--force", built.tag)


def in_image(image: Image, script: str) -> str:
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image.tag, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_image_is_small_and_so_is_the_layer_of_a_bento(docker_engine: Settings, image: Image) -> None:
    history = Docker.connect(docker_engine).run("history", "--human=false", "--format", "{{.Size}}", image.tag)
    newest_layer = next(int(size) for size in history.split() if int(size))
    assert image.size_bytes < 300e6
    assert newest_layer < 1e6


def test_an_image_contains_no_training_package_and_no_installer(image: Image) -> None:
    names = ["torch", "mlflow", "prefect", "dvc", "pandas", "great_expectations", "sklearn", "pip", "setuptools", "bentoml"]
    found = in_image(image, f'python3.11 -c "from importlib.util import find_spec as f; print([n for n in {names} if f(n)])"')
    assert found.strip() == "['bentoml']"


def test_an_image_runs_without_privileges(image: Image) -> None:
    assert in_image(image, "id -u").strip() == "65532"
    assert in_image(image, "touch /opt/bento/x 2>/dev/null || echo refused").strip() == "refused"


def test_an_image_has_labels_with_the_models_identity(docker_engine: Settings, image: Image, bento: Bento) -> None:
    (found,) = Docker.connect(docker_engine).inspect("image", image.tag)
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "3"
    assert labels["org.opencontainers.image.revision"] == "f00d"
    assert (labels["headrace.model"], labels["headrace.data_md5"], labels["headrace.bento"]) == ("halves", "d41d", bento.tag)


def test_an_image_has_a_bill_of_materials(docker_engine: Settings, project: Project, image: Image, bento: Bento) -> None:
    bill = json.loads(in_image(image, f"cat {IN_IMAGE}"))
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["type"]) == ("CycloneDX", "1.6", "container")
    found = {component["name"]: component for component in bill["components"]}
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", REQUIREMENTS.read_text(), re.MULTILINE))
    named = {name.lower().replace("_", "-").replace(".", "-"): part["version"] for name, part in found.items()}
    assert {name: named.get(name) for name in pinned} == pinned
    model = found["halves"]
    assert (model["type"], model["version"]) == ("machine-learning-model", "3")
    graph = next(part for part in model["components"] if part["name"] == "model.onnx")
    assert graph["hashes"][0]["content"] == hashlib.sha256((bento.model_path / "model.onnx").read_bytes()).hexdigest()
    assert "bash" in found, "the bill lists the packages of the base image"
    (kept,) = (project.state / "sbom").glob("*.cdx.json")
    assert json.loads(kept.read_text()) == bill


def test_no_layer_contains_a_key_or_a_token(docker_engine: Settings, image: Image) -> None:
    saved = subprocess.run(["docker", "save", image.tag], check=True, capture_output=True).stdout
    names = [member.name for member in _members(saved)]
    assert any(name.endswith("bentos/serve.py") for name in names)
    secret = re.compile(r"(^|/)(\.headrace|keys|token-keys|[^/]*\.token|[^/]*\.key|signing\.pem|\.env|headrace\.toml)(/|$)")
    assert [name for name in names if secret.search(name)] == []


def _members(saved: bytes) -> list[tarfile.TarInfo]:
    """Every file of every layer of an image."""
    found = []
    with tarfile.open(fileobj=BytesIO(saved)) as archive:
        for member in archive.getmembers():
            if member.isfile() and (inner := archive.extractfile(member)):
                with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=BytesIO(inner.read())) as layer:
                    found += layer.getmembers()
    return found


def test_rebuilding_a_bento_gives_the_same_tag_and_layers(
    docker_engine: Settings, project: Project, bento: Bento, image: Image
) -> None:
    docker = Docker.connect(docker_engine)
    assert build_image(project.using(docker_engine), bento) == image
    (before,) = docker.inspect("image", image.tag)
    docker.run("image", "rm", "--force", image.tag)
    time.sleep(1.1)  # another second: times are whole seconds in a layer
    again = build_image(project.using(docker_engine), bento)
    (after,) = docker.inspect("image", again.tag)
    assert again.tag == image.tag
    assert after["RootFS"]["Layers"] == before["RootFS"]["Layers"]


def test_an_outdated_wheelhouse_is_refused(docker_engine: Settings, bento: Bento, image: Image, tmp_path: Path) -> None:
    project = make_project(tmp_path / "stale")
    (project.wheelhouse).mkdir()
    base = f"{docker_engine.base_image.partition(':')[0]}:stale-test"
    docker = Docker.connect(docker_engine)
    docker.build(_dockerfile(f"FROM {docker_engine.base_image}\nLABEL stale=1\n"), base)
    try:
        with pytest.raises(ServiceError, match=r"python -m headrace\.serving\.packaging"):
            build_image(project.using(docker_engine.model_copy(update={"base_image": base})), bento)
    finally:
        docker.run("image", "rm", "--force", base)


def test_a_base_image_that_cannot_be_pulled_is_an_error(docker_engine: Settings, project: Project, bento: Bento) -> None:
    settings = docker_engine.model_copy(update={"base_image": "127.0.0.1:1/missing/image:1"})
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1/missing/image:1.*cannot be pulled") as refused:
        build_image(project.using(settings), bento)
    assert "base_image" in str(refused.value.hint)


def _dockerfile(text: str) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        archive.addfile(entry, BytesIO(text.encode()))
    return buffer.getvalue()


def test_identity_is_plain_json(bento: Bento) -> None:
    assert json.loads((bento.model_path / "identity.json").read_text())["run_id"] == "r1"
