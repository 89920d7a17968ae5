"""The import closure of code, read from its syntax trees: nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from tests.paths import ROOT

CLASS_PATH = re.compile(r"([a-z_][\w.]*):[A-Za-z_]\w*")
"""A class named in a string, as tables of task types and models do."""


@cache
def modules() -> dict[str, Path]:
    """All modules of `headrace` and `bentos`, by their dotted name."""
    found = {}
    for package in ("headrace", "bentos"):
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(tree: ast.AST) -> set[str]:
    """Modules of this project that the code imports, at its top or inside functions, and those of classes that it names in
    strings; imports for the type checker alone are left out."""
    found: set[str] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := CLASS_PATH.fullmatch(node.value)):
            found.add(named[1])
        pending.extend(ast.iter_child_nodes(node))
    return found & modules().keys()


@cache
def imports_of(module: str) -> set[str]:
    return imported(ast.parse(modules()[module].read_text(encoding="utf-8")))


def closure(start: Iterable[str], without: Collection[str] = ()) -> set[str]:
    """All modules that are reached from `start`, with their packages. Modules in `without`, and inside of packages in it, are
    neither included nor followed."""
    found: set[str] = set()
    pending = list(start)
    while pending:
        module = pending.pop()
        parents = [module.rpartition(".")[0]] if "." in module else []
        if module in found or any(module == name or module.startswith(f"{name}.") for name in without):
            continue
        found.add(module)
        pending.extend([*imports_of(module), *parents])
    return found
