"""Custom classes, named in a recipe by a path `module:Class`: imports them and finds the files of their code.

Modules are looked for in the project's root too, after all installed packages. A recipe runs the code that it names: trust it
as you trust the repository that it comes from.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.errors import near_miss
from headrace.installation import add_bentos_to_import_path

OWN_PACKAGES = ("headrace", "bentos", "flows", "tasks")
CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_dotted(name: str) -> bool:
    """Whether `name` is the path of a class, not the name of a built-in one."""
    return ":" in name


def add_to_import_path(root: Path) -> None:
    """Makes the modules of a project importable in this process, and `bentos`, which they may import."""
    add_bentos_to_import_path()
    if str(root) not in sys.path:
        sys.path.append(str(root))


def load_class(path: str) -> type[Any]:
    """Imports the class at `module:Class`.

    Raises:
        ValueError: the module or class does not exist, with the near miss; or its import fails.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(f"{path!r} cannot be imported: {error}") from error
        raise ValueError(f"{path!r}: no module {error.name!r}; {near_miss(error.name, _project_modules())}") from None
    except Exception as error:  # a module of the user can raise anything
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f"{path!r}: {module_name} has no class {name!r}; {near_miss(name, classes)}")
    return found


def _project_modules() -> list[str]:
    """Names of the modules in the roots of projects that were added to the import path."""
    roots = [Path(entry) for entry in sys.path if (Path(entry) / "recipes").is_dir()]
    found = [path for root in roots for path in root.glob("*") if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return [path.stem for path in found]


def custom_sources(paths: Iterable[str], root: Path) -> list[Path]:
    """The project's code behind the classes at `paths`: their modules, and all modules of the project that those import, at
    the top or inside functions, or name as a class in a string. Files, or folders of whole packages, each once."""
    root = root.resolve()
    found: list[Path] = []
    modules = [path.partition(":")[0] for path in paths]
    for module in modules:
        source = _source_of(module, root)
        if source is None or any(source == known or known in source.parents for known in found):
            continue
        found.append(source)
        modules.extend(name for file in code_files(source) for name in _imported_by(file, root))
    return found


def _source_of(module: str, root: Path) -> Path | None:
    """The file of a module of the project, or the folder of the package that it belongs to; None for all other modules."""
    top, *parts = module.split(".")
    place = root / top
    exists = place.is_dir() or place.with_suffix(".py").is_file()
    if top in OWN_PACKAGES or not exists or _is_installed(top, root):
        return None
    while not (place / "__init__.py").is_file():
        if place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
        if not parts or not place.is_dir():  # a folder without __init__.py holds modules of its own
            return None
        place /= parts.pop(0)
    return place


def _is_installed(top: str, root: Path) -> bool:
    """Whether `import top` finds a module outside of the project."""
    spec = find_spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or ())
    ours = {root / f"{top}.py", root / top, root / top / "__init__.py"}
    return not any(Path(place).resolve() in ours for place in places)


def _imported_by(file: Path, root: Path) -> list[str]:
    """Modules that a file imports, and those of classes that it names in strings."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # reported when it is imported
        return []
    package = file.relative_to(root).parent.parts
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.extend([base, *(f"{base}.{alias.name}" for alias in node.names)] if base else [a.name for a in node.names])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and CLASS_PATH.fullmatch(node.value):
            found.append(node.value.partition(":")[0])
    return found


def code_files(source: Path) -> list[Path]:
    """Python files of one of `custom_sources`, sorted."""
    return [source] if source.is_file() else sorted(source.rglob("*.py"))
