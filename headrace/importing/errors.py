"""Errors about models that others trained, and the command that completes what a model does not say about itself."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.errors import UsageError


class ImportRefused(UsageError):
    """A model that cannot be imported, with the reason."""


def damaged(shown: str, why: str) -> ImportRefused:
    """The refusal of a file that cannot be read as the model that it should be."""
    return ImportRefused(
        f"{shown} cannot be read: {why}; it is truncated, damaged or in another format or version",
        where="model.source",
        hint="copy or export the file again",
    )


class ImportIncomplete(UsageError):
    """A model that does not say all that its contract needs. `options` are those of `headrace import` that say it."""

    fields = ("options",)

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.options = dict(options or {})
        fields = "; ".join(f"`{name}: {_yaml(name, value)}`" for name, value in self.options.items() if name != "task")
        super().__init__(message, where=where, hint=hint or f"write under model in the recipe: {fields}")


def _yaml(name: str, value: str) -> str:
    """The value of an option as the recipe's field of the same meaning has it."""
    if name == "shapes":
        field, _, sizes = value.partition("=")
        return f"{{{field}: [{sizes}]}}"
    return f"[{value}]" if name in ("labels", "inputs", "targets") else value
