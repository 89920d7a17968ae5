"""Requests that hold pictures: a file as the whole body, or as base64 in JSON."""

from __future__ import annotations

from typing import Any

from bentos.models.served_model import ServedModel
from headrace.runtime.contract import ContractViolation
from headrace.runtime.http import Refused
from headrace.runtime.images import MAX_FILE_BYTES, MEDIA_TYPES, is_picture

BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/")
"""How base64 of a PNG and of a JPEG file begin."""


def instance_of(body: bytes, model: ServedModel) -> dict[str, Any]:
    """The instance that a file alone stands for.

    Raises:
        Refused: 415, the model takes no picture, or more than a picture.
        ContractViolation: the body is no PNG or JPEG file.
    """
    fields = [field for field in model.contract.inputs if set(MEDIA_TYPES) <= set(field.accepts)]
    if len(fields) != 1 or len(model.contract.inputs) != 1:
        raise Refused(415, "unsupported_media_type", f"expected content-type application/json: {model.name!r} takes fields")
    if not is_picture(body):
        raise ContractViolation("body", "a PNG or JPEG file", f"{len(body):,} bytes of something else")
    return {fields[0].name: body}


def work_of(body: bytes) -> int:
    """What a JSON body weighs: a picture of few bytes may unpack to many pixels, so it counts as the largest there is."""
    png, jpeg = BASE64_STARTS
    return MAX_FILE_BYTES if png in body or jpeg in body else len(body)
