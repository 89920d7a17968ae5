"""Traces a version, or the id of a response, back to the code, data and run that it was made of."""

from __future__ import annotations

from typing import Any

from headrace import console
from headrace.project import Project
from headrace.release import journal, lookup, reviews
from headrace.tracking import provenance, registry, runs


def trace_version(reference: str, project: Project) -> dict[str, Any]:
    """The lineage of one version: a chain of links, each with its `id` and the command that gets it back. The commands write to
    new folders only.

    Args:
        reference: `digits@3`, `digits@champion`, `digits`, or the `id` of a response (`digits@3:7f3c…`).

    Raises:
        UsageError: the model or version does not exist.
    """
    found = lookup.find(reference.partition(":")[0], project)
    version = found.version
    entries = journal.entries(project, version.model)
    released = next((e for e in reversed(entries) if e.event == "released" and e.version == version.version), None)
    facts = released.facts if released else {}
    identity = version.identity
    content, data = identity.get("content_sha256"), identity.get("data_md5")
    review = reviews.standing(version.version, content, data, entries, project).review
    commit = identity.get("git_commit", "none")
    everything = f"{console.command_name()} trace {version.name} --extract {_new_folder(version)}"
    links = [
        _link("image", facts.get("image_digest") or facts.get("image"), f"docker image inspect {facts.get('image')}"),
        _link("bento", facts.get("bento"), f"BENTOML_HOME={project.bentoml_home} bentoml get {facts.get('bento')}"),
        _link(
            "model version",
            f"models:/{version.model}/{version.version}",
            None if found.missing else _download(version, project),
        ),
        _link("served files", f"sha256 {identity.get('content_sha256')}", f"ls {version.folder}"),
        _link("compression", identity.get("compression"), None),
        _link("run", version.run_id, _run_page(version, project)),
        _link("git commit", commit, everything),
        _link("not committed", identity.get("uncommitted"), everything),
        _link("recipe", f"sha256 {identity.get('recipe_sha256')}", everything),
        _link("environment", _environment_id(version), _environment(version, project)),
        _link("imported from", identity.get("imported_from"), everything),
        _link("imported model", _sha256(identity.get("imported_sha256")), everything),
        _link("adapted from", identity.get("base_from"), everything),
        _link("adapted model", _sha256(identity.get("base_sha256")), everything),
        _link("licence", identity.get("imported_licence", identity.get("base_licence")), None),
        _link("data", identity.get("data_md5"), everything),
        _link(review.outcome if review else "review", review.sentence if review else None, None),
        _link("data gate", None if identity.get("imported_from") else identity.get("validation"), "headrace open docs"),
    ]
    return {
        "model": version.model,
        "version": version.version,
        "aliases": list(version.aliases),
        "released_at": released.at if released else None,
        "verdict": (facts.get("verdict") or {}).get("reasons") or version.tags.get(f"{registry.PREFIX}gate_reasons"),
        "missing": list(found.missing),
        "chain": [link for link in links if link["id"]],
    }


def _sha256(value: str | None) -> str | None:
    return f"sha256 {value}" if value else None


def _link(kind: str, identifier: Any, command: str | None) -> dict[str, Any]:
    return {"link": kind, "id": identifier, "get_it": command}


def _download(version: registry.Version, project: Project) -> str:
    return (
        f"MLFLOW_TRACKING_URI={project.tracking_uri} mlflow artifacts download "
        f"--artifact-uri models:/{version.model}/{version.version} --dst-path {_new_folder(version)}-model"
    )


def _run_page(version: registry.Version, project: Project) -> str | None:
    experiment = runs.experiment_of(version.run_id, project)
    if experiment is None:
        return None
    return f"{project.settings.mlflow_address}/#/experiments/{experiment}/runs/{version.run_id}"


def _new_folder(version: registry.Version) -> str:
    """Where the printed commands write to: git, DVC and Headrace do not look there."""
    return f".headrace/extracted/{version.model}-{version.version}"


def _environment_id(version: registry.Version) -> str:
    """With the version of Headrace, where a project has it from its wheel."""
    headrace, lock = version.identity.get("headrace"), version.identity.get("lock_sha256")
    return f"Headrace {headrace}, with requirements.lock sha256 {lock}" if headrace else f"requirements.lock sha256 {lock}"


def _environment(version: registry.Version, project: Project) -> str:
    if version.identity.get("lock_sha256") == provenance.lock_hash(project):
        return (
            "requirements.lock is the same today" if project.is_clone else "Headrace and requirements.lock are the same today"
        )
    if not project.is_clone:
        return f"pip install headrace=={version.identity.get('headrace', '?')}"
    return f"make setup, in {_new_folder(version)}"
