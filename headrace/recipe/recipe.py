"""The recipe as one typed tree: what to build. Every field says what it means, and rules that cross fields name them.

Stays light (pydantic and a YAML parser), since every command reads a recipe first.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace.errors import RecipeError, near_miss
from headrace.plugins import importable, is_dotted
from headrace.project import Project
from headrace.recipe.data import DataConfig
from headrace.recipe.models import MODELS, ModelConfig, config_of
from headrace.recipe.rollout import RolloutConfig
from headrace.recipe.section import Section
from headrace.recipe.task_types import CALIBRATION, INTERVALS, TaskTypeEntry, task_type_entry
from headrace.recipe.training import TrainConfig as TrainConfig

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"


class Expectation(BaseModel):
    """One Great Expectations expectation under its native name; its arguments stand beside `type`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in expectation_types():
            raise ValueError(f"{value!r} is no expectation; {near_miss(value, expectation_types())}")
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class BeatChampion(Section):
    """A paired comparison with the champion on the same test rows."""

    metric: str
    margin: float = 0.0
    """By how much the candidate has to be better; a negative margin accepts one that is hardly worse."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """One-sided confidence that the difference exceeds the margin."""


class GateConfig(Section):
    """What a candidate has to show before it serves."""

    require: dict[str, str] = {}
    """Metric to bound on the test set, such as `accuracy: ">= 0.95"`."""
    beat_champion: BeatChampion | None = None
    approval: Literal["auto", "person"] = "auto"
    """`person`: the release waits until someone runs `headrace approve`."""

    @field_validator("require")
    @classmethod
    def _bounds(cls, require: dict[str, str]) -> dict[str, str]:
        for metric, bound in require.items():
            if not re.fullmatch(r"\s*(>=|<=|>|<)\s*-?\d+(\.\d+)?(e-?\d+)?\s*", bound):
                raise ValueError(f'{metric}: {bound!r} is no bound; write one such as ">= 0.95"')
        return require


class ServeConfig(Section):
    """How the champion is served."""

    replicas: int = Field(default=2, ge=1, le=64)
    runtime: Literal["onnx"] = "onnx"
    threads: int = Field(default=1, ge=1)
    """Threads of ONNX Runtime in one replica."""
    rollout: RolloutConfig = RolloutConfig()


class Recipe(Section):
    """One model: what to build, from data to endpoint."""

    name: str = Field(pattern=NAME_PATTERN)
    """Lower-case letters, digits and dashes; the file's name without `.yaml`."""
    task: str
    """A key of `headrace.recipe.task_types.TASK_TYPES`, or `module:Class` of a kind of one's own."""
    data: DataConfig
    expect: list[Expectation]
    """The suite that every batch has to pass."""
    model: ModelConfig
    train: TrainConfig
    gate: GateConfig = GateConfig()
    serve: ServeConfig

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        task_type_entry(task)
        return task

    @field_validator("model", mode="before")
    @classmethod
    def _typed_model(cls, value: Any) -> ModelConfig:
        if isinstance(value, ModelConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"needs a `name`; {near_miss('', MODELS)}")
        return config_of(str(value["name"])).model_validate(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        entry = self.kind
        if entry.models and not is_dotted(self.model.name) and self.model.name not in entry.models:
            raise ValueError(f"model: {self.model.name!r} does not fit task {self.task!r}; it takes {', '.join(entry.models)}")
        if entry.is_image and self.data.image is None:
            raise ValueError("data.image: an image task needs height and width, such as [28, 28]")
        if entry.is_text and self.data.text is None:
            raise ValueError("data.text: a text task needs the column of the text, such as {column: text}")
        if entry.is_graph and self.data.graph is None:
            raise ValueError(
                "data.graph: a graph task needs the nodes' ids and their edges, such as {node: id, edges: edges.txt}"
            )
        if self.train.augment and entry.models and not entry.is_image:
            raise ValueError(f"train.augment: changes images, and {self.task!r} has none; leave it out")
        if self.train.processes > 1 and entry.is_graph:
            raise ValueError("train.processes: every step sees the whole graph, which cannot be shared out; leave it out")
        named = list(self.gate.require) + ([self.gate.beat_champion.metric] if self.gate.beat_champion else [])
        for metric in named:
            if metric not in entry.metrics:
                raise ValueError(f"gate: {metric!r} is no metric of {self.task!r}; {near_miss(metric, entry.metrics)}")
        self._honesty_fits(entry)
        return self

    def _honesty_fits(self, entry: TaskTypeEntry) -> None:
        """Intervals belong to regressions, temperatures to classifications, and the gate asks for what there is."""
        beat, interval = self.gate.beat_champion, getattr(self.model, "interval", None)
        if beat and beat.metric in CALIBRATION:
            raise ValueError(f"gate.beat_champion: {beat.metric} belongs to all rows together; set a bound in gate.require")
        if interval and not (INTERVALS.keys() <= entry.metrics.keys() or is_dotted(self.task)):
            raise ValueError(f"model.interval: is for regressions, and {self.task!r} is none; leave it out")
        if interval and self.data.target == "interval":
            raise ValueError("data.target: an answer holds its interval under this name; rename the column (data.rename)")
        if self.train.calibrate and not (CALIBRATION.keys() <= entry.metrics.keys() or is_dotted(self.task)):
            raise ValueError(f"train.calibrate: is for probabilities, and {self.task!r} gives none; leave it out")
        asked = [*self.gate.require, *([beat.metric] if beat else [])]
        if not interval and not is_dotted(self.task) and (metric := next(iter(INTERVALS.keys() & asked), "")):
            raise ValueError(f"gate: {metric!r} needs intervals; set model.interval, such as 0.9")

    @property
    def kind(self) -> TaskTypeEntry:
        return task_type_entry(self.task)

    @property
    def custom_classes(self) -> list[str]:
        """Paths `module:Class` of what this recipe takes from outside the registries."""
        return [name for name in (self.task, self.model.name) if is_dotted(name)]


def recipe_names(project: Project) -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in project.recipes.glob("*.yaml"))


