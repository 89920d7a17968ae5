"""Fetches a model that others trained into a folder: the model's file, and the files with further weights beside it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from headrace.console import Report
from headrace.data.ingest import source_cache
from headrace.data.sources.addresses import file_name, scheme_of
from headrace.data.sources.fetch import fetch_all
from headrace.errors import HeadraceError, SourceError, SourceUnreachable, near_miss
from headrace.files import safe_filename, write_with
from headrace.importing import hub, onnx_file
from headrace.importing.addresses import HUB, local_path, shown_source
from headrace.importing.errors import ImportRefused
from headrace.importing.formats import OF_MODELS, SUPPORTED, format_of
from headrace.importing.outputs import Labels, licence_of
from headrace.models.pretrained_base import FILES, WEIGHTS, read_base
from headrace.project import MODEL_RECORD, Project
from headrace.runtime.gguf_file import InvalidGGUF, read_gguf

LICENCE_LENGTH = 200
"""Most characters of a licence that are kept: some packages have its whole text in the field."""


@dataclass(frozen=True)
class Fetched:
    """A model in a folder of this machine."""

    file: Path
    sha256: str
    """Of the model's file; with further files, of the output of `sha256sum` for all of them, sorted by name."""
    files: tuple[str, ...]
    """Names of all files in the folder, the model's first."""
    licence: str | None = None
    revision: str | None = None
    """The exact version at the source, where that has one."""
    labels: Labels | None = None


def fetch_model(source: str, sha256: str | None, folder: Path, project: Project, report: Report) -> Fetched:
    """Copies the model at `source` into the empty folder `folder`.

    Args:
        sha256: what its bytes have to have; None accepts any.

    Raises:
        SourceError: it cannot be fetched, or its sha256 differs.
        ImportRefused: it is in no supported format, or names weights outside of its folder.
        DiskFull: no space is left.
    """
    shown = shown_source(source)
    found = _opened(source, sha256, project)
    name = found.file.name if found.name is None else found.name
    model = folder / name
    _copy(found.file, model)
    names, licence = [name], found.licence
    kind = format_of(model, shown)
    if kind == "onnx":
        structure = onnx_file.read_structure(model, shown)
        licence = licence or licence_of(structure)
        for further in onnx_file.external_files(structure, shown):
            report(f"weights {further}")
            _copy(found.beside(further), folder / further)
            names.append(further)
    elif kind == "gguf":
        licence = licence or _licence_of_gguf(model)
    if MODEL_RECORD in names:
        raise ImportRefused(
            f"{shown}: a file is called {MODEL_RECORD}, as the record of the import is",
            where="model.source",
            hint="give the file another name",
        )
    have = hash_of(folder, names)
    if sha256 is not None and have != sha256:
        raise changed(shown, have, sha256)
    return Fetched(model, have, tuple(names), licence, found.revision, found.labels)


def fetch_base(source: str, sha256: str | None, folder: Path, project: Project, report: Report) -> Fetched:
    """Copies a pretrained encoder into the empty folder `folder`, and checks it: weights, configuration and tokenizer.

    Args:
        source: the address of its weights; the other files are beside them.
        sha256: that of all three files, as `hash_of` computes it; None accepts any.

    Raises:
        SourceError: a file cannot be fetched, or the sha256 differs.
        UnusableBase: the files are damaged, do not fit each other, or are not of an encoder that can be adapted.
        DiskFull: no space is left.
    """
    from headrace.models.pretrained import check_weights

    shown = shown_source(source)
    found = _opened(source if not source.startswith(HUB) else _weights_on_hub(source), sha256=None, project=project)
    weights, *others = FILES
    _copy(found.file, folder / weights)
    for name in others:
        report(f"file {name}")
        _copy(found.beside(name), folder / name)
    have = hash_of(folder, list(FILES))
    if sha256 is not None and have != sha256:
        raise changed(shown, have, sha256)
    base, _ = read_base(folder, have)
    check_weights(base.config, folder)
    return Fetched(folder / weights, have, FILES, found.licence, found.revision)


