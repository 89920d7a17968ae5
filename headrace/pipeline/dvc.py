"""DVC as the build system: reproduces one stage of one recipe, and reports whether it had to run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import DiskFull, HeadraceError
from headrace.files import is_disk_full, read_cached_json, write_with
from headrace.installation import path_of
from headrace.permissions import tracked_mode
from headrace.pipeline import custom_code, installed_code
from headrace.pipeline.lock_file import quick_lock_file
from headrace.pipeline.stages import ERROR_FILE, IMPORT
from headrace.processes import PARENT_PID, children_ended
from headrace.project import Project
from headrace.recipe.recipe import Recipe


@dataclass(frozen=True)
class StageResult:
    """The result of reproducing a stage."""

    stage: str
    ran: bool
    """False when its inputs were unchanged."""
    seconds: float


def reproduce(stage: str, recipe: Recipe, project: Project) -> StageResult:
    """Runs `stage` of `recipe` unless its inputs are unchanged; the same as `dvc repro --single-item stage@recipe`.

    Raises:
        HeadraceError: the stage's own error, or Busy when another process keeps DVC's lock.
    """
    started = time.monotonic()
    _register(recipe, project)
    error_file = Path(tempfile.mkdtemp(prefix="headrace-")) / "error.json"
    # `python` in dvc.yaml is this environment's, whether or not it is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        # An interrupted stage is over before the release's lock is free for the next one.
        with _environment({"PATH": path, ERROR_FILE: str(error_file), PARENT_PID: str(os.getpid())}), children_ended():
            ran = _reproduce(f"{stage}@{recipe.name}", project, error_file)
    finally:
        error_file.unlink(missing_ok=True)
        error_file.parent.rmdir()
    return StageResult(stage, ran, time.monotonic() - started)


@contextlib.contextmanager
def _environment(changed: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the programs that DVC starts: they inherit those of this process."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reproduce(target: str, project: Project, error_file: Path) -> bool:
    from dvc.exceptions import DvcException, ReproductionError

    from headrace.data.versions import captured_errors, open_repo, retry_while_locked

    def run() -> bool:
        # DVC finds targets from the working folder
        with open_repo(project) as repo, contextlib.chdir(project.root), captured_errors() as failures, quick_lock_file():
            ran = bool(repo.reproduce([target], single_item=True))
        # DVC only logs that an output is not in its cache; the next run would make it again.
        if any(is_disk_full(failure) for failure in failures):
            raise _cache_full()
        return ran

    try:
        return retry_while_locked(run, project)
    except ReproductionError as error:
        raise _stage_error(error, error_file, target) from error
    except DvcException as error:
        raise HeadraceError(
            f"DVC could not reproduce {target}: {error}", where="dvc.yaml", hint=f"dvc repro {target}"
        ) from error
    except Exception as error:
        if is_disk_full(error):
            raise _cache_full() from None
        raise


def _cache_full() -> DiskFull:
    return DiskFull(
        "no space left for DVC's cache",
        where=".dvc/cache",
        hint="headrace prune --dry-run lists old versions that can go; then the same command",
    )


def _stage_error(error: Exception, error_file: Path, target: str) -> HeadraceError:
    """The error that the stage wrote, or one that says how it ended."""
    left = read_cached_json(error_file)
    if left is not None:
        return HeadraceError.from_dict(left)
    if is_disk_full(error):
        return _cache_full()
    return HeadraceError(
        f"stage {target} failed without an error message: {error.__cause__ or error}",
        hint=f"run it by hand to see what it prints: dvc repro -s {target}",
    )


def _register(recipe: Recipe, project: Project) -> None:
    """Adds the recipe to dvc.yaml, with the code of its task type and model, where it is missing; the rest stays as it is."""
    path = project.root / "dvc.yaml"
    if not project.is_clone:
        installed_code.write_installed_code(project)
    found = _listed(path)
    if recipe.imported is not None or recipe.name in found.imported:
        _register_import(recipe, found, project)
        if recipe.imported is not None:
            return
        found = _listed(path)
    code = custom_code.dependencies(recipe, project, found.recipes.get(recipe.name, {}))
    is_custom = custom_code.are_written(code, recipe)
    if is_custom:
        custom_code.write_custom_code(recipe, project)
    if found.recipes.get(recipe.name) == code and (recipe.name in found.custom) == is_custom:
        return
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    with _edited(project) as content:
        recipes = next(item["recipes"] for item in content["vars"] if "recipes" in item)
        recipes.fa.set_block_style()  # a line each, also where the first one replaces `{}`
        if recipes.get(recipe.name) != code:
            recipes[recipe.name] = CommentedMap(code)
            recipes[recipe.name].fa.set_flow_style()
        listing = next(item for item in content["vars"] if "custom" in item)
        others = [name for name in listing["custom"] if name != recipe.name]
        listing["custom"] = CommentedSeq([*others, recipe.name] if is_custom else others)
        listing["custom"].fa.set_flow_style()


def _register_import(recipe: Recipe, found: _Listed, project: Project) -> None:
    """Moves a recipe to the list of those with an imported model, or from it. A dvc.yaml of an older Headrace has no such list:
    it gets the list and the stage."""
    import yaml
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    is_import = recipe.imported is not None
    is_listed = recipe.name in found.imported
    if is_import == is_listed and not (is_import and recipe.name in found.recipes):
        return
    with _edited(project) as content:
        listing = next((item for item in content["vars"] if "imported" in item), None)
        if listing is None:
            listing = CommentedMap({"imported": []})
            content["vars"].append(listing)
            ours = yaml.safe_load(path_of("dvc.yaml").read_text(encoding="utf-8"))["stages"][IMPORT]
            if not project.is_clone:
                ours["do"]["deps"] = [dep for dep in ours["do"]["deps"] if not installed_code.is_code(dep)]
                ours["do"]["deps"].append(installed_code.file_of(IMPORT).as_posix())
            content["stages"][IMPORT] = ours
        others = [name for name in listing["imported"] if name != recipe.name]
        listing["imported"] = CommentedSeq([*others, recipe.name] if is_import else others)
        listing["imported"].fa.set_flow_style()
        if is_import:
            next(item["recipes"] for item in content["vars"] if "recipes" in item).pop(recipe.name, None)
            custom = next(item for item in content["vars"] if "custom" in item)
            custom["custom"] = CommentedSeq([name for name in custom["custom"] if name != recipe.name])
            custom["custom"].fa.set_flow_style()


@contextlib.contextmanager
def _edited(project: Project) -> Iterator[Any]:
    """The content of dvc.yaml, which is written at the end of the block; comments stay."""
    from filelock import FileLock
    from ruamel.yaml import YAML

    path = project.root / "dvc.yaml"
    yaml = YAML()
    yaml.width = 200
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "dvc-yaml.lock"):  # two new recipes at once: both are added
        content = yaml.load(path)
        yield content
        write_with(path, lambda beside: yaml.dump(content, beside), tracked_mode(path))


@dataclass(frozen=True)
class _Listed:
    """The recipes in dvc.yaml."""

    recipes: dict[str, dict[str, str]]
    """By name, each with the code of its task type and model."""
    custom: list[str]
    """Names of those with custom classes."""
    imported: list[str]
    """Names of the recipes of imported models."""


def _listed(path: Path) -> _Listed:
    """Reads the recipes in dvc.yaml.

    Raises:
        HeadraceError: the file has no such list.
    """
    import yaml

    try:
        vars_ = yaml.safe_load(path.read_text())["vars"]
        recipes: dict[str, dict[str, str]] = dict(next(item["recipes"] for item in vars_ if "recipes" in item))
        custom: list[str] = list(next(item["custom"] for item in vars_ if "custom" in item))
        imported: list[str] = list(next((item["imported"] for item in vars_ if "imported" in item), []))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, StopIteration) as error:
        reason = f"it is not YAML: {error}" if isinstance(error, yaml.YAMLError) else "vars needs the lists recipes and custom"
        raise HeadraceError(
            f"cannot read the recipes in dvc.yaml; {reason}",
            where="dvc.yaml",
            hint="correct the file; git diff dvc.yaml shows what changed since the last commit",
        ) from None
    return _Listed(recipes, custom, imported)
