"""Writes the winner of a search into a recipe, and leaves its comments and its form as they are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import UsageError
from headrace.files import write_text
from headrace.project import Project
from headrace.recipe.recipe import load_recipe, parse_recipe, recipe_names


def apply_values(recipe: str, values: Mapping[str, Any], project: Project, new_name: str | None = None) -> Path:
    """Writes values of fields into the recipe, or into a copy with a new name; returns the path of the file.

    Raises:
        UsageError: the new name is taken.
        RecipeError: the recipe cannot be read, or breaks a rule with these values; then nothing is written.
    """
    load_recipe(recipe, project)
    path = project.recipes / f"{recipe}.yaml"
    if new_name is not None:
        if new_name in recipe_names(project):
            raise UsageError(f"the recipe {new_name!r} exists", where="--write", hint="choose another name")
        values = {"name": new_name, **values}
    text = with_fields(path.read_text(encoding="utf-8"), values)
    target = project.recipes / f"{new_name or recipe}.yaml"
    parse_recipe(text, str(target.relative_to(project.root)))
    if text != (target.read_text(encoding="utf-8") if target.exists() else None):
        write_text(target, text)
    return target


def with_fields(text: str, values: Mapping[str, Any]) -> str:
    """Returns a recipe with other values of some fields; the rest stays as it is written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    for name, value in values.items():
        *outer, last = name.split(".")
        section = content
        for part in outer:
            if section.get(part) is None:
                section[part] = CommentedMap()
                section[part].fa.set_flow_style()
            section = section[part]
        if section.get(last) != value or last not in section:
            section[last] = _flow(value)
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    return buffer.getvalue()


def _flow(value: Any) -> Any:
    """Lists and sections on one line."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    found: Any
    if isinstance(value, dict):
        found = CommentedMap({name: _flow(one) for name, one in value.items()})
    elif isinstance(value, list):
        found = CommentedSeq([_flow(one) for one in value])
    else:
        return value
    found.fa.set_flow_style()
    return found
