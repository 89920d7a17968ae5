"""The recipe's section `search`: which fields a search for better values may change, and how it searches.

An entry of `search.space` names a field of `model` or `train` and gives its values: a list of them, or a range of numbers as
`LOW..HIGH`, with `log` before it or `step STEP` after it. Each entry is checked against the field itself.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from headrace.errors import near_miss
from headrace.recipe.duration import Duration
from headrace.recipe.gate import GateConfig
from headrace.recipe.models import ModelConfig, config_of
from headrace.recipe.section import Section
from headrace.recipe.synonyms import near_field
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION, Better, TaskTypeEntry
from headrace.recipe.training import TrainConfig

SamplerName = Literal["tpe", "random", "qmc", "gp"]
PrunerName = Literal["median", "hyperband", "none"]
FORMS = "a list of values, or a range such as 0..0.5, log 0.0001..0.1 or 16..128 step 16"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*(?P<log>log\s+)?(?P<low>{NUMBER})\s*\.\.\s*(?P<high>{NUMBER})(?:\s+step\s+(?P<step>{NUMBER}))?\s*")
COMBINATIONS = 100
"""Random values of the other fields with which a value that does not fit the recipe is tried."""
SEED = 7
LOSS = "loss"
NOT_SEARCHED = {
    "model.name": "search one model at a time: its fields differ from those of another one",
    "model.interval": "it changes what is predicted",
    "model.quantiles": "it changes what is predicted",
    "model.threads": "it does not change what is learned",
    "train.window": "it chooses the rows, and all trials are compared on the same ones",
    "train.start": "all trials start in the same way",
    "train.seed": "the best of several seeds is luck that new rows do not repeat",
    "train.device": "it does not change what is learned",
    "train.processes": "it does not change what is learned",
    "train.strategy": "it does not change what is learned",
    "train.compile": "it does not change what is learned",
}
"""Fields of `model` and `train` that a space cannot have, and why."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str | int | float | bool | None]:
        """The values as Optuna stores them: those that are not scalars as JSON."""
        return [value if value is None or isinstance(value, str | int | float) else json.dumps(value) for value in self.values]

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values that are checked."""
        return self.values

    def __str__(self) -> str:
        return ", ".join(json.dumps(value) if not isinstance(value, str) else value for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    is_log: bool = False
    """Whether each factor is equally probable, not each difference."""
    step: float | None = None
    is_int: bool = False

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values that are checked."""
        return (int(self.low), int(self.high)) if self.is_int else (self.low, self.high)

    def __str__(self) -> str:
        text = f"{'log ' if self.is_log else ''}{_number(self.low)}..{_number(self.high)}"
        return text if self.step is None else f"{text} step {_number(self.step)}"


Entry = Choice | Range
Space = dict[str, Entry]
"""By the dotted name of a field, for example `train.learning_rate`."""


class SearchConfig(Section):
    """A search for better values of some fields of `model` and `train`. See `docs/search.md`."""

    space: dict[str, Any] = {}
    """By the name of a field, for example `train.learning_rate`, its values: a list of them, or a range such as `0..0.5`,
    `log 0.0001..0.1` or `16..128 step 16`. By default a space that suits the model."""
    trials: int = Field(default=20, ge=1, le=10_000)
    """Trainings of the search, of all its runs together."""
    metric: str | None = None
    """What is compared, on the validation rows: a metric of classes or values, or `loss`. By default that of the gate, where it
    can be measured on them, else `loss`."""
    sampler: SamplerName = "tpe"
    """How values are chosen: `tpe` from those of good trials (Bergstra et al. 2011), `gp` by a Gaussian process, `qmc` evenly
    over the space, or `random`."""
    pruner: PrunerName = "median"
    """Which trials end early: those worse than the `median` of the others at the same epoch, by `hyperband` (Li et al. 2018,
    arXiv:1603.06560), or `none`."""
    seed: int = 7
    """Seed of the chosen values."""
    timeout: Duration | None = None
    """After this time no trial begins any more, for example `2h`."""
    workers: int = Field(default=1, ge=1, le=64)
    """Trials that run at the same time, each in a process of its own."""

    @field_validator("space")
    @classmethod
    def _check_forms(cls, space: dict[str, Any]) -> dict[str, Any]:
        for name, written in space.items():
            if not isinstance(written, str | list):
                raise ValueError(f"{name}: expected {FORMS}; got {written!r}")
        return space


class Searched(Protocol):
    """What is needed of a recipe."""

    @property
    def task(self) -> str: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def gate(self) -> GateConfig: ...
    @property
    def search(self) -> SearchConfig | None: ...
    @property
    def task_type(self) -> TaskTypeEntry: ...


