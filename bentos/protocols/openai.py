"""OpenAI's completions, for models that write texts: `/v1/completions` and `/v1/chat/completions`.

These models continue a text. A chat is put before them as its messages' contents, a line each, and its answer is what follows.
"""

from __future__ import annotations

import difflib
import functools
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.generation import GenerationModel
from bentos.scheduling.continuous import Event, Text
from bentos.scheduling.streams import line
from headrace.runtime.contract import ContractViolation
from headrace.runtime.http import Refused, parse_json, read_json_body, require_json, to_json

if TYPE_CHECKING:
    from bentos.app import PredictionApp

MOST_CHOICES = 8
"""`n` of one request."""
MOST_SEED = 2**53 - 1
NEUTRAL: dict[str, tuple[Any, ...]] = {
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
"""Fields that would change the answer, and are not to be had: with which values, beside null, they change nothing."""
HARMLESS = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "prediction", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity"),
}
"""Fields that change nothing here."""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Common(msgspec.Struct, kw_only=True):
    """What both ways of asking have. `top_k` is an extension."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Completion(Common, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1)]
    echo: bool | None = None


class Part(msgspec.Struct):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class Chat(Common, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None


Endpoint = Callable[[Any, Request], Awaitable[Response]]


def _in_its_shape(endpoint: Endpoint) -> Endpoint:
    """Refusals as OpenAI has them: `{"error": {"message", "type", "param", "code"}}`."""

    @functools.wraps(endpoint)
    async def answer(self: Any, request: Request) -> Response:
        try:
            return await endpoint(self, request)
        except ContractViolation as violation:
            request.state.code = "contract_violation"
            field = violation.path.rpartition(".")[2]
            too_long = field == "prompt" and violation.expected.endswith(("tokens", "characters"))
            message = f"{field}: expected {violation.expected}, got {violation.got}"
            return _error(400, message, field, "context_length_exceeded" if too_long else "invalid_value")
        except Refused as refused:
            if refused.status in (401, 403):
                raise  # one shape, at the door and here, whatever was asked for
            request.state.code = refused.code
            param: str | None = refused.details.get("param", "model" if refused.status == 404 else None)
            return _error(refused.status, refused.message, param, refused.code, refused.headers)

    return answer


def _error(status: int, message: str, param: str | None, code: str, headers: dict[str, str] | None = None) -> Response:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return to_json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


class OpenAI:
    """The routes of this protocol, for the model that `app` holds."""

    def __init__(self, app: PredictionApp) -> None:
        self.app = app
        self.routes = [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    @_in_its_shape
    async def complete(self, request: Request) -> Response:
        """`{"model", "prompt", ...}` to `{"choices": [{"text", "index", "finish_reason"}], "usage"}`."""
        asked = await self._read(request, Completion)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        return await self._answer(request, asked, prompts, _Completions(asked, prompts))

    @_in_its_shape
    async def chat(self, request: Request) -> Response:
        """`{"model", "messages", ...}` to `{"choices": [{"message": {"role", "content"}, "finish_reason"}], "usage"}`."""
        asked = await self._read(request, Chat)
        asked.max_tokens = asked.max_completion_tokens or asked.max_tokens
        return await self._answer(request, asked, ["\n".join(map(_content, asked.messages))], _Chats(asked))

    async def _read(self, request: Request, kind: type[Any]) -> Any:
        require_json(request)
        with self.app.held_body() as hold:
            body = await read_json_body(request, hold)
            return _parse(await self.app.convert(len(body), lambda: parse_json(body)), kind)

    async def _answer(self, request: Request, asked: Common, prompts: list[str], shape: _Shape) -> Response:
        model = self.app.model_for(request, asked.model)
        if not isinstance(model, GenerationModel):
            raise _refused("model", f"{model.name!r} writes no texts: ask POST /v1/models/{model.name}/predict")
        texts = _texts(model, asked, prompts)
        await self.app.spend(request, len(texts))
        head = {
            "id": f"{shape.prefix}-{request.state.request_id}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"{model.name}@{model.version}",
        }
        usage = _Usage(texts, asked.n or 1)
        if asked.stream:
            response = self._stream(request, asked, texts, shape, head, usage)
            self.app.account(request, rows=len(texts))
            return response
        found = await self.app.streams.join(request, model, texts)
        usage.completion = sum(answer["tokens"] for answer in found)
        self.app.account(request, rows=len(texts), tokens=usage.completion, answers=found)
        choices = [{"index": i, **shape.whole(i, answer["text"]), "finish_reason": answer["finish_reason"], "logprobs": None}
                   for i, answer in enumerate(found)]  # fmt: skip
        return to_json({**head, "object": shape.whole_object, "choices": choices, "usage": usage.show()})

    def _stream(
        self, request: Request, asked: Common, texts: list[Text], shape: _Shape, head: dict[str, Any], usage: _Usage
    ) -> Response:
        head = {**head, "object": shape.piece_object}
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        extra = {"usage": None} if with_usage else {}
        begun: set[int] = set()

        def chunk(place: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
            return line({**head, "choices": [{"index": place, **delta, "finish_reason": finish, "logprobs": None}], **extra})

        def to_line(place: int, event: Event) -> bytes:
            first = [] if place in begun else shape.first(place)
            begun.add(place)
            usage.completion += 1
            finish = event.get("finish_reason")
            lines = [chunk(place, delta) for delta in first]
            if event["text"]:
                lines.append(chunk(place, shape.piece(event["text"])))
            if finish:
                lines.append(chunk(place, shape.last(), finish))
            return b"".join(lines)

        def end() -> bytes:
            return (line({**head, "choices": [], "usage": usage.show()}) if with_usage else b"") + b"data: [DONE]\n\n"

        return self.app.streams.send(request, texts, to_line, end)


class _Usage:
    def __init__(self, texts: list[Text], n: int) -> None:
        self.prompt = sum(len(text.prompt) for text in texts[::n])
        self.completion = 0

    def show(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class _Completions:
    """How a completion is put, whole and piece by piece."""

    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Completion, prompts: list[str]) -> None:
        self._echo = [prompt for prompt in prompts for _ in range(asked.n or 1)] if asked.echo else []

    def whole(self, place: int, text: str) -> dict[str, Any]:
        return {"text": self._echo[place] + text if self._echo else text}

    def first(self, place: int) -> list[dict[str, Any]]:
        return [{"text": self._echo[place]}] if self._echo else []

    def piece(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def last(self) -> dict[str, Any]:
        return {"text": ""}


class _Chats:
    """How a chat's answer is put."""

    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Chat) -> None:
        del asked

    def whole(self, place: int, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def first(self, place: int) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def last(self) -> dict[str, Any]:
        return {"delta": {}}


_Shape = _Completions | _Chats


def _parse(payload: Any, kind: type[Any]) -> Any:
    """The request, as far as it can be had here.

    Raises:
        Refused: 400, with the field at fault.
    """
    if not isinstance(payload, dict):
        raise _refused(None, "expected a JSON object")
    known = set(kind.__struct_fields__)
    for name, value in payload.items():
        if name in known or name in HARMLESS or value is None:
            continue
        if name not in NEUTRAL:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise _refused(name[:100], f"unknown field {name[:100]!r}{hint}", "unknown_parameter")
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL[name]):
            raise _refused(name, f"{name} is not supported by this server", "unsupported_parameter")
    try:
        return msgspec.convert({name: value for name, value in payload.items() if name in known}, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        named = re.search(r"missing required field `(\w+)`", message)
        param = re.split(r"[.\[`]", path)[0] or (named[1] if named else None)
        raise _refused(param, f"{path.rstrip('`') or param}: {message}") from None


def _texts(model: GenerationModel, asked: Common, prompts: list[str]) -> list[Text]:
    """`n` texts for each prompt, in their order. The first is what the seed alone writes, the next what the next seed does.

    Raises:
        ContractViolation: the model's contract does not hold it.
    """
    n = asked.n or 1
    given = {name: getattr(asked, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    given = {name: value for name, value in given.items() if value is not None}
    seeds = [{} if asked.seed is None else {"seed": (asked.seed + i) & MOST_SEED} for i in range(n)]
    texts = model.streams([{"prompt": prompt, **given, **seed} for prompt in prompts for seed in seeds])
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    longest = next((field.longest for field in model.contract.inputs if field.name == "stop"), None)
    if longest is not None and any(len(stop) > longest for stop in stops):
        raise ContractViolation("stop", f"at most {longest} characters", f"{max(map(len, stops))}")
    if not stops:
        return texts
    return [replace(text, writing=replace(text.writing, stop=tuple(stops))) for text in texts]


def _content(message: Message) -> str:
    return message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)


def _refused(param: str | None, message: str, code: str = "invalid_value") -> Refused:
    return Refused(400, code, message, param=param)
