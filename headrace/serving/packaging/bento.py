"""Builds bentos: BentoML's package of one model version and its service, in BentoML's stores. `serve_command` serves one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from headrace.errors import DiskFull, HeadraceError, ServiceError
from headrace.files import write_text
from headrace.permissions import close_to_others
from headrace.project import Project
from headrace.runtime.contract import Contract
from headrace.serving.local_http import Address
from headrace.serving.packaging.code_files import served_files, short_digest
from headrace.tracking.artifact import CONTRACT, content_hash, hash_of_parts, model_changed, model_file, served_parts
from headrace.tracking.provenance import sha256

SOCKET_OPTION = "--socket"
LARGE = (".gguf",)
"""Endings of files that are never read into memory as a whole."""
SERVE_OLDER = Path(__file__).with_name("serve_older_bento.py")


@dataclass(frozen=True)
class Bento:
    """A bento in the project's store. The folders `path` and `model_path` are complete whenever they exist."""

    tag: str
    """`<recipe>:<version>-<8 hex digits of its content>`."""
    path: Path
    model_tag: str
    """The tag in BentoML's model store; equal to `tag`."""
    model_path: Path

    @property
    def name(self) -> str:
        return self.tag.partition(":")[0]

    @property
    def version(self) -> str:
        """The version in the registry, without the digest."""
        return self.tag.partition(":")[2].rpartition("-")[0]

    @property
    def identity(self) -> dict[str, str]:
        """Where the model comes from: name, version, data md5, git commit, run id."""
        values: dict[str, str] = json.loads((self.model_path / "identity.json").read_text(encoding="utf-8"))
        return values


def package(
    model_dir: Path,
    name: str,
    version: str,
    identity: dict[str, str],
    project: Project,
    source: Mapping[str, bytes] | None = None,
    content_sha256: str | None = None,
) -> Bento:
    """Builds the bento of a model version, or finds it: equal files, identity and serving code have the same tag.

    Args:
        model_dir: folder with `model.onnx` (of a language model `model.gguf`) and `contract.json`.
        name: the recipe's name, which is the contract's `model`.
        version: the registry's version.
        identity: stored with the model, and part of its description for clients.
        source: what the version was made from, by path; stored with the model in the folder `source`.
        content_sha256: the content hash that the packaged bytes must have; by default any.

    Raises:
        HeadraceError: a file is missing, the contract is for another model, or BentoML fails.
        RegistryError: the files, or those of a bento that was built earlier, have another content hash.
        DiskFull: no space is left.
    """
    files = _model_files(model_dir, name)
    content = hash_of_parts(files)  # of the very bytes that are packaged
    hashes = {part: _hash(data) for part, data in files.items()}
    if content_sha256 is not None and content != content_sha256:
        hint = f"restore {model_dir} from a backup; or delete {name}@{version} in the MLflow UI, then: headrace run {name}"
        raise model_changed(f"{name}@{version}", model_dir, content_sha256, hint)
    files["identity.json"] = _identity_bytes(name, version, identity)
    files |= {f"source/{path}": content for path, content in (source or {}).items()}
    served_by = Contract.read(model_dir / "contract.json").served_by
    sources = {path: file.read_bytes() for path, file in served_files(served_by, project.root).items()}
    contents = {path: part if isinstance(part, bytes) else hashes[path].encode() for path, part in files.items()}
    found = _locate(project, name, f"{version}-{short_digest({**contents, **{f'src/{k}': v for k, v in sources.items()}})}")
    if not _is_complete(found):
        _build(found, files, sources, project)
    require_content(found, content, hashes)
    return found


def require_content(bento: Bento, content_sha256: str, files: Mapping[str, str] | None = None) -> None:
    """Compares the model's files in a bento with those that were released.

    Args:
        content_sha256: their content hash, from the journal.
        files: the sha256 of each file, where it is known.

    Raises:
        RegistryError: they differ.
    """
    if content_hash(bento.model_path) != content_sha256:
        hint = f"move '{bento.path}' and '{bento.model_path}' out of the store, then headrace run {bento.name} builds it again"
        name = f"{bento.name}@{bento.version}"
        raise model_changed(name, bento.model_path, content_sha256, hint, files)


def find_bento(project: Project, tag: str) -> Bento:
    """Finds the bento with this tag.

    Raises:
        HeadraceError: it does not exist.
    """
    name, _, version = tag.partition(":")
    found = _locate(project, name, version)
    if not _is_complete(found):
        raise HeadraceError(
            f"bento {tag!r} does not exist in {project.bentoml_home}",
            where=name,
            hint=f"headrace run {name}   (it builds what is missing)",
        )
    return found


