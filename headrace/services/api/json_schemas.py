"""JSON Schemas (2020-12) of a model's instances and answers, from its contract."""

from __future__ import annotations

from typing import Any

from headrace.runtime.contract import LARGEST, Contract, InputField

Schema = dict[str, Any]
GRAPH_CLASSES = ("bentos.models.nodes:NodeModel", "bentos.models.graphs:GraphModel")
"""Their fields are lists of what the contract describes, of any length."""


def instance_schema(contract: Contract) -> Schema:
    """Schema of one instance: its fields, with types, bounds and shapes."""
    of_any_length = contract.served_by in GRAPH_CLASSES
    required = [f.name for f in contract.inputs if not f.nullable and f.default is None]
    return {
        "type": "object",
        "properties": {field.name: field_schema(field, of_any_length) for field in contract.inputs},
        "required": required,
        "additionalProperties": False,
        "examples": [contract.sample, *contract.examples],
    }


def field_schema(field: InputField, of_any_length: bool = False) -> Schema:
    """Schema of one field's values."""
    schema = _text(field) if field.dtype == "string" else _numbers(field)
    if of_any_length and (field.shape or field.dtype != "string"):
        schema = {"type": "array", "items": schema}
    if field.default is not None:
        schema["default"] = field.default
    if field.nullable or field.default is not None:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _text(field: InputField) -> Schema:
    schema: Schema = {"type": "string"}
    if field.longest is not None:
        schema["maxLength"] = field.longest
    if field.levels:
        schema["description"] = "Known: " + ", ".join(field.levels[:50]) + (", ..." if len(field.levels) > 50 else "")
        schema["examples"] = field.levels[:3]
    return schema


def _numbers(field: InputField) -> Schema:
    if field.boolean:
        schema: Schema = {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}
    else:
        low, high = field.minimum, field.maximum
        if field.dtype == "uint8":
            low, high = max(0.0, low or 0.0), min(255.0, 255.0 if high is None else high)
        schema = {"type": "integer" if field.dtype in ("int64", "uint8") else "number"}
        schema["minimum"] = -LARGEST[field.dtype] if low is None else low
        schema["maximum"] = LARGEST[field.dtype] if high is None else high
    for size in reversed(field.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    if field.dtype == "uint8" and field.shape:
        return {"anyOf": [schema, _image(field)]}
    return schema


def _image(field: InputField) -> Schema:
    description = "Base64 of the raw bytes, row by row" + (", or of a PNG or JPEG file" if len(field.accepts) > 2 else "")
    return {"type": "string", "contentEncoding": "base64", "description": description + "."}


def answer_schema(contract: Contract) -> Schema:
    """Schema of the answer to one row."""
    if contract.output == "probabilities":
        labels = contract.labels or []
        return _object(
            {
                "label": {"enum": labels},
                "probabilities": _object({str(label): {"type": "number", "minimum": 0, "maximum": 1} for label in labels}),
            }
        )
    if contract.output == "value":
        interval = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        return _object({contract.target: {"type": "number"}, **({"interval": interval} if contract.interval else {})})
    if contract.task == "text-generation":
        return _object(
            {"text": {"type": "string"}, "finish_reason": {"enum": ["stop", "length"]}, "tokens": {"type": "integer"}}
        )
    return {"type": "object"}


def truth_schema(contract: Contract) -> Schema:
    """Schema of the true answer that feedback gives."""
    if contract.output == "probabilities":
        return {"enum": contract.labels or []}
    return {"type": "number"} if contract.output == "value" else {"type": "string"}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
