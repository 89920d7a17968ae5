"""MLflow's registry: a version for each candidate, the aliases `challenger` and `champion`, and the files of a version."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from headrace.data.sources.addresses import redacted
from headrace.data.versions import DataVersion
from headrace.errors import RegistryError, UsageError, near_miss
from headrace.files import read_json, write_with
from headrace.project import Project
from headrace.recipe.recipe import NAME_PATTERN, Recipe
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_for
from headrace.tracking import artifact, runs, sources
from headrace.tracking.artifact import CONTRACT, GRAPH, IMPORT_FACTS, content_hash, model_file, served_parts
from headrace.tracking.runs import client, registry_errors
from headrace.tracking.sources import Sources
from headrace.tracking.version_identity import IDENTITY, identity_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
CONTENT = "headrace.content_sha256"
PREFIX = "headrace."
SKIPPED = "headrace.skipped"
"""Tag of a version that is being created, until it has its number."""
DIGEST_LENGTH = 36
"""Characters of a dataset's digest that MLflow keeps."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    version: str
    run_id: str
    folder: Path
    """The folder of `model.onnx` (of a language model `model.gguf`) and `contract.json` of this version."""
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def identity(self) -> dict[str, str]:
        """The tags in `IDENTITY`, without their prefix."""
        return {name: self.tags[PREFIX + name] for name in IDENTITY if PREFIX + name in self.tags}


def register_trained(recipe: Recipe, version: DataVersion, project: Project, after: int = 0) -> Version:
    """Registers the exported graph as `register` does, with its identity and what it was made from."""
    source = sources.collect(recipe, version, project)
    return register(recipe, project, identity_of(recipe, version, source, project), source, after)


def register(
    recipe: Recipe, project: Project, identity: dict[str, str], source: Sources | None = None, after: int = 0
) -> Version:
    """Registers the exported graph. The same graph from the same data keeps the version that it has.

    Args:
        identity: tags for the version: data_md5, git_commit, lock_sha256 and others.
        source: what the version was made from; stored with its run.
        after: the highest number that the journal knows. MLflow forgets it when the registered model is deleted, and a new
            version never has the number of another one.

    Raises:
        RegistryError: MLflow's database cannot be written, or the files of the version with this graph have changed.
    """
    artifacts = project.artifacts(recipe.name)
    content = content_hash(artifacts / "export")
    with registry_errors(project):
        _remove_skipped(recipe.name, project)
    known = find_same_content(recipe.name, project, content, identity["data_md5"])
    if known:
        require_content(known, content, artifact.file_hashes(artifacts / "export"))
        return known
    if recipe.imported is not None:
        run = runs.run_of_weights(recipe, project, model_file(artifacts / "export"), [])
    else:
        run = runs.run_of_training(recipe, project)
    with registry_errors(project):
        _log_evaluation(project, run.id, artifacts)
        _log_data_version(recipe, project, run.id, identity)
        if recipe.train.start == "champion":
            client(project).log_artifact(run.id, str(artifacts / "train" / "model.pt"), runs.FOLDER_OF_WEIGHTS)
        uri, model_id = _log_graph(run.id, artifacts / "export", recipe, project)
        if source is not None:
            sources.log(run.id, source, project)
            identity = {**identity, "source": source.digest}
        store = client(project)
        if not store.search_registered_models(f"name = '{recipe.name}'"):
            store.create_registered_model(recipe.name, description=f"Built from recipes/{recipe.name}.yaml")
        tags = {PREFIX + key: value for key, value in identity.items()} | {CONTENT: content, PREFIX + "run_id": run.id}
        newest = store.search_model_versions(f"name = '{recipe.name}'", order_by=["version_number DESC"], max_results=1)
        if (int(newest[0].version) if newest else 0) >= after:
            created = store.create_model_version(recipe.name, uri, run.id, tags=tags, model_id=model_id)
        else:
            created = _create_after(after, recipe.name, uri, run.id, tags, model_id, project)
        return _with_files(_version(created, project), project)


def _create_after(
    after: int, model: str, uri: str, run_id: str, tags: dict[str, str], model_id: str | None, project: Project
) -> ModelVersion:
    """Creates a version with a number above `after`: MLflow gives the number after the highest, deleted ones included.

    Until its number is known to be above, it has the tag `SKIPPED`, by which `_remove_skipped` finds it.
    """
    store = client(project)
    while True:
        made = store.create_model_version(model, uri, run_id, tags={SKIPPED: "true"}, model_id=model_id)
        if int(made.version) > after:
            break
        store.delete_model_version(model, made.version)
    for name, value in tags.items():
        store.set_model_version_tag(model, made.version, name, value)
    store.delete_model_version_tag(model, made.version, SKIPPED)
    return store.get_model_version(model, made.version)


def _remove_skipped(model: str, project: Project) -> None:
    """Removes versions that a process which was killed left without their final number."""
    store = client(project)
    for left in store.search_model_versions(f"name = '{model}' and tags.`{SKIPPED}` = 'true'"):
        store.delete_model_version(model, left.version)


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