R = TypeVar("R", bound=Searched)


def space_of(search: SearchConfig, recipe: Searched) -> Space:
    """Returns the entries of a space, checked against the fields of the recipe.

    Raises:
        ValueError: a field is unknown or cannot be searched, or a value is outside of its limits or fits no combination.
    """
    space, unsure = {}, list[tuple[str, Any]]()
    for name, written in search.space.items():
        space[name], doubtful = _entry(name, written, recipe)
        unsure += [(name, value) for value in doubtful]
    for name, value in unsure:
        _require_a_combination(name, value, space, recipe)
    return space


def draw(space: Space, rng: random.Random) -> dict[str, Any]:
    """Returns random values of all fields."""
    return {name: _drawn(entry, rng) for name, entry in space.items()}


def problem_of(recipe: Searched, values: Mapping[str, Any]) -> str | None:
    """Returns why these values do not fit together; None if they do."""
    try:
        with_values(recipe, values)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(str(part) for part in mistake["loc"] if not str(part).startswith("function-"))
        message = str(mistake["msg"]).removeprefix("Value error, ")
        return f"{place}.{message}" if place else message
    return None


def check_search(recipe: Searched) -> None:
    """Checks the section `search` of a recipe.

    Raises:
        ValueError: as `space_of`; or the metric is unknown.
    """
    if recipe.search is None:
        return
    if recipe.model.name == "pretrained":
        raise ValueError("search: trials of a pretrained model are not supported; remove the section")
    space_of(recipe.search, recipe)
    metric, known = recipe.search.metric, metrics_of(recipe.task_type)
    if metric is not None and metric not in known:
        raise ValueError(f"search.metric: {metric!r} is not measured in the trials of a search; {near_miss(metric, known)}")


def metrics_of(task_type: TaskTypeEntry) -> dict[str, Better]:
    """Returns what trials of a task can be compared by, on the validation rows: metrics of one class or one value a row, and
    the loss."""
    by_row: dict[str, Better] = {} if task_type.is_multilabel or task_type.is_custom else CLASSIFICATION | REGRESSION
    loss: dict[str, Better] = {LOSS: "lower"}
    return loss | {name: better for name, better in task_type.metrics.items() if name in by_row}


def objective_of(recipe: Searched) -> tuple[str, Better]:
    """Returns the metric by which trials are compared, and which values of it are better: that of the search, else the gate's
    where it is measured, else the loss."""
    known = metrics_of(recipe.task_type)
    wanted = (recipe.search.metric if recipe.search else None) or recipe.gate.main_metric
    metric = wanted if wanted in known else LOSS
    return metric, known[metric]


def with_values(recipe: R, values: Mapping[str, Any]) -> R:
    """Returns the recipe with other values of some fields, and without its section `search`.

    Raises:
        pydantic.ValidationError: they do not fit each other, or a field's limits.
    """
    of_recipe: Any = type(recipe)
    fields: dict[str, Any] = {name: getattr(recipe, name) for name in of_recipe.model_fields}
    sections = {name: getattr(recipe, name).model_dump(exclude_unset=True) for name in ("model", "train")}
    for name, value in values.items():
        section, *inner, last = name.split(".")
        target = sections[section]
        for part in inner:
            target[part] = target[part] if target.get(part) is not None else {}
            target = target[part]
        target[last] = value
    changed: R = of_recipe.model_validate({**fields, **sections, "search": None})
    return changed


def value_in(recipe: Searched, name: str) -> Any:
    """Returns the value of a field, as JSON has it; None if the section that has it is left out."""
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _entry(name: str, written: Any, recipe: Searched) -> tuple[Entry, list[Any]]:
    """An entry, and those of its values that do not fit the other fields as the recipe has them."""
    annotation = _annotation(name, recipe)
    entry = _choice(name, written) if isinstance(written, list) else _range(name, written, annotation)
    checked = [_checked(name, value, recipe) for value in entry.edges]
    values = [value for value, _ in checked]
    return Choice(tuple(values)) if isinstance(entry, Choice) else entry, [value for value, fits in checked if not fits]


def _require_a_combination(name: str, value: Any, space: Space, recipe: Searched) -> None:
    """
    Raises:
        ValueError: no values of the other fields fit this one.
    """
    rng = random.Random(SEED)
    problems = [problem_of(recipe, {**draw(space, rng), name: value}) for _ in range(COMBINATIONS)]
    if None not in problems:
        raise ValueError(f"search.space.{name}: {json.dumps(value)} fits no value of the other fields: {problems[0]}")


