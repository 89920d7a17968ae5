"""Requests with images: a file as the whole body, or base64 in JSON."""

from __future__ import annotations

from typing import Any

from bentos.models.served_model import ServedModel
from headrace.runtime.http import Refused
from headrace.runtime.images import MAX_FILE_BYTES, MEDIA_TYPES, WEBP, format_of, is_image_file, is_webp_file
from headrace.runtime.violations import ContractViolation

BASE64_STARTS = (b"iVBORw0KGgo", b"/9j/", b"_9j_", b"UklGR")
"""Beginning of a PNG and of a JPEG file in base64, of the latter in the alphabet for URLs, and of a WebP file."""


def takes_file(model: ServedModel, media_type: str) -> bool:
    """Returns whether a body of this type is taken for a file of an image."""
    return media_type in MEDIA_TYPES or (media_type == WEBP and any(WEBP in field.accepts for field in model.contract.inputs))


def instance_of(body: bytes, model: ServedModel) -> dict[str, Any]:
    """Makes an instance of a file that is the whole body.

    Raises:
        Refused: 415, the model takes no image, or other fields too.
        ContractViolation: the body is not a PNG or JPEG file (or WebP, where the model takes it).
    """
    fields = [field for field in model.contract.inputs if set(MEDIA_TYPES) <= set(field.accepts)]
    if len(fields) != 1 or len(model.contract.inputs) != 1:
        raise Refused(415, "unsupported_media_type", f"expected content-type application/json: {model.name!r} takes fields")
    takes_webp = WEBP in fields[0].accepts
    if not is_image_file(body) and not (takes_webp and is_webp_file(body)):
        expected = "a PNG, JPEG or WebP file" if takes_webp else "a PNG or JPEG file"
        raise ContractViolation("body", expected, format_of(body) or f"{len(body):,} bytes of another format")
    return {fields[0].name: body}


def weight_of(body: bytes) -> int:
    """Returns the size of a JSON body for scheduling: a small image file may hold many pixels, so it counts as the largest."""
    return MAX_FILE_BYTES if any(start in body for start in BASE64_STARTS) else len(body)