def serve_command(project: Project, bento_tag: str, address: Address, threads: int) -> tuple[list[str], dict[str, str]]:
    """Arguments and additional environment variables of a process that serves `bento_tag` at `address`.

    The code comes from the bento, not from the working tree, so that an edit does not reach released versions. The server
    is ready when `GET /readyz` answers 200; after SIGTERM it completes its requests and ends.

    Raises:
        HeadraceError: the bento does not exist.
    """
    bento = find_bento(project, bento_tag)
    return [sys.executable, "-P", *_server(bento, address)], {
        "PYTHONPATH": str(bento.path / "src"),
        "BENTOML_HOME": str(project.bentoml_home),
        "BENTOML_DO_NOT_TRACK": "true",
        "HEADRACE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # Two arenas instead of eight per core, since each replica pays for the allocator's unused memory.
        "MALLOC_ARENA_MAX": "2",
    }


def _server(bento: Bento, address: Address) -> list[str]:
    """Python's arguments for the server in the bento; one that was built earlier does not know Unix sockets."""
    if not isinstance(address, Path):
        return ["-m", "bentos.serve", str(bento.path), "--host", address[0], "--port", str(address[1])]
    if SOCKET_OPTION in (bento.path / "src" / "bentos" / "serve.py").read_text(encoding="utf-8"):
        return ["-m", "bentos.serve", str(bento.path), SOCKET_OPTION, str(address)]
    return [str(SERVE_OLDER), str(address), str(bento.path)]


def model_folder(project: Project, tag: str) -> Path:
    """The folder of a bento's model in BentoML's store, whether or not it exists."""
    name, _, version = tag.partition(":")
    return _locate(project, name, version).model_path


def _locate(project: Project, name: str, version: str) -> Bento:
    home = project.bentoml_home
    return Bento(f"{name}:{version}", home / "bentos" / name / version, f"{name}:{version}", home / "models" / name / version)


def _is_complete(bento: Bento) -> bool:
    """Both folders are moved into place by a rename, so that they are complete when they exist."""
    return (bento.path / "bento.yaml").is_file() and (bento.model_path / "model.yaml").is_file()


def _model_files(model_dir: Path, name: str) -> dict[str, bytes | Path]:
    """The served files by their names: their bytes, or the path of a large one."""
    for needed in (model_file(model_dir), model_dir / CONTRACT):
        if not needed.is_file():
            raise HeadraceError(
                f"{needed.name} is missing", where=str(model_dir), hint=f"headrace run {name}   (it trains and exports)"
            )
    served = Contract.read(model_dir / "contract.json").model
    if served != name:
        raise HeadraceError(
            f"the contract is for model {served!r}, not {name!r}",
            where=str(model_dir / "contract.json"),
            hint=f"headrace run {name}   (it exports again)",
        )
    return {part.name: part if part.suffix in LARGE else part.read_bytes() for part in served_parts(model_dir)}


def _hash(part: bytes | Path) -> str:
    return hashlib.sha256(part).hexdigest() if isinstance(part, bytes) else sha256(part)


def _identity_bytes(name: str, version: str, identity: dict[str, str]) -> bytes:
    return (json.dumps({**identity, "model": name, "version": version}, indent=1, sort_keys=True) + "\n").encode()


def _build(bento: Bento, files: Mapping[str, bytes | Path], sources: dict[str, bytes], project: Project) -> None:
    """Builds in a temporary BentoML store, then moves first the model and then the bento into the project's store."""
    building = project.bentoml_home / "building"
    _remove_abandoned(building)
    scratch = building / f"{bento.name}-{os.getpid()}"
    try:
        _write_all(scratch / "src", sources)
        _write_all(scratch / "model", files)
        _run_bentoml(bento, scratch)
        store = scratch / "home"
        close_to_others(store)  # BentoML gives some of its files a mode
        _move(store / "models" / bento.name / bento.model_path.name, bento.model_path)
        _move(store / "bentos" / bento.name / bento.path.name, bento.path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "no space left to build the bento",
                where=str(project.bentoml_home),
                hint="free some space, then run the same command",
            ) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_bentoml(bento: Bento, scratch: Path) -> None:
    """Runs in a subprocess, because BentoML imports the service and keeps the path of its store in globals."""
    home = scratch / "home"
    home.mkdir()
    # no_image: to write a Dockerfile, BentoML would install uv; ours is in deploy/serving.
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_ENABLE_FEATURES": "no_image",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("PYTHONPATH", None)
    script = Path(__file__).with_name("build_bento.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(scratch), bento.tag],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(
            f"BentoML failed to build {bento.tag}:\n{done.stderr.strip()[-2000:]}",
            where="packaging",
            hint="make setup   (it installs what requirements.lock pins)",
        )


def _write_all(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)


def _move(built: Path, place: Path) -> None:
    """Renames a complete folder into place, unless another process or an earlier run has done so."""
    for file in [entry for entry in built.rglob("*") if entry.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        built.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    write_text(place.parent / "latest", place.name)  # also makes the rename survive a power failure


def _remove_abandoned(building: Path) -> None:
    """Removes temporary folders of killed processes."""
    for folder in building.glob("*-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
