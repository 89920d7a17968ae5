"""Addresses of models that others trained."""

from __future__ import annotations

import re
from pathlib import Path

from headrace.data.sources.addresses import SCHEMES, is_local, local_file, redacted
from headrace.errors import SourceError, near_miss
from headrace.project import Project

HUB, MLFLOW = "hf://", "mlflow:"
FORMS = "a path, https://, s3://, gs://, az://, pypi://, npm://, hf:// or mlflow:models:/NAME/VERSION"


def shown_source(source: str) -> str:
    """The address for messages, without passwords and signatures."""
    return source if source.startswith((HUB, MLFLOW)) else redacted(source)


def local_path(source: str, project: Project) -> Path | None:
    """The path of a source on this machine; None for another one.

    Raises:
        SourceError: an unknown scheme.
    """
    if source.startswith((HUB, MLFLOW)):
        return None
    known = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if known and known[1].lower() not in SCHEMES:
        raise SourceError(
            f"unknown source {known[1]}://; {near_miss(known[1].lower(), [*SCHEMES, 'hf'])}",
            where="model.source",
            hint=f"use {FORMS}",
        )
    return local_file(source, project.root) if is_local(source) else None
