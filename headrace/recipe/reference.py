"""Writes the field reference of recipes and settings from their typed trees: `python -m headrace.recipe.reference`."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from headrace.recipe.models import MODELS, ModelConfig
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import TASK_TYPES
from headrace.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 120
NOTICE = "<!-- Generated from the docstrings by `make reference`. Edit those, not this page. -->"


@dataclass(frozen=True)
class Documented:
    """One field that a user can set."""

    name: str
    """Dotted, as `data.split.seed`."""
    choices: tuple[str, ...]
    """What the field accepts where it is one of a few words."""
    default: str
    """As YAML; empty for a required field, `none` for one that may be absent."""
    text: str
    """The docstring below the field."""


def recipe_page() -> str:
    """Returns the reference of all recipe fields, as Markdown."""
    sections: dict[str, list[Documented]] = {}
    for field in documented_fields(Recipe):
        sections.setdefault(field.name.split(".")[0] if "." in field.name else "", []).append(field)
    parts = [
        "# Recipe reference",
        NOTICE,
        _wrapped(
            "Every field of `recipes/<name>.yaml`. Unknown fields are errors. Examples are in [Recipes](../recipes.md) and "
            "[Training](../training.md)."
        ),
        _entries(sections.pop("")),
    ]
    for name, fields in sections.items():
        parts += [f"## `{name}`", _entries(fields)]
        if name == "data":
            parts += ["## `model`", *_models()]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Returns the reference of all settings, as Markdown."""
    about = _wrapped(
        "Each setting goes into `headrace.toml` (`gateway_port = 8081`) or into the environment "
        "(`HEADRACE_GATEWAY_PORT=8081`), which takes precedence."
    )
    return "\n\n".join(["# Settings reference", NOTICE, about, _entries(list(documented_fields(Settings)))]) + "\n"


def documented_fields(section: type[BaseModel], prefix: str = "") -> Iterator[Documented]:
    """Yields every leaf of `section`, with sections inside it walked through."""
    texts = _docstrings(section)
    for name, field in section.model_fields.items():
        inner = next((o for o in _options(field.annotation) if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if inner is ModelConfig and not prefix:
            continue  # the section `model` has a part of its own
        if inner is not None and inner is not ModelConfig:
            by_name = ".COLUMN" if get_origin(field.annotation) is dict else ""
            if by_name or any(get_origin(option) is tuple for option in get_args(field.annotation)):  # it has a short form
                default = field.get_default(call_default_factory=True)
                yield Documented(f"{prefix}{name}", (), _shown(default), texts.get(name, ""))
            yield from documented_fields(inner, f"{prefix}{name}{by_name}.")
            continue
        default = field.get_default(call_default_factory=True)
        yield Documented(f"{prefix}{name}", _choices(field.annotation), _shown(default), texts.get(name, ""))


def _models() -> Iterator[str]:
    """One table for each model, in the order of the registry."""
    for name, config in MODELS.items():
        tasks = [f"`{task}`" for task, entry in TASK_TYPES.items() if name in entry.models]
        yield f"### `{name}`"
        yield _wrapped(f"{_one_line(inspect.getdoc(config) or '')} For {', '.join(tasks)}.")
        yield _entries([field for field in documented_fields(config, "model.") if field.name != "model.name"])


def _entries(fields: list[Documented]) -> str:
    """One list item for each field, wrapped to `WIDTH` columns."""
    lines = []
    for field in fields:
        choices = f"One of {', '.join(f'`{choice}`' for choice in field.choices)}. " if field.choices else ""
        default = "required" if field.default == "required" else f"default {field.default}"
        lines.append(_wrapped(f"- **`{field.name}`** ({default}): {choices}{field.text}".rstrip(": "), indent="  "))
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _options(annotation: Any) -> list[Any]:
    """The annotation and everything that it is built from."""
    return [annotation, *(inner for option in get_args(annotation) for inner in _options(option))]


def _choices(annotation: Any) -> tuple[str, ...]:
    literals = [option for option in _options(annotation) if get_origin(option) is Literal]
    return tuple(str(choice) for literal in literals for choice in get_args(literal))


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int) and default >= 1 << 20:
        return f"{default >> 20} MiB"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(str(value) for value in default)}]`"
    return f"`{default}`"


@cache
def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The string below each field of the class and of its bases, on one line."""
    found: dict[str, str] = {}
    for one in reversed(
        [base for base in section.__mro__ if issubclass(base, BaseModel) and base.__module__.startswith("headrace")]
    ):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for node, after in zip(tree.body, tree.body[1:], strict=False):
            is_text = (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            )
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                found[node.target.id] = _one_line(str(after.value.value))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/recipe.md": recipe_page,
    "docs/reference/settings.md": settings_page,
}


def main() -> None:
    """Writes both pages."""
    for page, made in PAGES.items():
        (ROOT / page).write_text(made(), encoding="utf-8")


if __name__ == "__main__":
    main()
