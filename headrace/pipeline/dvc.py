"""DVC as the build system: reproduces one stage of one recipe, and says whether there was anything to do."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import Busy, DiskFull, HeadraceError
from headrace.files import is_disk_full, read_cached_json, write_with
from headrace.pipeline.stages import ERROR_FILE
from headrace.plugins import custom_sources, is_dotted
from headrace.processes import PARENT_PID
from headrace.project import Project
from headrace.recipe.recipe import Recipe

LOCK_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class StageResult:
    """What became of a stage."""

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
        with _environment({"PATH": path, ERROR_FILE: str(error_file), PARENT_PID: str(os.getpid())}):
            ran = _reproduce(f"{stage}@{recipe.name}", project, error_file)
    finally:
        error_file.unlink(missing_ok=True)
        error_file.parent.rmdir()
    return StageResult(stage, ran, time.monotonic() - started)


@contextlib.contextmanager
def _environment(changed: dict[str, str]) -> Iterator[None]:
    """Variables for the programs that DVC starts; it takes this process's own."""
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
    from dvc.lock import LockError

    from headrace.data.versions import captured_errors, open_repo

    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            # DVC finds targets from the working folder
            with open_repo(project) as repo, contextlib.chdir(project.root), captured_errors() as failures:
                ran = bool(repo.reproduce([target], single_item=True))
            # DVC only logs that an output did not get into its cache; the next run would make it again.
            if any(is_disk_full(failure) for failure in failures):
                raise _cache_full()
            return ran
        except (LockError, ReproductionError) as error:
            cause = error.__cause__ if isinstance(error, ReproductionError) else error
            if isinstance(cause, LockError):
                if time.monotonic() > deadline:
                    raise Busy(
                        "another DVC command holds the project's lock",
                        where=".dvc/tmp",
                        hint="wait until it is done, then run the same command",
                    ) from None
                time.sleep(0.2)
                continue
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
    return DiskFull("no space left for DVC's cache", where=".dvc/cache", hint="dvc gc --workspace, then the same command")


def _stage_error(error: Exception, error_file: Path, target: str) -> HeadraceError:
    """The error that the stage left, or one that says how it died."""
    left = read_cached_json(error_file)
    if left is not None:
        return HeadraceError.from_dict(left)
    if is_disk_full(error):
        return _cache_full()
    return HeadraceError(
        f"the stage {target} ended without a word: {error.__cause__ or error}",
        hint=f"run it by hand to see what it prints: dvc repro -s {target}",
    )


def _register(recipe: Recipe, project: Project) -> None:
    """Puts the recipe and the code of its kind and model into `dvc.yaml`, if it is not there; the rest stays as it is."""
    path = project.root / "dvc.yaml"
    code = code_of(recipe, project)
    if _listed(path).get(recipe.name) == code:
        return
    from filelock import FileLock
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.width = 200
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "dvc-yaml.lock"):  # two new recipes at once: neither loses the other's name
        content = yaml.load(path)
        recipes = next(item["recipes"] for item in content["vars"] if "recipes" in item)
        if recipes.get(recipe.name) != code:
            recipes[recipe.name] = CommentedMap(code)
            recipes[recipe.name].fa.set_flow_style()
            write_with(path, lambda beside: yaml.dump(content, beside))


def code_of(recipe: Recipe, project: Project) -> dict[str, str]:
    """Where the code of the recipe's kind and model lies, relative to the project: what its stages depend on."""
    named = {"kind": (recipe.task, "headrace/task_types"), "model": (recipe.model.name, "headrace/models")}
    found = {part: custom_sources([name] if is_dotted(name) else [], project.root) for part, (name, _) in named.items()}
    return {
        part: found[part][0].relative_to(project.root.resolve()).as_posix() if found[part] else ours
        for part, (_, ours) in named.items()
    }


def _listed(path: Path) -> dict[str, dict[str, str]]:
    """The recipes in `dvc.yaml`, each with the code of its kind and model.

    Raises:
        HeadraceError: the file has no such list.
    """
    import yaml

    try:
        vars_ = yaml.safe_load(path.read_text())["vars"]
        found: dict[str, dict[str, str]] = dict(next(item["recipes"] for item in vars_ if "recipes" in item))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise HeadraceError(
            f"the recipes (vars: - recipes: {...}) cannot be read: {error}",
            where="dvc.yaml",
            hint="restore the file: git checkout dvc.yaml",
        ) from None
    return found
