"""Which modules of the project a recipe's custom classes consist of, as files for DVC to depend on.

dvc.yaml cannot list them: what a custom class imports changes with every edit. The stage `custom_code` runs at each
`dvc repro` and writes their names and hashes; other stages depend on these files.
"""

from __future__ import annotations

from pathlib import Path

from headrace.files import read_cached_json, write_json
from headrace.pipeline import installed_code
from headrace.plugins import code_files, custom_sources, is_dotted
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking.provenance import sha256

OURS = {"task_type": "headrace/task_types", "model": "headrace/models"}
"""Where the code of task types and models is that come with Headrace."""


def dependencies(recipe: Recipe, project: Project) -> dict[str, str]:
    """For the recipe's task type and model, the path that stages depend on: a folder of Headrace, or a file written here or,
    where Headrace is installed outside of the project, by `installed_code`."""
    ours = OURS if project.is_clone else {part: installed_code.file_of(part).as_posix() for part in OURS}
    return {
        part: _file(recipe.name, part).as_posix() if is_dotted(name) else ours[part] for part, name in _names(recipe).items()
    }


def write_custom_code(recipe: Recipe, project: Project) -> None:
    """Writes the sha256 of each module of a custom task type or model, where they changed."""
    for part, name in _names(recipe).items():
        sources = custom_sources([name], project.root) if is_dotted(name) else []
        files = [file for source in sources for file in code_files(source)]
        hashes = {file.relative_to(project.root.resolve()).as_posix(): sha256(file) for file in files}
        path = project.root / _file(recipe.name, part)
        if read_cached_json(path) != hashes:
            write_json(path, hashes)


def _names(recipe: Recipe) -> dict[str, str]:
    return {"task_type": recipe.task, "model": recipe.model.name}


def _file(recipe: str, part: str) -> Path:
    """Relative to the project."""
    return Path("artifacts") / recipe / "custom_code" / f"{part}.json"