def load_recipe(name: str, project: Project) -> Recipe:
    """Reads `recipes/<name>.yaml`.

    Raises:
        RecipeError: it is missing, is no YAML, or breaks a rule; every mistake is listed with its field and value.
    """
    path = project.recipes / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name) or not path.is_file():
        raise RecipeError(
            f"no recipe {name!r}; {near_miss(name, recipe_names(project))}",
            where=str(project.recipes),
            hint="name one of the recipes, or write a new one: headrace new NAME --data FILE --target COLUMN",
        )
    where = str(path.relative_to(project.root))
    importable(project.root)
    recipe = parse_recipe(path.read_text(encoding="utf-8"), where)
    if recipe.name != name:
        raise RecipeError(f"name: {recipe.name!r} differs from the file's name", where=where, hint=f"write `name: {name}`")
    return recipe


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from YAML `text`; `where` names its file in errors.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise RecipeError(f"no valid YAML: {getattr(error, 'problem', error)}", where=place, hint=f"edit {where}") from None
    if not isinstance(fields, dict):
        raise RecipeError("a recipe is a mapping of fields", where=where, hint="see docs/recipes.md for a whole recipe")
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        mistakes = [_explain(mistake) for mistake in error.errors()]
        hint = f"edit {where}, then: headrace check {Path(where).stem}"
        raise RecipeError(
            "\n".join(f"{where}: {m}" if i else m for i, m in enumerate(mistakes)), where=where, hint=hint
        ) from None


@cache
def expectation_types() -> frozenset[str]:
    """Names of Great Expectations' core expectations, read from its folder: importing it would cost seconds."""
    spec = find_spec("great_expectations")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("Great Expectations is not installed", hint="make setup")
    core = Path(spec.submodule_search_locations[0]) / "expectations" / "core"
    return frozenset(path.stem for path in core.glob("expect_*.py"))


def _explain(mistake: Any) -> str:
    """One mistake as `field: what is wrong (value); near miss`."""
    place = [part for part in mistake["loc"] if not str(part).startswith("function-")]
    field = ".".join(str(part) for part in place)
    if mistake["type"] == "extra_forbidden":
        return f"{field}: no such field; {near_miss(str(place[-1]), _fields_at(place[:-1]))}"
    if mistake["type"] == "missing":
        return f"{field}: this field is needed"
    said = mistake["msg"].removeprefix("Value error, ")
    value = mistake.get("input")
    shown = f" (it says {value!r})" if isinstance(value, str | int | float | bool | list) and len(repr(value)) < 80 else ""
    return f"{field}: {said}{shown}" if field else said


def _fields_at(place: list[Any]) -> list[str]:
    """Field names of the section at `place`, for the near miss."""
    if place and place[0] == "model":
        return sorted({name for config in MODELS.values() for name in config.model_fields})
    section: Any = Recipe
    for part in place:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), section)
    return list(section.model_fields)
