"""Classes of a user's own, named in a recipe by a dotted path `module:Class`: found, imported, and traced to their files.

The project's root counts as a place to import from, after all that is installed. A recipe runs the code it names: it is to
be trusted as the repository is that holds it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace.errors import near_miss


def is_dotted(name: str) -> bool:
    """Whether `name` is the path of a class rather than an entry of a registry."""
    return ":" in name


def importable(root: Path) -> None:
    """Lets modules of the project be imported, whichever way this process was started."""
    if str(root) not in sys.path:
        sys.path.append(str(root))


def load_class(path: str) -> type[Any]:
    """The class at `module:Class`.

    Raises:
        ValueError: there is no such module or class, or its import fails; with the near miss.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(f"{path!r} cannot be imported: {error}") from error
        raise ValueError(f"{path!r}: no module {error.name!r}; {near_miss(error.name, _own_modules())}") from None
    except Exception as error:  # whatever a module of the user's does at its import
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f"{path!r}: {module_name} has no class {name!r}; {near_miss(name, classes)}")
    return found


def _own_modules() -> list[str]:
    """Modules of the projects that `importable` made known."""
    roots = [Path(entry) for entry in sys.path if (Path(entry) / "recipes").is_dir()]
    found = [path for root in roots for path in root.glob("*") if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return [path.stem for path in found]


def source_of(path: str, root: Path) -> Path | None:
    """The file, or the folder of the whole package, that holds `module:Class`; None when it lies outside of `root`."""
    spec = find_spec(path.partition(":")[0].partition(".")[0])
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    found = origin.parent if origin.name == "__init__.py" else origin
    return found if found.is_relative_to(root.resolve()) else None


def custom_sources(paths: Iterable[str], root: Path) -> list[Path]:
    """Where the classes at `paths` lie inside `root`, each place once."""
    found = [source_of(path, root) for path in paths]
    return list(dict.fromkeys(source for source in found if source is not None))


def code_files(source: Path) -> list[Path]:
    """Python files of `source_of`, sorted."""
    return [source] if source.is_file() else sorted(source.rglob("*.py"))
