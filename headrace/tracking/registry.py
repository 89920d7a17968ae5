"""MLflow's registry: a version for each candidate, the aliases `challenger` and `champion`, and the files of a version."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from headrace.data.versions import DataVersion
from headrace.errors import RegistryError, UsageError, near_miss
from headrace.files import read_json, write_with
from headrace.plugins import custom_sources
from headrace.project import Project
from headrace.recipe.recipe import NAME_PATTERN, Recipe
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_of
from headrace.tracking import provenance, runs
from headrace.tracking.artifact import CONTRACT, GRAPH, content_hash, served_parts
from headrace.tracking.runs import client, registry_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
CONTENT = "headrace.content_sha256"
PREFIX = "headrace."
IDENTITY = ("data_md5", "data_rows", "git_commit", "lock_sha256", "recipe_sha256", "validation", "content_sha256", "run_id")
"""Tags with the identity of a version; they never change. Those of the gate and of a person's approval do."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    version: str
    run_id: str
    folder: Path
    """The folder of `model.onnx` and `contract.json` of this version."""
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def identity(self) -> dict[str, str]:
        """The tags in `IDENTITY`, without their prefix."""
        return {name: self.tags[PREFIX + name] for name in IDENTITY if PREFIX + name in self.tags}


def identity_of(recipe: Recipe, version: DataVersion, project: Project) -> dict[str, str]:
    """The identity of the model that was trained last, as tags for its version in the registry."""
    validation = read_json(project.artifacts(recipe.name) / "validation.json") or {}
    return {
        "data_md5": version.md5,
        "data_rows": str(version.rows),
        "git_commit": provenance.git_commit(project, custom_sources(recipe.custom_classes, project.root)),
        "lock_sha256": provenance.lock_hash(project),
        "recipe_sha256": provenance.sha256(project.recipes / f"{recipe.name}.yaml"),
        "validation": f"{validation.get('passed')} of {validation.get('total')} expectations",
    }


def register(recipe: Recipe, project: Project, identity: dict[str, str]) -> Version:
    """Registers the exported graph. The same graph from the same data keeps the version that it has.

    Args:
        identity: tags for the version: data_md5, git_commit, lock_sha256 and others.

    Raises:
        RegistryError: MLflow's database cannot be written.
    """
    artifacts = project.artifacts(recipe.name)
    content = content_hash(artifacts / "export")
    known = find_same_content(recipe.name, project, content, identity["data_md5"])
    if known:
        return known
    history = _history(artifacts / "train" / "curves.csv")
    run = runs.run_of_weights(recipe, project, artifacts / "train" / "model.pt", history)
    with registry_errors(project):
        _log_evaluation(project, run.id, artifacts)
        source, model_id = _log_graph(run.id, artifacts / "export", recipe)
        store = client(project)
        if not store.search_registered_models(f"name = '{recipe.name}'"):
            store.create_registered_model(recipe.name, description=f"Built from recipes/{recipe.name}.yaml")
        tags = {PREFIX + key: value for key, value in identity.items()} | {CONTENT: content, PREFIX + "run_id": run.id}
        created = store.create_model_version(recipe.name, source, run.id, tags=tags, model_id=model_id)
        return _with_files(_version(created, project), project)


def find_same_content(model: str, project: Project, content: str, data_md5: str) -> Version | None:
    """The newest version with this content from this data, unless its files are gone."""
    with registry_errors(project):
        found = client(project).search_model_versions(
            f"name = '{model}' and tags.`{CONTENT}` = '{content}' and tags.`{PREFIX}data_md5` = '{data_md5}'",
            order_by=["version_number DESC"],
            max_results=1,
        )
        if not found:
            return None
        with contextlib.suppress(RegistryError):
            return _with_files(_version(found[0], project), project)
        return None


def versions(model: str, project: Project) -> list[Version]:
    """All versions of a model, newest first, also those whose files are gone."""
    with registry_errors(project):
        found = client(project).search_model_versions(f"name = '{model}'", order_by=["version_number DESC"])
        aliases = _aliases(model, project)
        return [_version(v, project, aliases) for v in found]


def get(reference: str, project: Project) -> Version:
    """The version that `digits@3`, `digits@champion` or plain `digits` (its champion) names.

    Raises:
        UsageError: the model or version does not exist.
        RegistryError: its files are gone.
    """
    model, _, wanted = reference.partition("@")
    found = versions(model, project) if re.fullmatch(NAME_PATTERN, model) else []
    if not found:
        with registry_errors(project):
            names = [m.name for m in client(project).search_registered_models()]
        if model in names:
            raise UsageError(f"{model!r} has no version yet", hint=f"headrace run {model}")
        raise UsageError(f"no registered model {model!r}; {near_miss(model, names)}", hint="headrace status lists the models")
    wanted = wanted.removeprefix("v") or CHAMPION
    for version in found:
        if wanted == version.version or wanted in version.aliases:
            return _with_files(version, project)
    listed = [v.version for v in found] + [alias for v in found for alias in v.aliases]
    raise UsageError(f"{model} has no version {wanted!r}; {near_miss(wanted, listed)}", hint=f"headrace history {model}")


def find_version(model: str, number: str, project: Project) -> Version | None:
    """Version `number` of a model; None when it is not in the registry (any more).

    Raises:
        RegistryError: its files are gone.
    """
    return next((_with_files(v, project) for v in versions(model, project) if v.version == number), None)


def aliased(model: str, alias: str, project: Project) -> str | None:
    """The number of the version that `alias` names, if there is one."""
    with registry_errors(project):
        return _aliases(model, project).get(alias)


