"""What a project consists of when it is new: files by their path, as this version of Headrace writes them."""

from __future__ import annotations

import re
from pathlib import Path

from headrace import __version__
from headrace.installation import path_of
from headrace.project_template.pipeline_file import pipeline_file

TEMPLATES = {
    ".gitignore": "gitignore",
    ".dvcignore": "dvcignore",
    "Makefile": "Makefile.template",
    "README.md": "README.template",
    "prefect.yaml": "prefect.template",
    "pyproject.toml": "pyproject.template",
    "recipes/.gitkeep": "",
    "tests/conftest.py": "conftest.template",
    "tests/test_project.py": "test_project.template",
}
"""Files with their template; none means an empty file."""
COPIED = ("flows", "tasks")
"""Folders of the repository that each project has as its own."""


def template_files(name: str) -> dict[str, str]:
    """Returns the texts of a new project called `name`, by their path in it."""
    folder = Path(__file__).parent / "templates"
    found = {path: (folder / template).read_text(encoding="utf-8") if template else "" for path, template in TEMPLATES.items()}
    found["dvc.yaml"] = pipeline_file()
    for top in COPIED:
        found |= {f"{top}/{file.name}": file.read_text(encoding="utf-8") for file in sorted(path_of(top).glob("*.py"))}
    example = path_of("docs/examples/gated.py").read_text(encoding="utf-8")
    known = {"@MODEL@": example, "@NAME@": package_name(name), "@VERSION@": __version__}
    return {path: _filled(text, known) for path, text in sorted(found.items())}


def package_name(name: str) -> str:
    """Returns `name` as pyproject.toml allows it: letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "project"


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(key, value)
    return text
