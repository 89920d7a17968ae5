"""The recipe as one typed tree: what to build. Each field has a description, and rules across fields name the fields.

Imports pydantic and a YAML parser only, since every command reads a recipe first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace import renamed
from headrace.errors import RecipeError, near_miss
from headrace.plugins import add_to_import_path, is_dotted
from headrace.project import Project
from headrace.recipe.boosting import check_boosting
from headrace.recipe.columns import RESERVED_FIELDS
from headrace.recipe.compress import CompressConfig, check_compress
from headrace.recipe.data import DataConfig
from headrace.recipe.gate import GateConfig
from headrace.recipe.models import MODELS, ImportedConfig, ModelConfig, PretrainedConfig, config_of
from headrace.recipe.monitor import MonitorConfig, check_personal
from headrace.recipe.refresh import RefreshConfig, check_refresh
from headrace.recipe.search import SearchConfig, check_search
from headrace.recipe.section import Section
from headrace.recipe.serve import ServeConfig, check_runtime
from headrace.recipe.synonyms import near_field
from headrace.recipe.task_types import TaskTypeEntry, has_interval, task_type_entry
from headrace.recipe.task_variants import check_targets, check_text, variant_of
from headrace.recipe.training import TrainConfig

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
IMPORTED_TASKS = ("classification", "regression", "multilabel-classification", "text-generation")
"""Tasks of models that others trained."""


class Expectation(BaseModel):
    """A Great Expectations expectation under its original name; its arguments are further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    """Name of the expectation."""

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        if value not in expectation_types():
            raise ValueError(f"unknown expectation {value!r}; {near_miss(value, expectation_types())}")
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Recipe(Section):
    """One model: what to build, from data to endpoint."""

    name: str = Field(pattern=NAME_PATTERN)
    """Lower-case letters, digits and dashes; the name of the file without `.yaml`."""
    task: str
    """A key of `headrace.recipe.task_types.TASK_TYPES`, or the path `module:Class` of a custom task type."""
    data: DataConfig
    expect: list[Expectation]
    """The expectations that every batch has to meet."""
    model: ModelConfig
    train: TrainConfig
    compress: CompressConfig | None = None
    gate: GateConfig = GateConfig()
    serve: ServeConfig
    monitor: MonitorConfig = MonitorConfig()
    refresh: RefreshConfig | None = None
    search: SearchConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete_import(cls, fields: Any) -> Any:
        """Lets a recipe of an imported model leave out what is about rows and training."""
        model = fields.get("model") if isinstance(fields, dict) else None
        if not isinstance(model, dict) or not is_import(model):
            return fields
        targets = model.get("targets")
        target = targets[0] if isinstance(targets, list) and targets else ImportedConfig.model_fields["targets"].default[0]
        without_rows = {"source": str(model.get("source") or "-"), "target": str(target)}
        return {"data": without_rows, "expect": [], "train": {}, "serve": {}, **fields, "model": {"name": "imported", **model}}

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        task_type_entry(task)
        return task

    @field_validator("model", mode="before")
    @classmethod
    def _parse_model(cls, value: Any) -> ModelConfig:
        if isinstance(value, ModelConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"`name` is missing; {near_miss('', MODELS)}")
        return config_of(str(value["name"])).model_validate(value)

    @model_validator(mode="after")
    def _check_sections_match_task(self) -> Recipe:
        check_runtime(self.serve, self.task, self.imported is not None)
        if self.imported is not None:
            return self._check_import(self.imported)
        task_type = self.task_type
        task_type.check_data(self.data)
        task_type.check_model(self.model, self.task)
        check_boosting(self.model, self.train, self.data, task_type.is_classification)
        check_targets(task_type, self.data, self.task)
        check_text(task_type, self.data, self.model, self.task)
        task_type.check_training(self.train, self.task)
        task_type.check_gate(self.gate, self.model, self.task)
        check_compress(self.compress, self.model, self.task, task_type)
        check_personal(self.monitor, self.data)
        check_refresh(self.refresh, self.data)
        return self

    def _check_import(self, model: ImportedConfig) -> Recipe:
        if self.task not in IMPORTED_TASKS:
            raise ValueError(f"task: an imported model can have the tasks {', '.join(IMPORTED_TASKS)}, not {self.task!r}")
        if self.data.source != model.source:
            raise ValueError("data: the rows of an imported model cannot be tested yet; remove the section")
        if self.gate.metrics:
            name = "require" if self.gate.require else "beat_champion"
            raise ValueError(f"gate.{name}: an imported model has no test rows to measure it on; remove it")
        if self.compress is not None:
            raise ValueError("compress: an imported model has no test rows to measure a loss on; remove the section")
        if self.train != TrainConfig():
            raise ValueError("train: an imported model is not trained; remove the section")
        again = {"refresh": self.refresh, "monitor.retrain": self.monitor.retrain, "search": self.search}
        if trained := [name for name, section in again.items() if section is not None]:
            raise ValueError(f"{trained[0]}: an imported model is not trained again; remove it")
        if self.task == "regression" and (model.labels or model.activation):
            raise ValueError(f"model.{'labels' if model.labels else 'activation'}: applies to classification only; remove it")
        return self

    @model_validator(mode="after")
    def _check_colour(self) -> Recipe:
        augment = self.train.augment
        is_grey = self.data.pixels is not None or (self.data.pictures is not None and self.data.pictures.channels == 1)
        for name in ("saturation", "hue"):
            if augment is not None and is_grey and getattr(augment, name):
                raise ValueError(f"train.augment.{name}: grey images have no colour; remove it, or set data.image.channels: 3")
        return self

    @model_validator(mode="after")
    def _check_window(self) -> Recipe:
        if self.train.window is None:
            return self
        if self.data.split.per_class is not None:
            raise ValueError("train.window: data.split.per_class chooses the training rows; remove one of them")
        if self.window_column is None:
            raise ValueError(
                "train.window: the recipe names no column of time; write `time: {column: COLUMN}` under data.split, "
                "or remove the window"
            )
        return self

    @model_validator(mode="after")
    def _check_target_name(self) -> Recipe:
        if has_interval(self.model) and self.data.target in ("interval", "quantiles"):
            name = self.data.target
            raise ValueError(f"data.target: predictions hold their {name} under this name; rename the column (data.rename)")
        return self

    @model_validator(mode="after")
    def _check_feature_names(self) -> Recipe:
        entry = self.task_type
        if self.data.columns is not None and entry.is_table:
            for name in self.data.features(self.data.columns):
                if name in RESERVED_FIELDS:
                    raise ValueError(
                        f"data.columns: no feature can be named {name!r}: {RESERVED_FIELDS[name]}; rename it (data.rename)"
                    )
        return self

    @model_validator(mode="after")
    def _check_search(self) -> Recipe:
        check_search(self)
        return self

    @property
    def imported(self) -> ImportedConfig | None:
        """The settings of a model that others trained; None for one that is trained here."""
        return self.model if isinstance(self.model, ImportedConfig) else None

    @property
    def base(self) -> PretrainedConfig | None:
        """The settings of a pretrained encoder that is adapted; None for a model that is trained from random weights."""
        return self.model if isinstance(self.model, PretrainedConfig) else None

    @property
    def window_column(self) -> str | None:
        """The column by which `train.window` is measured, if the recipe names one."""
        time, incremental = self.data.split.time, self.data.incremental
        return time.column if time is not None else incremental.column if incremental is not None else None

    @property
    def task_type(self) -> TaskTypeEntry:
        return variant_of(task_type_entry(self.task), self.data)

    @property
    def custom_classes(self) -> list[str]:
        """Paths `module:Class` of the custom task type and model, if there are any."""
        return [name for name in (self.task, self.model.name) if is_dotted(name)]


