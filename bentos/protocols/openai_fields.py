"""What all requests of OpenAI's API have in common: which fields are taken, and errors in its form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from bentos.protocols.error_forms import errors_in
from headrace.runtime.http import Refused, to_json
from headrace.runtime.violations import ContractViolation

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
"""Unsupported fields, with the values (beside null) that are accepted because they leave the answer unchanged."""
IGNORED_FIELDS = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prediction", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity"),
}
"""Fields that are accepted and have no effect."""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


def _of_violation(violation: ContractViolation) -> Response:
    field = violation.path.rpartition(".")[2]
    too_long = field == "prompt" and violation.expected.endswith(("tokens", "characters"))
    message = f"{field}: expected {violation.expected}, got {violation.got}"
    return _error(400, message, field, "context_length_exceeded" if too_long else "invalid_value")


def _of_refusal(refused: Refused) -> Response:
    param: str | None = refused.details.get("param", "model" if refused.status == 404 else None)
    return _error(refused.status, refused.message, param, refused.code, refused.headers)


def _error(status: int, message: str, param: str | None, code: str, headers: dict[str, str] | None = None) -> Response:
    error_type = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return to_json({"error": {"message": message, "type": error_type, "param": param, "code": code}}, status, headers)


openai_errors = errors_in(_of_violation, _of_refusal)
"""Responds to refusals in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""


def parse_fields(payload: Any, struct: type[Any], neutral_values: Mapping[str, Collection[Any]] = NEUTRAL_VALUES) -> Any:
    """Parses a request into `struct`.

    Args:
        neutral_values: unsupported fields, with the values that are accepted.

    Raises:
        Refused: 400, with the unknown, unsupported or invalid field.
    """
    if not isinstance(payload, dict):
        raise refused_field(None, "expected a JSON object")
    known = set(struct.__struct_fields__)
    for name, value in payload.items():
        if name in known or name in IGNORED_FIELDS or value is None:
            continue
        if name not in neutral_values:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise refused_field(name[:100], f"unknown field {name[:100]!r}{hint}", "unknown_parameter")
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral_values[name]):
            raise refused_field(name, f"{name} is not supported by this server", "unsupported_parameter")
    try:
        return msgspec.convert({name: value for name, value in payload.items() if name in known}, struct)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        named = re.search(r"missing required field `(\w+)`", message)
        param = re.split(r"[.\[`]", path)[0] or (named[1] if named else None)
        raise refused_field(param, f"{path.rstrip('`') or param}: {message}") from None


def refused_field(param: str | None, message: str, code: str = "invalid_value") -> Refused:
    return Refused(400, code, message, param=param)
