"""The base class of all sections of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """A section of a recipe: unknown fields are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
