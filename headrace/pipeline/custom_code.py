"""What a recipe's stages depend on beside what dvc.yaml names, as files for DVC: the modules of the project that custom classes
consist of, the field `train.window`, which is in another section than the stage `prepare` reads, and the weights that training
starts with.

dvc.yaml cannot list them: what a custom class imports changes with every edit, and the version in production with every
release. The stage `custom_code` runs at each `dvc repro` and writes them; other stages depend on these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace.files import read_cached_json, write_json
from headrace.pipeline import installed_code
from headrace.plugins import code_files, custom_sources, is_dotted
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking.provenance import sha256

OURS = {"task_type": "headrace/task_types", "model": "headrace/models"}
"""Where the code of task types and models is that come with Headrace."""


def are_written(paths: Mapping[str, str], recipe: Recipe) -> bool:
    """Whether one of the paths, which `dependencies` returned, is a file written here."""
    return any(path == _file(recipe.name, part).as_posix() for part, path in paths.items())


def dependencies(recipe: Recipe, project: Project, listed: Mapping[str, str] | None = None) -> dict[str, str]:
    """For the recipe's task type and model, the path that stages depend on: a folder of Headrace, or a file written here or,
    where Headrace is installed outside of the project, by `installed_code`.

    Args:
        listed: the paths that dvc.yaml has for the recipe so far.
    """
    ours = OURS if project.is_clone else {part: installed_code.file_of(part).as_posix() for part in OURS}
    return {
        part: _file(recipe.name, part).as_posix() if _is_written(recipe, part, listed or {}) else ours[part] for part in OURS
    }


def write_custom_code(recipe: Recipe, project: Project) -> None:
    """Writes the sha256 of each module of a custom task type or model, `train.window`, and the weights that training starts
    with, where they changed.

    Raises:
        RegistryError: training starts with the champion, and MLflow's database cannot be read.
    """
    for part, name in _names(recipe).items():
        sources = custom_sources([name], project.root) if is_dotted(name) else []
        files = [file for source in sources for file in code_files(source)]
        found = {file.relative_to(project.root.resolve()).as_posix(): sha256(file) for file in files}
        found |= _settings(recipe, part, project)
        path = project.root / _file(recipe.name, part)
        if read_cached_json(path) != found:
            write_json(path, found)


def _settings(recipe: Recipe, part: str, project: Project) -> dict[str, str]:
    """What the stages that prepare rows (part `task_type`) or train (part `model`) depend on beside code."""
    if part == "task_type":
        return {} if recipe.train.window is None else {"train.window": str(recipe.train.window)}
    if recipe.train.start == "random":
        return {}
    from headrace.pipeline.start import write_start

    return {"train.start": write_start(recipe, project)}


def _is_written(recipe: Recipe, part: str, listed: Mapping[str, str]) -> bool:
    if is_dotted(_names(recipe)[part]):
        return True
    if part == "model":
        return recipe.train.start != "random"
    # DVC does not see that a dependency is gone: a recipe that had a window keeps the file, which then says that it has none.
    return recipe.train.window is not None or listed.get(part) == _file(recipe.name, part).as_posix()


def _names(recipe: Recipe) -> dict[str, str]:
    return {"task_type": recipe.task, "model": recipe.model.name}


def _file(recipe: str, part: str) -> Path:
    """Relative to the project."""
    return Path("artifacts") / recipe / "custom_code" / f"{part}.json"
