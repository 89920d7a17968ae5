"""OpenAI's API for text-generating models: `/v1/completions` and `/v1/chat/completions`.

Models that were trained here continue a text: the prompt of a chat is the contents of its messages, one per line, and the
answer is what follows. Requests to language models that a runtime serves are passed to it (see `language.py`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.generation import GenerationModel
from bentos.models.language_model import LanguageModel
from bentos.protocols.language import Language
from bentos.protocols.openai_fields import StreamOptions, openai_errors, parse_fields, refused_field
from bentos.protocols.server import ModelServer
from bentos.protocols.token_limits import reserve_texts, say_why_ended
from bentos.scheduling.continuous import Event
from bentos.scheduling.streams import line
from bentos.telemetry.token_limits import Grant
from headrace.runtime.generation import GenerationRequest
from headrace.runtime.http import parse_json, read_json_body, require_json, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.violations import ContractViolation

MAX_CHOICES = 8
"""Largest `n` of a request."""
MAX_SEED = 2**53 - 1


class Common(msgspec.Struct, kw_only=True):
    """Fields of both requests. `top_k` is an extension."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Completion(Common, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1)]
    echo: bool | None = None


class ContentPart(msgspec.Struct):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class Chat(Common, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None


class OpenAI:
    """Routes of this protocol for the model of `app`."""

    def __init__(self, app: ModelServer) -> None:
        self.app = app
        self._language = Language(app)
        self.routes = [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    @openai_errors
    async def complete(self, request: TrackedRequest) -> Response:
        """Answers `{"model", "prompt", ...}` with `{"choices": [{"text", "index", "finish_reason"}], "usage"}`."""
        if isinstance(self.app.model, LanguageModel):
            return await self._language.complete(request)
        asked = await self._read(request, Completion)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        return await self._respond(request, asked, prompts, _Completions(asked, prompts))

    @openai_errors
    async def chat(self, request: TrackedRequest) -> Response:
        """Answers `{"model", "messages", ...}` with `{"choices": [{"message": ..., "finish_reason"}], "usage"}`."""
        if isinstance(self.app.model, LanguageModel):
            return await self._language.chat(request)
        asked = await self._read(request, Chat)
        asked.max_tokens = asked.max_completion_tokens or asked.max_tokens
        return await self._respond(request, asked, ["\n".join(map(_content, asked.messages))], _Chats(asked))

    async def _read(self, request: TrackedRequest, struct: type[Any]) -> Any:
        require_json(request)
        with self.app.body_memory() as reserve:
            body = await read_json_body(request, reserve)
            return parse_fields(await self.app.convert(len(body), lambda: parse_json(body)), struct)

    async def _respond(self, request: TrackedRequest, asked: Common, prompts: list[str], form: _Form) -> Response:
        model = self.app.model_for(request, asked.model)
        if not isinstance(model, GenerationModel):
            raise refused_field("model", f"{model.name!r} does not generate text; use POST /v1/models/{model.name}/predict")
        texts = _texts(model, asked, prompts)
        await self.app.take_quota(request, len(texts))
        head = {
            "id": f"{form.prefix}-{request.request_id}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"{model.name}@{model.version}",
        }
        usage = _Usage(texts, asked.n or 1)
        texts, grant = await reserve_texts(self.app, request, texts, usage.prompt)
        if asked.stream:
            response = self._stream(request, asked, texts, form, head, usage, grant)
            self.app.record_usage(request, rows=len(texts), prompt_tokens=usage.prompt)
            self._sample(request, prompts, asked.n or 1, None)
            return response
        found = await self.app.streams.join(request, model, texts)
        say_why_ended(found, grant)
        usage.completion = sum(answer["tokens"] for answer in found)
        self.app.record_usage(request, rows=len(texts), tokens=usage.completion, prompt_tokens=usage.prompt, answers=found)
        self._sample(request, prompts, asked.n or 1, found)
        ends = [{name: answer[name] for name in ("finish_reason", "finish_details") if name in answer} for answer in found]
        choices = [
            {"index": i, **form.whole(i, answer["text"]), **end, "logprobs": None}
            for i, (answer, end) in enumerate(zip(found, ends, strict=True))
        ]
        return to_json({**head, "object": form.whole_object, "choices": choices, "usage": usage.show()})

    def _sample(self, request: TrackedRequest, prompts: list[str], n: int, answers: list[Event] | None) -> None:
        """Offers the texts of a request, `n` for each prompt, to the sample; a stream has no answers yet."""
        samples, rows = self.app.samples, len(prompts) * n
        if samples is not None and samples.wants(rows):
            samples.take(
                request, rows, lambda row: ({"prompt": prompts[row // n]}, None if answers is None else answers[row], True)
            )

    def _stream(
        self,
        request: TrackedRequest,
        asked: Common,
        texts: list[GenerationRequest],
        form: _Form,
        head: dict[str, Any],
        usage: _Usage,
        grant: Grant | None,
    ) -> Response:
        head = {**head, "object": form.chunk_object}
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        extra = {"usage": None} if with_usage else {}
        begun: set[int] = set()

        def chunk(place: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
            why = grant.end_of(place, finish) if grant else {}
            choice = {"index": place, **delta, "finish_reason": finish, **why, "logprobs": None}
            return line({**head, "choices": [choice], **extra})

        def to_line(place: int, event: Event) -> bytes:
            first = [] if place in begun else form.first(place)
            begun.add(place)
            usage.completion += 1
            finish = event.get("finish_reason")
            lines = [chunk(place, delta) for delta in first]
            if event["text"]:
                lines.append(chunk(place, form.chunk(event["text"])))
            if finish:
                lines.append(chunk(place, form.last(), finish))
            return b"".join(lines)

        def end() -> bytes:
            return (line({**head, "choices": [], "usage": usage.show()}) if with_usage else b"") + b"data: [DONE]\n\n"

        return self.app.streams.send(request, texts, to_line, end)


class _Usage:
    def __init__(self, texts: list[GenerationRequest], n: int) -> None:
        self.prompt = sum(len(text.prompt) for text in texts[::n])
        self.completion = 0

    def show(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class _Completions:
    """Builds the choices of a completion, whole or in chunks."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Completion, prompts: list[str]) -> None:
        self._echo = [prompt for prompt in prompts for _ in range(asked.n or 1)] if asked.echo else []

    def whole(self, place: int, text: str) -> dict[str, Any]:
        return {"text": self._echo[place] + text if self._echo else text}

    def first(self, place: int) -> list[dict[str, Any]]:
        return [{"text": self._echo[place]}] if self._echo else []

    def chunk(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def last(self) -> dict[str, Any]:
        return {"text": ""}


class _Chats:
    """Builds the choices of a chat's answer, whole or in chunks."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Chat) -> None:
        del asked

    def whole(self, place: int, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def first(self, place: int) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def chunk(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def last(self) -> dict[str, Any]:
        return {"delta": {}}


_Form = _Completions | _Chats


def _texts(model: GenerationModel, asked: Common, prompts: list[str]) -> list[GenerationRequest]:
    """Returns `n` texts for each prompt, in their order. The first uses the seed, the next one the seed plus 1, and so on.

    Raises:
        ContractViolation: a field breaks the model's contract.
    """
    n = asked.n or 1
    given = {name: getattr(asked, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    given = {name: value for name, value in given.items() if value is not None}
    seeds = [{} if asked.seed is None else {"seed": (asked.seed + i) & MAX_SEED} for i in range(n)]
    texts = model.generation_requests([{"prompt": prompt, **given, **seed} for prompt in prompts for seed in seeds])
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    longest = next((field.longest for field in model.contract.inputs if field.name == "stop"), None)
    if longest is not None and any(len(stop) > longest for stop in stops):
        raise ContractViolation("stop", f"at most {longest} characters", f"{max(map(len, stops))}")
    if not stops:
        return texts
    return [replace(text, sampling=replace(text.sampling, stop=tuple(stops))) for text in texts]


def _content(message: Message) -> str:
    return message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