def require_content(version: Version, content: str, files: Mapping[str, str] | None = None) -> None:
    """Compares the files of a version with what was registered. Its tag is not asked: anybody may set one.

    Args:
        content: the content hash, from the export or the journal.
        files: the sha256 of each file, where it is known.

    Raises:
        RegistryError: they differ.
    """
    if content_hash(version.folder) != content:
        hint = f"restore {version.folder} from a backup; or delete {version.name} in the MLflow UI, then: "
        hint += f"headrace run {version.model}"
        raise artifact.model_changed(version.name, version.folder, content, hint, files)


def models(project: Project) -> list[str]:
    """Names of all registered models."""
    found: list[str] = []
    with registry_errors(project):
        token = None
        while True:
            page = client(project).search_registered_models(page_token=token)
            found.extend(model.name for model in page)
            token = page.token
            if not token:
                return found


def source_of(version: Version, project: Project, elsewhere: Iterable[Path] = ()) -> Sources | None:
    """What a version was made from; None for one that an older Headrace registered.

    Args:
        elsewhere: folders that may hold the same files, if the run was deleted.

    Raises:
        RegistryError: it is gone.
    """
    return sources.load(version.run_id, version.identity.get("source"), project, elsewhere)


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
    rows = (read_json(artifacts / "evaluation" / "evaluation.json") or {}).get("rows")
    metrics = metrics if rows is None else {**metrics, "rows": rows}
    # A run has several evaluations when its weights are exported again, for example compressed: MLflow refuses two values of a
    # metric at the same time.
    now = int(time.time() * 1000)
    store.log_batch(run_id, [Metric(f"test_{name}", value, now, 0) for name, value in metrics.items()])
    store.log_artifact(run_id, str(artifacts / "evaluation" / "profile.json"), "monitoring")
    if (artifacts / "export" / IMPORT_FACTS).is_file():  # no rows were tested
        store.log_artifact(run_id, str(artifacts / "export" / IMPORT_FACTS), "import")
        return
    store.log_artifacts(run_id, str(artifacts / "evaluation" / "pictures"), "evaluation")
    store.log_artifact(run_id, str(artifacts / "evaluation" / "evaluation.json"), "evaluation")
    store.log_artifact(run_id, str(artifacts / "validation.json"), "data")


def _log_data_version(recipe: Recipe, project: Project, run_id: str, identity: dict[str, str]) -> None:
    """Logs the data version as the dataset of the run: MLflow shows it beside the run and lists its runs by it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = Dataset(
        name=f"data/{recipe.name}",
        digest=identity["data_md5"][:DIGEST_LENGTH],
        source_type="dvc",
        source=json.dumps({"path": f"data/{recipe.name}", "md5": identity["data_md5"], "source": redacted(recipe.data.origin)}),
        profile=json.dumps({"rows": int(identity.get("data_rows", 0)), "expectations": identity.get("validation")}),
    )
    client(project).log_inputs(run_id, [DatasetInput(found, [InputTag("mlflow.data.context", "training")])])


def _log_graph(run_id: str, export: Path, recipe: Recipe, project: Project) -> tuple[str, str]:
    """Logs the graph with signature, input example and the files beside it; returns its URI and MLflow's model id.

    A language model is logged with its contract alone: no graph with a signature exists.
    """
    import mlflow
    import mlflow.onnx
    import onnx
    import onnxruntime

    from headrace.models.onnx_export import signature_of

    mlflow.set_tracking_uri(project.tracking_uri)  # of the whole process: another project may have set its own
    contract = Contract.read(export / CONTRACT)
    metadata = {"recipe": recipe.name, "task": recipe.task}
    if model_file(export).name != GRAPH:
        from mlflow.models import Model

        from headrace.tracking import language_flavor

        with mlflow.start_run(run_id=run_id):
            logged = Model.log(None, language_flavor, name="model", metadata=metadata, files=served_parts(export))
        return logged.model_uri, logged.model_id
    graph = onnx.load(export / GRAPH)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            graph,
            name="model",
            signature=signature_of(graph),
            input_example=task_type_for(recipe).example(contract, export),
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}"],
            save_as_external_data=False,
            extra_files=[str(path) for path in served_parts(export) if path.name != GRAPH],
            metadata=metadata,
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
    if not model_file(version.folder).exists():
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
            made = Path(
                mlflow.artifacts.download_artifacts(uri, dst_path=str(beside), tracking_uri=project.tracking_uri)
            )  # it may be a subfolder
            shutil.rmtree(version.folder, ignore_errors=True)
            made.rename(version.folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _gone(version: Version) -> RegistryError:
    return RegistryError(
        f"the files of {version.name} are gone",
        where=str(version.folder),
        hint=f"if it was released: headrace rebuild {version.name}; or restore mlruns/artifacts from a backup, or train a new "
        f"version: headrace run {version.model} --force",
    )


def _aliases(model: str, project: Project) -> dict[str, str]:
    store = client(project)
    return (
        {k: str(v) for k, v in store.get_registered_model(model).aliases.items()}
        if store.search_registered_models(f"name = '{model}'")
        else {}
    )


def evidence(version: Version) -> dict[str, Any]:
    """The version's identity, as facts for the journal; the hashes are those of its files, whatever its tags say."""
    hashes = {"content_sha256": content_hash(version.folder), "files": artifact.file_hashes(version.folder)}
    return {"run_id": version.run_id, **version.identity, **hashes}
