"""The recipe as one typed tree: what to build. Every field says what it means, and rules that cross fields name them.

Stays light (pydantic and a YAML parser), since every command reads a recipe first.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace.errors import RecipeError, near_miss
from headrace.kinds.registry import KINDS, KindEntry
from headrace.models.registry import MODELS, ModelConfig
from headrace.project import Project

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the recipe: unknown fields are mistakes, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeSplit(Section):
    """The rows with the last value of `column` are the test set; earlier rows train."""

    column: str
    """A column that can be ordered: a month, a date. It orders the rows and is no feature."""
    test: Literal["last"] = "last"


class SplitConfig(Section):
    """How rows are divided. A row's place depends on its content alone, so it never moves when data arrives."""

    test: Fraction = 0.2
    """Share of rows for the test set (unless split by `time`)."""
    validation: Fraction = 0.1
    """Share of rows for early stopping."""
    seed: int = 7
    """Another seed gives another division."""
    time: TimeSplit | None = None

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> SplitConfig:
        if self.time is None and self.test + self.validation >= 1:
            raise ValueError(f"test {self.test} and validation {self.validation} leave no rows to train on; lower one")
        return self


class Arrival(Section):
    """For a source that holds a whole history: take the `first` values now, `headrace data next` brings the following."""

    column: str
    """The column whose values arrive one by one, in ascending order."""
    first: int = Field(ge=1)
    """How many values the first version of the data holds."""


class TextConfig(Section):
    """For text tasks: which column holds the text, and into which tokens it is cut."""

    column: str
    tokens: Literal["words", "pieces", "characters"] = "pieces"
    """`words`; `pieces` of words by byte-pair encoding, which know every text; or `characters`."""
    vocabulary: int = Field(default=8000, ge=8)
    """Most tokens to learn from the training rows."""
    length: int = Field(default=256, ge=1)
    """Most tokens of a text that the network reads; what is longer is cut."""
    lowercase: bool = True


class DataConfig(Section):
    """Where the data comes from, and what its columns mean."""

    source: str
    """A path, or a URI: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://, s3://."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the file at `source`; a file that differs is refused."""
    target: str
    """The column to predict."""
    header: bool = True
    """Whether the first line of a CSV names the columns."""
    columns: list[str] | None = None
    """Columns to keep, or all names of a CSV without header; `pixel[784]` stands for pixel_0 to pixel_783."""
    categorical: list[str] | None = None
    """Columns to treat as categories; by default those that hold text."""
    drop_missing: list[str] = []
    """Rows with nothing in one of these columns are left out at ingest, and counted."""
    image: tuple[int, int] | None = None
    """Height and width, for image tasks: the columns but the target are its pixels, row by row."""
    text: TextConfig | None = None
    """For text tasks."""
    arrive: Arrival | None = None
    split: SplitConfig = SplitConfig()

    @field_validator("columns")
    @classmethod
    def _expand(cls, columns: list[str] | None) -> list[str] | None:
        if columns is None:
            return None
        found = [name for column in columns for name in _expand_column(column)]
        if twice := {name for name in found if found.count(name) > 1} if len(found) < 500 else None:
            raise ValueError(f"{sorted(twice)} stand there twice")
        return found

    @model_validator(mode="after")
    def _columns_exist(self) -> DataConfig:
        if not self.header and self.columns is None:
            raise ValueError("`header: false` needs `columns`, the names of the columns in order")
        if self.columns is not None:
            named = {"target": [self.target], "categorical": self.categorical or [], "drop_missing": self.drop_missing}
            for field, names in named.items():
                for name in names:
                    if name not in self.columns:
                        raise ValueError(f"{field} {name!r} is not among columns; {near_miss(name, self.columns)}")
        return self


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


class EarlyStopping(Section):
    """Stop when the validation loss has not fallen for `patience` epochs; the best epoch's weights are kept."""

    patience: int = Field(default=2, ge=1)


class TrainConfig(Section):
    """The training loop's settings."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(default=0.002, gt=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    schedule: Literal["constant", "one_cycle"] = "one_cycle"
    """How the learning rate moves: not at all, or up and down once (Smith 2018, arXiv:1803.09820)."""
    early_stopping: EarlyStopping | None = None
    seed: int = 7
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a CUDA GPU when there is one."""


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


class Recipe(Section):
    """One model: what to build, from data to endpoint."""

    name: str = Field(pattern=NAME_PATTERN)
    """Lower-case letters, digits and dashes; the file's name without `.yaml`."""
    task: str
    """A key of `headrace.kinds.registry.KINDS`."""
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
        if task not in KINDS:
            raise ValueError(f"{task!r} is no task; {near_miss(task, KINDS)}")
        return task

    @field_validator("model", mode="before")
    @classmethod
    def _typed_model(cls, value: Any) -> ModelConfig:
        if isinstance(value, ModelConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError(f"needs a `name`; {near_miss('', MODELS)}")
        if value["name"] not in MODELS:
            raise ValueError(f"{value['name']!r} is no model; {near_miss(str(value['name']), MODELS)}")
        return MODELS[value["name"]].model_validate(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        entry = KINDS[self.task]
        if self.model.name not in entry.models:
            raise ValueError(f"model: {self.model.name!r} does not fit task {self.task!r}; it takes {', '.join(entry.models)}")
        if entry.is_image and self.data.image is None:
            raise ValueError("data.image: an image task needs height and width, such as [28, 28]")
        named = list(self.gate.require) + ([self.gate.beat_champion.metric] if self.gate.beat_champion else [])
        for metric in named:
            if metric not in entry.metrics:
                raise ValueError(f"gate: {metric!r} is no metric of {self.task!r}; {near_miss(metric, entry.metrics)}")
        return self

    @property
    def kind(self) -> KindEntry:
        return KINDS[self.task]


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
            mend="name one of the recipes, or write a new one: headrace new NAME --data FILE --target COLUMN",
        )
    where = str(path.relative_to(project.root))
    recipe = parse_recipe(path.read_text(encoding="utf-8"), where)
    if recipe.name != name:
        raise RecipeError(f"name: {recipe.name!r} differs from the file's name", where=where, mend=f"write `name: {name}`")
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
        raise RecipeError(f"no valid YAML: {getattr(error, 'problem', error)}", where=place, mend=f"edit {where}") from None
    if not isinstance(fields, dict):
        raise RecipeError("a recipe is a mapping of fields", where=where, mend="see docs/recipes.md for a whole recipe")
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        mistakes = [_explain(mistake) for mistake in error.errors()]
        mend = f"edit {where}, then: headrace check {Path(where).stem}"
        raise RecipeError(
            "\n".join(f"{where}: {m}" if i else m for i, m in enumerate(mistakes)), where=where, mend=mend
        ) from None


@cache
def expectation_types() -> frozenset[str]:
    """Names of Great Expectations' core expectations, read from its folder: importing it would cost seconds."""
    spec = find_spec("great_expectations")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("Great Expectations is not installed", mend="make setup")
    core = Path(spec.submodule_search_locations[0]) / "expectations" / "core"
    return frozenset(path.stem for path in core.glob("expect_*.py"))


def _expand_column(column: str) -> list[str]:
    found = re.fullmatch(r"(.+)\[(\d+)\]", column)
    return [f"{found[1]}_{i}" for i in range(int(found[2]))] if found else [column]


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
