"""The tasks a recipe can name. One entry each; adding a kind is one file beside this one and one entry in `KINDS`, or a class
of one's own that the recipe names by its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.errors import near_miss
from headrace.extensions import is_dotted, load_class

if TYPE_CHECKING:
    from headrace.kinds.base import Kind

Better = Literal["higher", "lower"]

CLASSIFICATION: dict[str, Better] = {
    "accuracy": "higher",
    "macro_f1": "higher",
    "auc": "higher",
    "log_loss": "lower",
}
CALIBRATION: dict[str, Better] = {"calibration_error": "lower"}
"""Of all rows together: a bound can be set on it, but two models cannot be compared row by row."""
REGRESSION: dict[str, Better] = {"mae": "lower", "rmse": "lower", "r2": "higher"}
INTERVALS: dict[str, Better] = {"coverage": "higher", "interval_width": "lower"}
"""Of a regression with `model.interval`."""
GENERATION: dict[str, Better] = {"bits_per_character": "lower"}
SUMMARISATION: dict[str, Better] = {"rouge_l": "higher", "rouge_l_gain": "higher", "rouge_l_baseline": "higher"}


@dataclass(frozen=True)
class KindEntry:
    """Where a kind is implemented (`module:class`), its metrics and the models that fit it."""

    implements: str
    metrics: dict[str, Better]
    models: tuple[str, ...]
    is_image: bool = False
    is_text: bool = False
    is_graph: bool = False


KINDS: dict[str, KindEntry] = {
    "image-classification": KindEntry(
        "headrace.kinds.image:ImageClassification", CLASSIFICATION | CALIBRATION, ("cnn", "mlp"), is_image=True
    ),
    "classification": KindEntry("headrace.kinds.tabular:TabularClassification", CLASSIFICATION | CALIBRATION, ("mlp",)),
    "regression": KindEntry("headrace.kinds.tabular:TabularRegression", REGRESSION | INTERVALS, ("mlp",)),
    "text-classification": KindEntry(
        "headrace.kinds.text:TextClassification", CLASSIFICATION | CALIBRATION, ("recurrent", "attention"), is_text=True
    ),
    "text-generation": KindEntry(
        "headrace.kinds.generation:TextGeneration", GENERATION, ("recurrent-language", "gpt"), is_text=True
    ),
    "summarisation": KindEntry("headrace.kinds.summaries:Summarisation", SUMMARISATION, ("seq2seq",), is_text=True),
    "node-classification": KindEntry(
        "headrace.kinds.nodes:NodeClassification", CLASSIFICATION | CALIBRATION, ("gcn", "gat", "appnp"), is_graph=True
    ),
    "graph-classification": KindEntry(
        "headrace.kinds.graphs:GraphClassification", CLASSIFICATION | CALIBRATION, ("gcn", "gat", "appnp")
    ),
}


def entry_of(task: str) -> KindEntry:
    """The entry of `task`: a key of `KINDS`, or the path `module:Class` of a `Kind` of one's own, which fits every model.

    Raises:
        ValueError: no such task, or no such class; with the near miss.
    """
    if not is_dotted(task):
        if task not in KINDS:
            raise ValueError(f"{task!r} is no task; {near_miss(task, KINDS)}")
        return KINDS[task]
    metrics = getattr(load_class(task), "metrics", None)
    if not metrics:
        raise ValueError(f"{task!r} says no metrics; write such as `metrics = {{'accuracy': 'higher'}}` into the class")
    return KindEntry(task, metrics, models=())


def kind_of(task: str) -> Kind:
    """The implementation of `task`."""
    kind: Kind = load_class(entry_of(task).implements)()
    return kind