def set_alias(version: Version, alias: str, project: Project) -> None:
    with registry_errors(project):
        client(project).set_registered_model_alias(version.model, alias, version.version)


def move_champion(model: str, wanted: str, project: Project) -> None:
    """Moves the alias `champion` to version `wanted`. Does nothing when that was deleted from the registry; it serves without.

    Raises:
        RegistryError: MLflow's database cannot be written.
    """
    found = next((version for version in versions(model, project) if version.version == wanted), None)
    if found is not None:
        set_alias(found, CHAMPION, project)


def drop_alias(model: str, alias: str, project: Project) -> None:
    with registry_errors(project), contextlib.suppress(KeyError):
        if alias in _aliases(model, project):
            client(project).delete_registered_model_alias(model, alias)


def set_tags(version: Version, tags: dict[str, str], project: Project) -> None:
    with registry_errors(project):
        for key, value in tags.items():
            client(project).set_model_version_tag(version.model, version.version, PREFIX + key, value)


def tag(version: Version, key: str, project: Project) -> str | None:
    """The current value of a tag; a person may have set it in the MLflow UI."""
    with registry_errors(project):
        tags = client(project).get_model_version(version.model, version.version).tags
    return tags.get(PREFIX + key) or tags.get(key)


def _log_evaluation(project: Project, run_id: str, artifacts: Path) -> None:
    from mlflow.entities import Metric

    store = client(project)
    metrics: dict[str, float] = read_json(artifacts / "evaluation" / "metrics.json") or {}
    store.log_batch(run_id, [Metric(f"test_{name}", value, 0, 0) for name, value in metrics.items()])
    store.log_artifacts(run_id, str(artifacts / "evaluation" / "pictures"), "evaluation")
    store.log_artifact(run_id, str(artifacts / "evaluation" / "evaluation.json"), "evaluation")
    store.log_artifact(run_id, str(artifacts / "validation.json"), "data")


def _log_graph(run_id: str, export: Path, recipe: Recipe) -> tuple[str, str]:
    """Logs the graph with signature, input example and the files beside it; returns its URI and MLflow's model id."""
    import mlflow
    import mlflow.onnx
    import onnx
    import onnxruntime

    from headrace.models.onnx_export import signature_of

    contract = Contract.read(export / CONTRACT)
    graph = onnx.load(export / GRAPH)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            graph,
            name="model",
            signature=signature_of(graph),
            input_example=task_type_of(recipe.task).example(contract, export),
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}"],
            save_as_external_data=False,
            extra_files=[str(path) for path in served_parts(export) if path.name != GRAPH],
            metadata={"recipe": recipe.name, "task": recipe.task},
        )
    return logged.model_uri, logged.model_id


def _version(found: ModelVersion, project: Project, aliases: dict[str, str] | None = None) -> Version:
    named = _aliases(found.name, project) if aliases is None else aliases
    return Version(
        model=found.name,
        version=str(found.version),
        run_id=str(found.run_id),
        folder=_folder(found, project),
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, version in named.items() if str(version) == str(found.version))),
    )


def _folder(found: ModelVersion, project: Project) -> Path:
    """The folder of a version's files: in the artifact store if that is on this machine, else in a cache."""
    uri = client(project).get_model_version_download_uri(found.name, str(found.version))
    if uri.startswith(("file://", "/")):
        return Path(unquote(uri.removeprefix("file://")))
    place = hashlib.sha256(uri.encode()).hexdigest()[:12]  # another server may have a version of this number too
    return project.state / "cache" / "models" / found.name / f"{found.version}-{place}"


def _with_files(version: Version, project: Project) -> Version:
    """The version, once its files are on this machine: they are downloaded if the artifact store is elsewhere.

    Raises:
        RegistryError: they are gone.
    """
    if not (version.folder / GRAPH).exists():
        _download(version, project)
    # MLflow keeps files other than the graph in a folder of their own.
    for kept in served_parts(version.folder / "extra_files"):
        if not (version.folder / kept.name).exists():
            write_with(version.folder / kept.name, lambda beside, kept=kept: beside.write_bytes(kept.read_bytes()))  # type: ignore[misc]
    if not (version.folder / CONTRACT).exists():
        raise _gone(version)
    return version


def _download(version: Version, project: Project) -> None:
    """Downloads all files into a temporary folder, then renames it."""
    import mlflow

    with registry_errors(project):
        uri = client(project).get_model_version_download_uri(version.model, version.version)
        if uri.startswith(("file://", "/")):
            raise _gone(version)
        beside = version.folder.with_name(f".{version.folder.name}.{os.getpid()}.part")
        try:
            beside.mkdir(parents=True)
            made = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(beside)))  # it may be a subfolder
            shutil.rmtree(version.folder, ignore_errors=True)
            made.rename(version.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _gone(version: Version) -> RegistryError:
    return RegistryError(
        f"the files of {version.name} are gone",
        where=str(version.folder),
        hint=f"restore mlruns/artifacts from a backup, or delete {version.name} in the MLflow UI; "
        f"then: headrace run {version.model}",
    )


def _aliases(model: str, project: Project) -> dict[str, str]:
    store = client(project)
    return (
        {k: str(v) for k, v in store.get_registered_model(model).aliases.items()}
        if store.search_registered_models(f"name = '{model}'")
        else {}
    )


def _history(curves: Path) -> list[dict[str, float]]:
    import csv

    with curves.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]


def evidence(version: Version) -> dict[str, Any]:
    """The version's identity, as facts for the journal."""
    return {"run_id": version.run_id, **version.identity}