def is_import(model: Any) -> bool:
    """Whether the section `model` of a recipe, as YAML has it, names a model that others trained."""
    return isinstance(model, dict) and (model.get("name") == "imported" or ("name" not in model and "source" in model))


def recipe_names(project: Project) -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in project.recipes.glob("*.yaml"))


def load_recipe(name: str, project: Project, *, translate_renamed: bool = False) -> Recipe:
    """Reads `recipes/<name>.yaml`.

    Args:
        translate_renamed: as for `parse_recipe`.

    Raises:
        RecipeError: the file is missing, is not YAML, or breaks a rule; all mistakes are listed with their fields and values.
    """
    path = project.recipes / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name) or not path.is_file():
        raise RecipeError(
            f"unknown recipe {name!r}; {near_miss(name, recipe_names(project))}",
            where=str(project.recipes),
            hint="name an existing recipe, or write a new one: headrace new NAME --data FILE --target COLUMN",
        )
    where = str(path.relative_to(project.root))
    add_to_import_path(project.root)
    recipe = parse_recipe(path.read_text(encoding="utf-8"), where, translate_renamed=translate_renamed)
    if recipe.name != name:
        raise RecipeError(f"name: {recipe.name!r} differs from the name of the file", where=where, hint=f"write `name: {name}`")
    return recipe


