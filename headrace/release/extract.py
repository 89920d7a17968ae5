"""Writes the code, the recipe and the data that a version was made from into a new folder; the project does not change."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from headrace.data.restore import restore_version
from headrace.errors import UsageError
from headrace.plugins import custom_sources
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.release import journal, lookup
from headrace.serving.packaging import model_folder
from headrace.tracking import provenance, registry, sources
from headrace.tracking.registry import Version
from headrace.tracking.sources import Sources

WORKING_TREE = "the working tree"


def extract(reference: str, folder: Path, project: Project) -> str:
    """Writes what a version was made from into `folder`, which is new or empty, and returns where its code comes from.

    Raises:
        UsageError: the folder has files, or the version does not exist, or its code is gone.
        DataError: its data is gone.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder", where="--extract", hint="name another folder")
    version = lookup.find(reference.partition(":")[0], project).version
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        code = write_sources(version, project, beside)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return code


def write_sources(version: Version, project: Project, folder: Path) -> str:
    """Writes code, recipe, data and first weights of a version into the new `folder`, and returns where the code comes from.

    Raises:
        UsageError, DataError: as `extract`.
    """
    from headrace.pipeline.start import restore_start  # imports torch

    folder.mkdir(parents=True)
    found = registry.source_of(version, project, bento_sources(version, project))
    code = _write_code(version, found, project, folder)
    hashes = found.data["files"] if found else None
    restore_version(version.model, version.identity["data_md5"], project, folder / "data" / version.model, hashes)
    restore_start(version, project, folder)
    return code


def bento_sources(version: Version, project: Project) -> list[Path]:
    """Folders in bentos of the version that hold what it was made from."""
    entries = journal.entries(project, version.model)
    tags = {e.facts["bento"] for e in entries if e.version == version.version and e.facts.get("bento")}
    return [model_folder(project, tag) / sources.FOLDER for tag in sorted(tags)]


def _write_code(version: Version, found: Sources | None, project: Project, folder: Path) -> str:
    identity = version.identity.get("git_commit", "none")
    commit = found.changes.commit if found else identity.removesuffix("-dirty") if not identity.endswith("-dirty") else "none"
    if commit != "none":
        _extract_commit(commit, project, folder)
    elif found is None:
        _copy_working_tree(version, project, folder)
        return WORKING_TREE
    if found is not None:
        found.apply_code(folder)
        recipe = folder / "recipes" / f"{version.model}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        recipe.write_bytes(found.recipe)
    kept = sources.named(found.changes.uncommitted) if found else ""
    if commit == "none":
        return f"the copy kept with {version.name}"
    return f"commit {commit[:12]}" + (f", with {kept} from the copy kept with {version.name}" if kept else "")


def _copy_working_tree(version: Version, project: Project, folder: Path) -> None:
    """For a version of an older Headrace, which kept no copy: the recipe and its classes, if the recipe is still the same."""
    recipe_file = project.recipes / f"{version.model}.yaml"
    if provenance.sha256(recipe_file) != version.identity.get("recipe_sha256"):
        raise UsageError(
            f"{version.name} was trained from a recipe that was never committed and has changed since",
            where=f"recipes/{version.model}.yaml",
            hint=f"undo the change; an older Headrace registered {version.name}, and kept no copy of its recipe",
        )
    recipe = load_recipe(version.model, project)
    (folder / "recipes").mkdir()
    for path in [recipe_file, project.root / "dvc.yaml", *custom_sources(recipe.custom_classes, project.root)]:
        place = folder / path.resolve().relative_to(project.root.resolve())
        shutil.copytree(path, place) if path.is_dir() else shutil.copyfile(path, place)


def _extract_commit(commit: str, project: Project, folder: Path) -> None:
    archive = subprocess.run(
        ["git", "-C", str(project.root), "archive", "--format=tar", commit, "--", "."], capture_output=True, check=False
    )
    if archive.returncode:
        raise UsageError(
            f"git does not have commit {commit}: {archive.stderr.decode(errors='replace').strip()[:200]}",
            where=str(project.root),
            hint="git fetch --all --unshallow, then the same command",
        )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
