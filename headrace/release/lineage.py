"""Traces a version, or the id of a response, back to the code, data and run that it was made of."""

from __future__ import annotations

from typing import Any

from headrace.data.versions import data_version
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.release import journal
from headrace.tracking import registry


def trace_version(reference: str, project: Project) -> dict[str, Any]:
    """The lineage of one version: a chain of links, each with its `id` and the command that gets it back.

    Args:
        reference: `digits@3`, `digits@champion`, `digits`, or the `id` of a response (`digits@3:7f3c…`).

    Raises:
        UsageError: the model or version does not exist.
    """
    version = registry.get(reference.partition(":")[0], project)
    released = next(
        (
            e
            for e in reversed(journal.entries(project, version.model))
            if e.event == "released" and e.version == version.version
        ),
        None,
    )
    facts = released.facts if released else {}
    identity = version.identity
    commit = identity.get("git_commit", "none")
    links = [
        _link("image", facts.get("image_digest") or facts.get("image"), f"docker image inspect {facts.get('image')}"),
        _link("bento", facts.get("bento"), f"BENTOML_HOME={project.bentoml_home} bentoml get {facts.get('bento')}"),
        _link(
            "model version",
            f"models:/{version.model}/{version.version}",
            f"MLFLOW_TRACKING_URI={project.tracking_uri} mlflow artifacts download "
            f"--artifact-uri models:/{version.model}/{version.version} --dst-path .",
        ),
        _link("served files", f"sha256 {identity.get('content_sha256')}", f"ls {version.folder}"),
        _link(
            "run",
            version.run_id,
            f"{project.settings.mlflow_address}/#/experiments/{_experiment(version, project)}/runs/{version.run_id}",
        ),
        _link("git commit", commit, None if commit == "none" else f"git checkout {commit.removesuffix('-dirty')}"),
        _link("environment", f"requirements.lock sha256 {identity.get('lock_sha256')}", "make setup"),
        _link("data", identity.get("data_md5"), _data_command(version, project)),
        _link("data gate", identity.get("validation"), "headrace open docs"),
    ]
    return {
        "model": version.model,
        "version": version.version,
        "aliases": list(version.aliases),
        "released_at": released.at if released else None,
        "verdict": (facts.get("verdict") or {}).get("reasons") or version.tags.get(f"{registry.PREFIX}gate_reasons"),
        "chain": [link for link in links if link["id"]],
    }


def _link(kind: str, identifier: Any, command: str | None) -> dict[str, Any]:
    return {"link": kind, "id": identifier, "get_it": command}


def _experiment(version: registry.Version, project: Project) -> str:
    from headrace.tracking.runs import client, registry_errors

    with registry_errors(project):
        return str(client(project).get_run(version.run_id).info.experiment_id)


def _data_command(version: registry.Version, project: Project) -> str:
    """How to get the data back: it is in `data/` now, or the commit whose `data.dvc` names it."""
    try:
        if data_version(project, version.model).md5 == version.identity.get("data_md5"):
            return "data/ has it now (dvc checkout data.dvc restores it)"
    except HeadraceError:
        pass
    commit = version.identity.get("git_commit", "none").removesuffix("-dirty")
    return f"git checkout {commit} -- data.dvc && dvc checkout data.dvc" if commit != "none" else "dvc checkout data.dvc"
