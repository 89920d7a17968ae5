"""JSON Schemas (2020-12) of a model's instances and answers, from its contract."""

from __future__ import annotations

from typing import Any

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.number_limits import LARGEST

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
    for takes, kind in ((field.takes_numbers, "number"), (field.takes_booleans, "boolean")):
        schema = {"type": ["string", kind]} if takes else schema
    if field.takes_whole_numbers:
        schema = {"type": ["string", "integer"]}
    if field.longest is not None:
        schema["maxLength"] = field.longest
    if field.levels:
        schema["description"] = "Known: " + ", ".join(field.levels[:50]) + (", ..." if len(field.levels) > 50 else "")
        schema["examples"] = field.levels[:3]
    return schema


def _numbers(field: InputField) -> Schema:
    if field.is_time:
        return {"type": "string", "description": field.expected_text}
    schema = _plain_numbers(field)
    if field.reads_texts and field.rule is not None:
        return {"anyOf": [schema, {"type": "string", "description": field.expected_text}]}
    return schema


def _plain_numbers(field: InputField) -> Schema:
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
    files = "a PNG, JPEG or WebP file of any size" if field.picture else "a PNG or JPEG file"
    description = "Base64 of the raw bytes, row by row" + (f", or of {files}" if len(field.accepts) > 2 else "")
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
    if contract.output == "labels":
        probability = {"type": "number", "minimum": 0, "maximum": 1}
        probabilities = _object({str(label): probability for label in contract.labels or []})
        return _object({"labels": truth_schema(contract), "probabilities": probabilities})
    if contract.output == "values":
        return truth_schema(contract)
    if contract.output == "value":
        interval = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
        more: Schema = {"interval": interval} if contract.interval else {}
        if contract.quantiles:
            more = {"quantiles": _object({f"{level:g}": {"type": "number"} for level in contract.quantiles})}
        return _object({contract.target: {"type": "number"}, **more})
    if contract.task == "text-generation":
        counts = ["tokens", *(["prompt_tokens"] if contract.served_by.endswith(":LanguageModel") else [])]
        numbers: Schema = {name: {"type": "integer"} for name in counts}
        return _object({"text": {"type": "string"}, "finish_reason": {"enum": ["stop", "length"]}, **numbers})
    return {"type": "object"}


def truth_schema(contract: Contract) -> Schema:
    """Schema of the true answer that feedback gives."""
    if contract.output == "probabilities":
        return {"enum": contract.labels or []}
    if contract.output == "labels":
        return {"type": "array", "items": {"enum": contract.labels or []}, "uniqueItems": True}
    if contract.output == "values":
        return _object({name: {"type": "number"} for name in contract.targets or []})
    return {"type": "number"} if contract.output == "value" else {"type": "string"}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
