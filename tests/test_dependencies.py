"""pyproject.toml declares every package that is imported, and gives a reason for each upper bound."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.paths import ROOT

OWN = ("headrace", "flows", "tasks", "bentos", "benchmarks")
OTHER_SYSTEMS = ROOT / "benchmarks" / "serving_peers"
"""Programs of other systems, which are installed for a benchmark only."""
INSTALLED_BY_BENCHMARKS = {"pytorch_lightning"}
INTERNAL_API = {"torch", "uvicorn", "dvc", "dvc-data", "mlflow", "supervisor"}
"""Packages whose internal API is used, so that the next version can break it."""
PYPROJECT = ROOT / "pyproject.toml"


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def extras() -> dict[str, list[str]]:
    """The optional requirements that users install, by the extra's name."""
    found: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {name: lines for name, lines in found.items() if name != "dev"}


def requirements() -> dict[str, str]:
    """Version specifiers by normalized name, of the required packages and of all extras that users install."""
    found = {}
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for line in [*project["dependencies"], *itertools.chain(*extras().values())]:
        match = re.match(r"[A-Za-z0-9_.-]+", line)
        assert match is not None
        found[normalized(match[0])] = line[match.end() :]
    return found


def of_extras(names: Iterable[str]) -> set[str]:
    """Normalized names of the packages of these extras."""
    return {normalized(re.split(r"[^\w.-]", line)[0]) for name in names for line in extras()[name]}


@cache
def owners() -> dict[str, set[str]]:
    """Normalized names of the distributions that contain a module, by its dotted name."""
    found: dict[str, set[str]] = {}
    for distribution in distributions():
        name = normalized(distribution.name)
        # The text itself: `distribution.files` makes a path object of each of some 100,000 lines.
        for line in (distribution.read_text("RECORD") or "").splitlines():
            path = line.partition(",")[0]
            if path.endswith((".py", ".so", ".pyi")):
                folder, _, file = path.rpartition("/")
                parts = [*folder.split("/"), file.partition(".")[0]] if folder else [file.partition(".")[0]]
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found.setdefault(module, set()).add(name)
    return found


def imported_modules(file: Path) -> set[str]:
    """Dotted names of imported modules; for `from a import b`, `a.b` if that is a module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & owners().keys()
            found |= submodules or {node.module}
    return found


def is_third_party(module: str) -> bool:
    return module.partition(".")[0] not in {*sys.stdlib_module_names, *OWN, "tests", *INSTALLED_BY_BENCHMARKS}


@pytest.mark.parametrize("package", OWN)
def test_every_imported_package_is_declared(package: str) -> None:
    declared, missing = requirements().keys(), set()
    for file in (ROOT / package).rglob("*.py"):
        if OTHER_SYSTEMS in file.parents:
            continue
        for module in filter(is_third_party, imported_modules(file)):
            packages = owners().get(module, set())
            assert packages, f"{file.relative_to(ROOT)} imports {module}, which is not installed"
            if not packages & declared:
                missing.add(f"{file.relative_to(ROOT)} imports {module} of {', '.join(sorted(packages))}")
    assert missing == set()


def test_every_upper_bound_has_a_reason() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    bounded = [line for line in text.splitlines() if re.match(r'\s*"[\w.-]+(\[\w+\])?[^"]*<', line)]
    assert len(bounded) > 8
    assert [line for line in bounded if not re.search(r"#\s+\S.{15,}", line)] == []


def test_packages_whose_internal_api_is_used_have_an_upper_bound() -> None:
    assert {name for name in INTERNAL_API if "<" not in requirements()[name]} == set()


def test_the_lock_pins_every_declared_package() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = {normalized(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    listed = re.fullmatch(r"headrace\[([\w,]+)\]", project["optional-dependencies"]["dev"][0])
    assert listed is not None
    tested = listed[1].split(",")
    assert requirements().keys() - of_extras(extras().keys() - tested) - pinned == set()


def test_the_extra_named_in_a_hint_has_the_package_that_is_missing() -> None:
    """Packages of extras are imported by a name in a table, which no import statement shows."""
    from headrace.data.sources.databases import DRIVERS
    from headrace.data.sources.remote import STORES
    from headrace.services.backup.places import PACKAGES

    for module, extra in [*DRIVERS.values(), *STORES.values()]:
        assert normalized(module) in of_extras([extra])
    for name in PACKAGES.values():
        assert name.removeprefix("headrace[").removesuffix("]") in extras()


def test_no_test_module_imports_another() -> None:
    """Helpers that several test modules need are in support files."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in re.findall(
            r"^\s*(?:from|import) (tests(?:\.\w+)*\.test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found += [f"{own} imports {name}"] if name != own else []
    assert not found