def load_trained(name: str, project: Project) -> Recipe:
    """Reads the recipe of a model that is trained here, for a command about its rows or its training.

    Raises:
        RecipeError: as `load_recipe`; or the model is an imported one.
    """
    recipe = load_recipe(name, project)
    if recipe.imported is not None:
        raise RecipeError(
            f"{name} is a model that others trained: it has no rows and no training",
            where=f"recipes/{name}.yaml",
            hint=f"headrace run {name} releases it",
        )
    return recipe


def parse_recipe(text: str, where: str, *, translate_renamed: bool = False) -> Recipe:
    """Parses a recipe from YAML; `where` names its file in errors.

    Args:
        translate_renamed: whether fields and values that have been renamed (`headrace.renamed`) are translated, for a recipe
            of an old commit. By default they are errors that give the new name.

    Raises:
        RecipeError: as for `load_recipe`.
    """
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise RecipeError(f"invalid YAML: {getattr(error, 'problem', error)}", where=place, hint=f"edit {where}") from None
    if not isinstance(fields, dict):
        raise RecipeError("a recipe is a mapping of fields", where=where, hint="see docs/recipes.md for an example")
    if translate_renamed:
        _translate_renamed(fields)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        mistakes = [_explain(mistake, fields) for mistake in error.errors()]
        hint = f"edit {where}, then: headrace check {Path(where).stem}"
        raise RecipeError(
            "\n".join(f"{where}: {m}" if i else m for i, m in enumerate(mistakes)), where=where, hint=hint
        ) from None


def _translate_renamed(fields: dict[str, Any]) -> None:
    """Replaces old names of fields and old values in place."""
    for old, new in renamed.RECIPE_FIELDS.items():
        for section in _section_of(fields, old):
            section[new.split(".")[-1]] = section.pop(old.split(".")[-1])
    for (path, old_value), new_value in renamed.RECIPE_VALUES.items():
        for section in _section_of(fields, path):
            name = path.split(".")[-1]
            section[name] = new_value if section[name] == old_value else section[name]


def _section_of(fields: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """The mapping that holds the last name of a dotted path, if it exists. Outer names have to be the present ones."""
    *outer, last = path.split(".")
    section: Any = fields
    for name in outer:
        section = section.get(name) if isinstance(section, dict) else None
    if isinstance(section, dict) and last in section:
        yield section


@cache
def expectation_types() -> frozenset[str]:
    """Names of Great Expectations' core expectations, read from its folder, because importing it takes seconds."""
    spec = find_spec("great_expectations")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("Great Expectations is not installed", hint="make setup")
    core = Path(spec.submodule_search_locations[0]) / "expectations" / "core"
    return frozenset(path.stem for path in core.glob("expect_*.py"))


def _explain(mistake: Any, fields: dict[str, Any]) -> str:
    """One mistake in the recipe with these `fields`, as `field: what is wrong (value); near miss`."""
    place = [part for part in mistake["loc"] if not str(part).startswith("function-")]
    field = ".".join(str(part) for part in place)
    value = mistake.get("input")
    if mistake["type"] == "extra_forbidden":
        if field in renamed.RECIPE_FIELDS:
            return f"{field}: renamed to {renamed.RECIPE_FIELDS[field].split('.')[-1]!r}"
        section = [str(part) for part in place[:-1]]
        return f"{field}: unknown field; {near_field(str(place[-1]), section, _fields_at(place[:-1], fields))}"
    if mistake["type"] == "missing":
        return f"{field}: required field is missing"
    if isinstance(value, str) and (field, value) in renamed.RECIPE_VALUES:
        return f"{field}: value {value!r} was renamed to {renamed.RECIPE_VALUES[field, value]!r}"
    message = mistake["msg"].removeprefix("Value error, ")
    seen = re.sub(r"(?<=://)[^/@\s]*@", "***@", repr(value))  # an address may hold a password
    shown = f" (got {seen})" if isinstance(value, str | int | float | bool | list) and len(repr(value)) < 80 else ""
    return f"{field}: {message}{shown}" if field else message


def _fields_at(place: list[Any], fields: dict[str, Any]) -> list[str]:
    """Names of the fields of the section at `place`, for the near miss; in `model`, those of the model that it names."""
    if place and place[0] == "model":
        return list(config_of(str(fields["model"].get("name", "imported"))).model_fields)
    section: Any = Recipe
    for part in place:
        if isinstance(part, int) or part not in section.model_fields:  # the name of a column, as in data.times
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), section)
    return list(section.model_fields)