def _weights_on_hub(source: str) -> str:
    """The address of the weights, for that of a repository."""
    wanted = hub.parse(source)
    if wanted.file is not None:
        return source
    revision = f"@{wanted.revision}" if wanted.revision else ""
    return f"{HUB}{wanted.name}/{WEIGHTS}{revision}"


def hash_of(folder: Path, names: list[str]) -> str:
    """The sha256 of a model's file; of several files, that of their `sha256sum`, sorted by name."""
    if len(names) == 1:
        return _sha256(folder / names[0])
    lines = (f"{_sha256(folder / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def changed(shown: str, found: str, expected: str) -> SourceError:
    """The error for a source whose bytes are not those that were imported."""
    return SourceError(
        f"the model at {shown} has sha256 {found}, and {expected} was imported",
        where="model.sha256",
        hint=f"if the new model is the one you want, write `sha256: {found}` under model in the recipe; otherwise restore the "
        "old one",
    )


@dataclass(frozen=True)
class _Opened:
    """A model that has arrived, and how to get a file that is beside it."""

    file: Path
    beside: Callable[[str], Path]
    name: str | None = None
    licence: str | None = None
    revision: str | None = None
    labels: Labels | None = None


def _opened(source: str, sha256: str | None, project: Project) -> _Opened:
    if source.startswith(HUB):
        return _from_hub(source, project)
    if source.startswith("mlflow:"):
        return _from_mlflow(source, project)
    local = local_path(source, project)
    if local is not None:
        return _from_path(source, local)
    return _from_address(source, sha256, project)


def _from_path(source: str, path: Path) -> _Opened:
    if path.is_dir():
        raise _folder(source, path)
    if not path.is_file():
        names = [one.name for one in path.parent.iterdir() if one.is_file()] if path.parent.is_dir() else []
        reason = near_miss(path.name, names) if names else "its folder is missing or empty"
        raise SourceError(f"no such file: {source}; {reason}", where="model.source", hint="correct the path")

    def beside(name: str) -> Path:
        found = path.parent / name
        if not found.resolve().is_relative_to(path.parent.resolve()):  # a link
            raise ImportRefused(
                f"the weights {name} of {source} are a link out of its folder", where="model.source", hint="copy the file there"
            )
        return found

    return _Opened(path, beside)


def _folder(source: str, path: Path) -> ImportRefused:
    names = sorted(one.name for one in path.iterdir() if one.is_file())
    usable = [name for name in names if name.endswith(OF_MODELS)]
    if usable:
        return ImportRefused(
            f"{source} is a folder", where="model.source", hint=f"name the file: {(path / usable[0]).as_posix()}"
        )
    if "config.json" in names or any(name.endswith(".safetensors") for name in names):
        return ImportRefused(
            f"{source} is a folder of transformers ({', '.join(names[:6])}), which cannot be imported yet",
            where="model.source",
            hint=f"supported are {SUPPORTED}; write ONNX with: optimum-cli export onnx --model {source} FOLDER",
        )
    return ImportRefused(
        f"{source} is a folder without a model", where="model.source", hint=f"name a file; supported are {SUPPORTED}"
    )


def _from_address(source: str, sha256: str | None, project: Project) -> _Opened:
    encrypted = scheme_of(source) != "http"
    file = _fetched(source, project, None if encrypted else sha256)

    def beside(name: str) -> Path:
        base, mark, query = source.partition("?")
        further = f"{base.rpartition('/')[0]}/{name}{mark}{query}"
        return _fetched(further, project)

    return _Opened(file, beside, file_name(source), _licence_of_package(source, project))


def _licence_of_package(source: str, project: Project) -> str | None:
    """The licence that a package says; None for one that does not, or that cannot be had."""
    package = re.match(r"((?:pypi://[^/]+==|npm://(?:@[^/]+/)?[^/@]+@)[^/]+)/", source)
    if package is None:
        return None
    with suppress(HeadraceError, ValueError, OSError):
        if source.startswith("npm://"):
            found = json.loads(_fetched(f"{package[1]}/package/package.json", project).read_text(encoding="utf-8"))
            licence = found.get("license")
            return _short(licence.get("type") if isinstance(licence, dict) else licence)  # a mapping in old packages
        return _licence_of_wheel(_fetched(f"{package[1]}/*METADATA", project))
    return None


def _licence_of_wheel(archive: Path) -> str | None:
    import zipfile
    from email.parser import HeaderParser

    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.endswith(".dist-info/METADATA"):
                fields = HeaderParser().parsestr(files.read(name).decode("utf-8", errors="replace"))
                classifiers = [line for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
                return _short(
                    fields.get("License-Expression") or fields.get("License") or ", ".join(classifiers).rpartition(" :: ")[2]
                )
    return None


def _licence_of_gguf(model: Path) -> str | None:
    with suppress(InvalidGGUF):  # of which the checks of the model say more
        return read_gguf(model).licence
    return None


def _from_hub(source: str, project: Project) -> _Opened:
    client = hub.Hub(source, project.state / "cache" / "hub")
    file = client.model()
    inside = PurePosixPath(client.path_of(file)).parent
    return _Opened(
        file,
        lambda name: client.download((inside / name).as_posix()),
        licence=client.licence,
        revision=client.revision,
        labels=client.labels(),
    )


def _from_mlflow(source: str, project: Project) -> _Opened:
    """A version of MLflow's registry, of the project or of the server in its settings, whoever has registered it."""
    import mlflow
    import yaml
    from mlflow.exceptions import MlflowException

    from headrace.tracking.language_flavor import FLAVOR_NAME
    from headrace.tracking.runs import client, registry_errors

    known = re.fullmatch(r"mlflow:models:/([^/@]+)/(\d+)", source)
    if known is None:
        raise SourceError(
            f"{source} is not a version of a registered model", where="model.source", hint="write mlflow:models:/NAME/VERSION"
        )
    name, number = known.groups()
    place = project.state / "cache" / "mlflow" / safe_filename(name) / number
    with registry_errors(project):
        try:
            version = client(project).get_model_version(name, number)
        except MlflowException:
            names = [model.name for model in client(project).search_registered_models()]
            raise SourceError(
                f"MLflow has no version {number} of {name!r}; {near_miss(name, names)}",
                where="model.source",
                hint=f"see {project.settings.mlflow_address}",
            ) from None
        uri = client(project).get_model_version_download_uri(name, number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(place), tracking_uri=project.tracking_uri))
    described = folder / "MLmodel"
    flavors: dict[str, Any] = (yaml.safe_load(described.read_text(encoding="utf-8")) or {}).get("flavors", {})
    usable = ("onnx", "sklearn", "xgboost", "lightgbm", FLAVOR_NAME)
    data = next((_data_of(flavors[one]) for one in usable if one in flavors), None)
    if data is None or not (folder / data).exists():
        raise SourceError(
            f"{source} has the flavors {', '.join(flavors) or 'none'}, of which none can be imported",
            where="model.source",
            hint=f"supported are {SUPPORTED}",
        )
    file = folder / data
    file = next(iter(sorted(file.glob("*.onnx"))), file) if file.is_dir() else file
    return _Opened(
        file, lambda further: file.parent / further, licence=version.tags.get("license"), revision=f"run {version.run_id}"
    )


def _data_of(flavor: dict[str, Any]) -> str | None:
    found = flavor.get("data") or flavor.get("pickled_model") or flavor.get("model_path")
    return str(found) if found else None


def _fetched(uri: str, project: Project, sha256: str | None = None) -> Path:
    """Fetches a file; errors name the field of an imported model in place of that of data."""
    try:
        limit = project.settings.max_source_bytes
        return fetch_all([(uri, sha256)], source_cache(project), project.root, limit_bytes=limit)[0]
    except SourceError as error:
        cls = SourceUnreachable if isinstance(error, SourceUnreachable) else SourceError
        hint = (error.hint or "").replace("data.source", "model.source").replace("data.sha256", "model.sha256")
        where = (error.where or "").replace("data.", "model.") or None
        raise cls(error.message, where=where, hint=hint or None) from None


def _copy(path: Path, to: Path) -> None:
    if not path.is_file():
        raise SourceError(
            f"{path.name}, which the model needs, is missing", where="model.source", hint="copy it beside the model"
        )
    write_with(to, lambda beside: shutil.copyfile(path, beside))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(text: Any) -> str | None:
    return " ".join(str(text).split())[:LICENCE_LENGTH] if text else None
