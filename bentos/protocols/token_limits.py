"""Requests for texts within the limits of their caller's tokens, whatever the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from bentos.models.language_model import LanguageModel
from bentos.models.runtimes.upstream import send
from bentos.models.served_model import ServedModel
from bentos.protocols.server import ModelServer
from bentos.telemetry.token_limits import Grant
from headrace.runtime.generation import GenerationRequest
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.violations import ContractViolation


async def reserve_texts(
    app: ModelServer, request: TrackedRequest, texts: list[GenerationRequest], prompt: int
) -> tuple[list[GenerationRequest], Grant | None]:
    """Returns the texts with as many tokens as the caller's limits leave.

    Args:
        prompt: tokens of all prompts together.

    Raises:
        Refused: as `ModelServer.reserve_tokens`.
    """
    grant = await app.reserve_tokens(request, prompt, [text.sampling.max_tokens for text in texts])
    if grant is None:
        return texts, None
    limited = [replace(text.sampling, max_tokens=tokens) for text, tokens in zip(texts, grant.tokens, strict=True)]
    return [replace(text, sampling=sampling) for text, sampling in zip(texts, limited, strict=True)], grant


async def reserve_instances(
    app: ModelServer, request: TrackedRequest, model: ServedModel, instances: list[Any]
) -> tuple[list[Any], Grant | None]:
    """Returns instances for a model that a runtime serves, with as many tokens as the caller's limits leave.

    Instances that break the contract stay as they are: the model refuses them.

    Raises:
        Refused: as `ModelServer.reserve_tokens`.
    """
    if not request.caller.limits_tokens or not isinstance(model, LanguageModel):
        return instances, None
    try:
        wanted = [int(tokens) for tokens in model.to_feeds(instances)["max_tokens"]]
    except ContractViolation:
        return instances, None
    prompts = [await count_prompt(model, {"prompt": model.runtime.to_text(instance["prompt"])}) for instance in instances]
    grant = await app.reserve_tokens(request, sum(prompts), wanted)
    if grant is None:
        return instances, None
    return [{**one, "max_tokens": tokens} for one, tokens in zip(instances, grant.tokens, strict=True)], grant


def say_why_ended(answers: Sequence[dict[str, Any]], grant: Grant | None) -> None:
    """Adds `finish_details` to the answers that ended because of a limit."""
    if grant is not None:
        for text, answer in enumerate(answers):
            answer |= grant.end_of(text, answer.get("finish_reason"))


async def count_prompt(model: LanguageModel, fields: dict[str, Any]) -> int:
    """Returns the number of tokens of a prompt, or of the messages of a chat, as the runtime will read them; at most those of
    its context, since it refuses more.

    Raises:
        UpstreamLost: the runtime does not answer.
    """
    text = fields.get("prompt")
    if text is None:
        text = (await _ask(model, model.runtime.template_path, fields)).get("prompt", "")
    body = {"content": text, "add_special": True, "parse_special": True}
    return min(model.runtime.context, len((await _ask(model, model.runtime.tokenize_path, body)).get("tokens", [])))


async def _ask(model: LanguageModel, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns what the runtime answers; nothing if it refuses, as it will refuse the request itself."""
    exchange = await send(model.process.address, path, msgspec.json.encode(model.runtime.to_request(fields)))
    try:
        status, body = await exchange.status(), await exchange.read_all()
    finally:
        exchange.close()
    found: dict[str, Any] = msgspec.json.decode(body) if status == 200 else {}
    return found