def _drawn(entry: Entry, rng: random.Random) -> Any:
    if isinstance(entry, Choice):
        return rng.choice(entry.values)
    if entry.step is not None:
        value = entry.low + entry.step * rng.randint(0, int((entry.high - entry.low) / entry.step + 1e-9))
    elif entry.is_log:
        value = math.exp(rng.uniform(math.log(entry.low), math.log(entry.high)))
    else:
        value = rng.uniform(entry.low, entry.high)
    return round(value) if entry.is_int else value


def _annotation(name: str, recipe: Searched) -> Any:
    """The type of a field of `model` or `train`.

    Raises:
        ValueError: an unknown field, with the near miss; or one that cannot be searched.
    """
    where = f"search.space.{name}"
    if name in NOT_SEARCHED:
        raise ValueError(f"{where}: this field cannot be searched: {NOT_SEARCHED[name]}; remove it")
    section, *path = name.split(".")
    classes: dict[str, type[BaseModel]] = {"model": config_of(recipe.model.name), "train": TrainConfig}
    if section not in classes or not path:
        near = near_miss(name, [*_leaves("train", TrainConfig), *_leaves("model", classes["model"])])
        raise ValueError(f"{where}: unknown field of `model` or `train`; {near}")
    fields, seen = classes[section], [section]
    for i, part in enumerate(path):
        if part not in fields.model_fields:
            raise ValueError(f"{where}: unknown field; {near_field(part, seen, list(fields.model_fields))}")
        annotation = fields.model_fields[part].annotation
        inner = _section(annotation)
        if i == len(path) - 1:
            return annotation
        if inner is None:
            raise ValueError(f"{where}: {'.'.join([*seen, part])} has no fields; name it alone")
        fields, seen = inner, [*seen, part]
    raise AssertionError


def _leaves(prefix: str, section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        yield from [f"{prefix}.{name}"] if inner is None else _leaves(f"{prefix}.{name}", inner)


def _section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _choice(name: str, written: list[Any]) -> Choice:
    unique = {json.dumps(value, sort_keys=True, default=str) for value in written}
    if len(written) < 2 or len(unique) < len(written):
        problem = "a value is there twice" if len(unique) < len(written) else "at least two values are needed"
        raise ValueError(f"search.space.{name}: {problem} (got {written!r})")
    return Choice(tuple(written))


def _range(name: str, written: str, annotation: Any) -> Range:
    where = f"search.space.{name}"
    found = RANGE.fullmatch(written)
    if found is None:
        raise ValueError(f"{where}: expected {FORMS}; got {written!r}")
    types = _numbers(annotation)
    if not types:
        raise ValueError(f"{where}: this field takes no single number; list its values (got {written!r})")
    low, high, is_int = float(found["low"]), float(found["high"]), float not in types
    step = None if found["step"] is None else float(found["step"])
    if is_int and any(value is not None and not value.is_integer() for value in (low, high, step)):
        raise ValueError(f"{where}: this field takes whole numbers (got {written!r})")
    if low >= high:
        raise ValueError(f"{where}: the first number has to be below the second (got {written!r})")
    if found["log"] and (low <= 0 or step is not None):
        problem = "log needs numbers above 0" if low <= 0 else "log and step exclude each other"
        raise ValueError(f"{where}: {problem} (got {written!r})")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"{where}: the step has to be above 0 and within the range (got {written!r})")
    return Range(low, high, bool(found["log"]), step, is_int)


def _numbers(annotation: Any) -> set[type]:
    """Which of int and float a field takes."""
    if annotation in (int, float):
        return {annotation}
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, dict, tuple, Literal):
        return set()
    return {found for option in get_args(annotation) if not isinstance(option, str) for found in _numbers(option)}


def _checked(name: str, value: Any, recipe: Searched) -> tuple[Any, bool]:
    """The value as the field has it, and whether it fits the other fields as they are.

    Raises:
        ValueError: the field's own limits, or those of its section, exclude it.
    """
    try:
        return _plain(value_in(with_values(recipe, {name: value}), name)), True
    except ValidationError as error:
        if (mistake := _mistake(error, name)) is None:
            return value, False
        raise ValueError(f"search.space.{name}: {mistake} (got {value!r})") from None


def _mistake(error: ValidationError, name: str) -> str | None:
    """What is wrong with the field itself; None if only the combination with other fields is wrong."""
    for mistake in error.errors():
        place = ".".join(str(part) for part in mistake["loc"] if not str(part).startswith("function-"))
        if place.startswith(name):
            return str(mistake["msg"].removeprefix("Value error, "))
    return None


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _number(value: float) -> str:
    return f"{value:g}" if not float(value).is_integer() or abs(value) >= 1e6 else str(int(value))
