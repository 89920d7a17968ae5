"""Requests with images: a file as the whole body, or base64 in JSON."""

from __future__ import annotations

from typing import Any

from bentos.models.onnx_model import OnnxModel
from headrace.runtime.contract import ContractViolation
from headrace.runtime.http import Refused
from headrace.runtime.images import MAX_FILE_BYTES, MEDIA_TYPES, is_image_file

BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/")
"""Beginning of a PNG and of a JPEG file in base64."""


def instance_of(body: bytes, model: OnnxModel) -> dict[str, Any]:
    """Makes an instance of a file that is the whole body.

    Raises:
        Refused: 415, the model takes no image, or other fields too.
        ContractViolation: the body is not a PNG or JPEG file.
    """
    fields = [field for field in model.contract.inputs if set(MEDIA_TYPES) <= set(field.accepts)]
    if len(fields) != 1 or len(model.contract.inputs) != 1:
        raise Refused(415, "unsupported_media_type", f"expected content-type application/json: {model.name!r} takes fields")
    if not is_image_file(body):
        raise ContractViolation("body", "a PNG or JPEG file", f"{len(body):,} bytes of another format")
    return {fields[0].name: body}


def weight_of(body: bytes) -> int:
    """Returns the size of a JSON body for scheduling: a small image file may hold many pixels, so it counts as the largest."""
    png, jpeg = BASE64_STARTS
    return MAX_FILE_BYTES if png in body or jpeg in body else len(body)
