"""What every part of a recipe is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of the recipe: unknown fields are mistakes, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
