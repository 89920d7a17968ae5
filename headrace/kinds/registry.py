"""The tasks a recipe can name. One entry each; adding a kind is one file beside this one and one entry in `KINDS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headrace.kinds.base import Kind

Better = Literal["higher", "lower"]

CLASSIFICATION: dict[str, Better] = {
    "accuracy": "higher",
    "macro_f1": "higher",
    "auc": "higher",
    "log_loss": "lower",
}
REGRESSION: dict[str, Better] = {"mae": "lower", "rmse": "lower", "r2": "higher"}


@dataclass(frozen=True)
class KindEntry:
    """Where a kind is implemented (`module:class`), its metrics and the models that fit it."""

    implements: str
    metrics: dict[str, Better]
    models: tuple[str, ...]
    is_image: bool = False


KINDS: dict[str, KindEntry] = {
    "image-classification": KindEntry("headrace.kinds.image:ImageClassification", CLASSIFICATION, ("cnn",), is_image=True),
    "classification": KindEntry("headrace.kinds.tabular:TabularClassification", CLASSIFICATION, ("mlp",)),
    "regression": KindEntry("headrace.kinds.tabular:TabularRegression", REGRESSION, ("mlp",)),
}


def kind_of(task: str) -> Kind:
    """The implementation of `task`, a key of `KINDS`."""
    module, _, cls = KINDS[task].implements.partition(":")
    kind: Kind = getattr(importlib.import_module(module), cls)()
    return kind
