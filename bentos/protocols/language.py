"""Chats and completions of a language model that a runtime serves: passed to it, and metered on the way."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bentos.models.language_model import LanguageModel, error_in
from bentos.models.runtimes.upstream import Exchange, UpstreamLost, send
from bentos.protocols.language_fields import (
    NEUTRAL_VALUES,
    Chat,
    Common,
    Completion,
    fields_of_chat,
    fields_of_completion,
    to_completion_logprobs,
)
from bentos.protocols.openai_fields import parse_fields, refused_field
from bentos.protocols.server import ModelServer
from bentos.protocols.token_limits import count_prompt
from bentos.scheduling.slots import TenantSlots
from bentos.scheduling.worker_thread import wait_for
from bentos.telemetry.token_limits import Grant
from headrace.runtime.http import Refused, parse_json, read_json_body, require_json, to_json
from headrace.runtime.http_messages import TrackedRequest

logger = logging.getLogger("headrace.serve")
WAITING = 3
"""Requests in progress or waiting, as a multiple of those that the runtime works on at once."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies must not buffer events
]
END = b"\n\n"
DONE = b"data: [DONE]"
USAGE, ERROR, PROGRESS = b'"usage":{', b'"error":{', b'"prompt_progress":{'
"""Only in events of this kind: within a text the quotes are escaped."""
TEXTS = (b'"delta":{"content":"', b'"text":"', b'"delta":{"reasoning_content":"')
PROBABILITIES = b'"logprobs":{'
FINISH = b'"finish_reason":"length"'
FIRST_INDEX = b'"index":0'
ID = re.compile(rb'"id":"(chatcmpl-\w+)"')
FINGERPRINT = re.compile(rb'"system_fingerprint":"[^"]*"')


@dataclass
class _Asked:
    """A request that was understood."""

    path: str
    prefix: str
    """Of the answer's id."""
    fields: list[dict[str, Any]]
    """What the runtime is sent for each choice."""
    n: int
    """Choices for each prompt."""
    prompts: list[dict[str, Any]]
    """Inputs as a sample of requests holds them, one for each choice."""
    with_usage: bool = False
    with_probabilities: bool = False
    """Whether the runtime gives the probabilities of a completion, in the form of a chat."""
    grant: Grant | None = None
    """What the limits of the caller's tokens leave, if there are some."""

    def end_of(self, choice: int, finish_reason: str | None) -> dict[str, Any]:
        """Returns the fields that say why a choice ended, if it is because of a limit."""
        return {} if self.grant is None else self.grant.end_of(choice, finish_reason)


@dataclass
class _Counts:
    """Tokens of one choice."""

    prompt: int = 0
    generated: int = 0
    first: float | None = None
    """When the first token came."""
    last: float = 0.0
    characters: int = 0
    """Of the text so far, where probabilities say at which character their token begins."""


class Language:
    """Answers requests to the language model of `app`."""

    def __init__(self, app: ModelServer) -> None:
        self.app = app
        self._slots: TenantSlots | None = None

    async def complete(self, request: TrackedRequest) -> Response:
        """Answers `POST /v1/completions`.

        Raises:
            Refused: 400, with the field; 403, 404, 429, 503 or 504.
        """
        asked = await self._read(request, Completion)
        model = self._model(request, asked)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        n = asked.n or 1
        fields = [fields_of_completion(asked, prompt, model.runtime.to_text) for prompt in prompts]
        inputs = [{"prompt": prompt} for prompt in prompts for _ in range(n)]
        choices = _choices(fields, asked)
        understood = _Asked("/v1/completions", "cmpl", choices, n, inputs, with_probabilities=asked.logprobs is not None)
        return await self._respond(request, model, asked, understood)

    async def chat(self, request: TrackedRequest) -> Response:
        """Answers `POST /v1/chat/completions`.

        Raises:
            Refused: 400, with the field; 403, 404, 429, 503 or 504.
        """
        asked = await self._read(request, Chat)
        model = self._model(request, asked)
        if not model.runtime.takes_chats():
            raise refused_field("model", f"{model.name!r} has no chat template; use POST /v1/completions")
        if (count := len(asked.messages)) > model.runtime.context:
            message = f"messages: at most {model.runtime.context:,} fit the model's context, got {count:,}"
            raise refused_field("messages", message, "context_length_exceeded")
        if asked.tools and asked.tool_choice != "none" and not model.runtime.takes_tools():
            raise refused_field("tools", f"tools: the chat template of {model.name!r} has no tools", "unsupported_parameter")
        fields, n = fields_of_chat(asked, model.runtime.to_text), asked.n or 1
        inputs = [{"prompt": "\n".join(str(message["content"]) for message in fields["messages"])}] * n
        choices = _choices([fields], asked)
        return await self._respond(request, model, asked, _Asked("/v1/chat/completions", "chatcmpl", choices, n, inputs))

    async def _read(self, request: TrackedRequest, struct: type[Any]) -> Any:
        require_json(request)
        with self.app.body_memory() as reserve:
            body = await read_json_body(request, reserve)
            return parse_fields(await self.app.convert(len(body), lambda: parse_json(body)), struct, NEUTRAL_VALUES)

    def _model(self, request: TrackedRequest, asked: Common) -> LanguageModel:
        model = self.app.model_for(request, asked.model)
        assert isinstance(model, LanguageModel)
        if self._slots is None:
            self._slots = TenantSlots(WAITING * model.runtime.concurrency)
        return model

    async def _respond(self, request: TrackedRequest, model: LanguageModel, common: Common, asked: _Asked) -> Response:
        assert self._slots is not None
        asked.with_usage = common.stream_options is not None and common.stream_options.include_usage
        await self.app.take_quota(request, len(asked.fields))
        with ExitStack() as stack:
            stack.enter_context(self._slots.take(request.tenant))
            await self._reserve(request, model, asked)
            request.is_worked_on = True
            if not common.stream:
                return await wait_for(asyncio.ensure_future(self._whole(request, model, asked)))
            exchanges = await wait_for(asyncio.ensure_future(_start(stack, model, asked)))
            self.app.record_usage(request, rows=len(asked.fields))
            self._sample(request, asked, None)
            return _Stream(_Passing(self.app, request, model, asked, exchanges), stack.pop_all())

    async def _reserve(self, request: TrackedRequest, model: LanguageModel, asked: _Asked) -> None:
        """Takes the tokens of the request from the caller's limits, and limits each choice to what they leave.

        Raises:
            Refused: 413 or 429, they do not leave enough; 503, the quota store or the runtime does not answer.
        """
        if not request.caller.limits_tokens:
            return
        try:
            prompts = [await count_prompt(model, fields) for fields in asked.fields[:: asked.n]]
        except UpstreamLost:
            raise _lost() from None
        rest = [max(1, model.runtime.context - tokens) for tokens in prompts for _ in range(asked.n)]
        wanted = [min(fields["max_tokens"] or most, most) for fields, most in zip(asked.fields, rest, strict=True)]
        asked.grant = await self.app.reserve_tokens(request, sum(prompts), wanted)
        if asked.grant is not None:
            for fields, tokens in zip(asked.fields, asked.grant.tokens, strict=True):
                fields["max_tokens"] = tokens

    async def _whole(self, request: TrackedRequest, model: LanguageModel, asked: _Asked) -> Response:
        """Returns one answer with all choices."""
        with ExitStack() as stack:
            exchanges = await _start(stack, model, asked)
            try:
                bodies = await asyncio.gather(*(exchange.read_all() for exchange in exchanges))
            except UpstreamLost:
                raise _lost() from None
        found = [msgspec.json.decode(body) for body in bodies]
        answer, usages = found[0], [one.get("usage") or {} for one in found]
        answer.pop("timings", None)
        answer |= {"id": f"{asked.prefix}-{request.request_id}", "system_fingerprint": _fingerprint(model)}
        answer["choices"] = [{**one["choices"][0], "index": i} for i, one in enumerate(found)]
        for i, choice in enumerate(answer["choices"]):
            choice |= asked.end_of(i, choice.get("finish_reason"))
        if asked.with_probabilities:
            answer["choices"] = [{**choice, "logprobs": to_completion_logprobs(choice)} for choice in answer["choices"]]
        prompt = sum(usage.get("prompt_tokens", 0) for usage in usages[:: asked.n])
        generated = sum(usage.get("completion_tokens", 0) for usage in usages)
        answer["usage"] = {
            **usages[0],
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }
        texts = [
            {"text": _text(choice), "finish_reason": choice.get("finish_reason"), "tokens": usage.get("completion_tokens", 0)}
            for choice, usage in zip(answer["choices"], usages, strict=True)
        ]
        self.app.record_usage(request, rows=len(found), tokens=generated, prompt_tokens=prompt, answers=texts)
        self._sample(request, asked, texts)
        return to_json(answer)

    def _sample(self, request: TrackedRequest, asked: _Asked, answers: list[dict[str, Any]] | None) -> None:
        """Offers the texts of a request to the sample; a stream has no answers yet."""
        samples, rows = self.app.samples, len(asked.prompts)
        if samples is not None and samples.wants(rows):
            samples.take(request, rows, lambda row: (asked.prompts[row], None if answers is None else answers[row], True))


class _Passing:
    """The events of a stream on their way from the runtime to the client."""

    def __init__(
        self, app: ModelServer, request: TrackedRequest, model: LanguageModel, asked: _Asked, exchanges: list[Exchange]
    ) -> None:
        self._app, self._request, self._model, self._asked = app, request, model, asked
        self._exchanges = exchanges
        self._counts = [_Counts() for _ in exchanges]
        self._id = f"{asked.prefix}-{request.request_id}".encode()
        self._fingerprint = b'"system_fingerprint":' + msgspec.json.encode(_fingerprint(model))
        self._replaced: list[tuple[bytes, bytes]] = []
        self._last: dict[str, Any] = {}

    def close(self) -> None:
        """Ends the work of the runtime."""
        for exchange in self._exchanges:
            exchange.close()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yields what the client is sent, as it comes. A failure in the middle of the stream becomes an event with `error`."""
        try:
            if len(self._exchanges) == 1:
                async for found in self._lines_of(0):
                    yield found
            else:
                async for found in self._merged():
                    yield found
            if self._asked.with_usage:
                yield b"data: " + msgspec.json.encode({**self._last, "choices": [], "usage": self._usage()}) + END
            yield DONE + END
        except UpstreamLost:
            self._request.code = "not_ready"
            logger.error("request %s: %s", self._request.request_id, self._model.failure or "the runtime closed the stream")
            error = {"message": "the model's server ended; send the request again", "type": "server_error"}
            yield b"data: " + msgspec.json.encode({"error": {**error, "param": None, "code": "not_ready"}}) + END

    def finish(self) -> None:
        """Observes how fast the texts came."""
        for counts in self._counts:
            if counts.first is not None:
                first, further = counts.first - self._request.started, counts.last - counts.first
                self._app.observe_text(first, further, counts.generated)

    async def _merged(self) -> AsyncIterator[bytes]:
        """Yields events of all choices as they come."""
        found: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

        async def pass_on(place: int) -> None:
            try:
                async for data in self._lines_of(place):
                    found.put_nowait(data)
                found.put_nowait(None)
            except UpstreamLost as error:
                found.put_nowait(error)

        tasks = [asyncio.ensure_future(pass_on(place)) for place in range(len(self._exchanges))]
        try:
            left = len(tasks)
            while left:
                data = await found.get()
                if isinstance(data, BaseException):
                    raise data
                if data is None:
                    left -= 1
                else:
                    yield data
        finally:
            for task in tasks:
                task.cancel()

    async def _lines_of(self, place: int) -> AsyncIterator[bytes]:
        exchange, rest = self._exchanges[place], b""
        while data := await exchange.read():
            *events, rest = (rest + data).split(END)
            passed = b"".join([self._event(place, event.lstrip(b"\n")) for event in events])
            if passed:
                yield passed

    def _event(self, place: int, event: bytes) -> bytes:
        """Returns what the client is sent for an event of the runtime, and counts its tokens."""
        counts = self._counts[place]
        if any(text in event for text in TEXTS):
            counts.last = time.perf_counter()
            if counts.first is None:
                counts.first = counts.last
            counts.generated += 1
            self._app.record_usage(self._request, tokens=1)
        elif not event or event == DONE:
            return b""
        elif PROGRESS in event:
            self._count_prompt(place, int(_json(event).get("prompt_progress", {}).get("total", 0)))
            return b": reading\n\n"  # so that the load balancer does not take the stream for stuck
        elif ERROR in event:
            return self._error(event)
        if self._asked.grant is not None and FINISH in event:
            event = self._said_why(place, event)
        if USAGE in event:
            return self._end(place, event)
        if self._asked.with_probabilities and PROBABILITIES in event:
            found = _json(self._named(place, event))
            choice = found["choices"][0]
            choice["logprobs"] = to_completion_logprobs(choice, counts.characters)
            counts.characters += len(choice["text"])
            return b"data: " + msgspec.json.encode(found) + END
        return self._named(place, event) + END

    def _said_why(self, place: int, event: bytes) -> bytes:
        """Returns the event, with the reason why the text ends if that is a limit."""
        found = _json(event)
        for choice in found.get("choices", ()):
            choice |= self._asked.end_of(place, choice.get("finish_reason"))
        return b"data: " + msgspec.json.encode(found)

    def _named(self, place: int, event: bytes) -> bytes:
        """Returns the event under the id of this answer, with the index of its choice."""
        if not self._replaced and (found := ID.search(event)):
            self._replaced.append((found[1], self._id))
            if fingerprint := FINGERPRINT.search(event):
                self._replaced.append((fingerprint[0], self._fingerprint))
        if len(self._exchanges) > 1:
            event = event.replace(FIRST_INDEX, b'"index":%d' % place, 1)
            event = ID.sub(b'"id":"' + self._id + b'"', event, count=1)
        for old, new in self._replaced:
            event = event.replace(old, new, 1)
        return event

    def _end(self, place: int, event: bytes) -> bytes:
        """Counts the tokens of a choice that is complete, and returns its last event without them."""
        last = _json(self._named(place, event))
        usage, counts = last.pop("usage"), self._counts[place]
        last.pop("timings", None)
        self._count_prompt(place, int(usage.get("prompt_tokens", 0)))
        more = max(0, int(usage.get("completion_tokens", 0)) - counts.generated)
        counts.generated += more
        if more:
            self._app.record_usage(self._request, tokens=more)
        self._last = {name: value for name, value in last.items() if name != "choices"}
        return b"data: " + msgspec.json.encode(last) + END if last.get("choices") else b""

    def _count_prompt(self, place: int, tokens: int) -> None:
        """Counts the tokens of a prompt once, whatever the number of choices for it."""
        counts = self._counts[place]
        if tokens > counts.prompt and place % self._asked.n == 0:
            self._app.record_usage(self._request, prompt_tokens=tokens - counts.prompt)
            counts.prompt = tokens

    def _error(self, event: bytes) -> bytes:
        error = error_in(event.partition(b"data: ")[2])
        logger.error("request %s: the runtime failed: %s", self._request.request_id, error.get("message"))
        refused = self._model.runtime.to_refusal(int(error.get("code") or 500), error, self._asked.fields[0])
        message, code = (refused.message, refused.code) if refused else ("the server failed; see its log", "internal")
        self._request.code = code
        found = {"message": message, "type": "server_error", "param": None, "code": code}
        return b"data: " + msgspec.json.encode({"error": found}) + END

    def _usage(self) -> dict[str, int]:
        prompt, generated = (sum(getattr(one, name) for one in self._counts) for name in ("prompt", "generated"))
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class _Stream(Response):
    """A stream of events; the runtime stops when the client disconnects."""

    status_code = 200

    def __init__(self, passing: _Passing, stack: ExitStack) -> None:
        self.raw_headers = list(HEADERS)
        self.background = None
        self._passing, self._stack = passing, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda _: self._passing.close())
        try:
            with self._stack:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for data in self._passing.lines():
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self._passing.finish()


def _choices(fields: list[dict[str, Any]], asked: Common) -> list[dict[str, Any]]:
    """Returns `n` choices for each prompt, in their order. The first uses the seed, the next one the seed plus 1, and so on."""
    stream = {"stream": True} if asked.stream else {}
    seeds = [{} if asked.seed is None else {"seed": asked.seed + i} for i in range(asked.n or 1)]
    return [{**one, **stream, **seed} for one in fields for seed in seeds]


async def _start(stack: ExitStack, model: LanguageModel, asked: _Asked) -> list[Exchange]:
    """Sends the requests for all choices, and returns their answers once all have begun; `stack` closes them.

    Raises:
        Refused: the runtime refuses one of them, or does not answer.
    """
    try:
        found = []
        for fields in asked.fields:
            body = msgspec.json.encode(model.runtime.to_request(fields))
            found.append(await send(model.process.address, asked.path, body))
            stack.callback(found[-1].close)
        for exchange, fields in zip(found, asked.fields, strict=True):
            if (status := await exchange.status()) != 200:
                error = error_in(await exchange.read_all())
                refused = model.runtime.to_refusal(status, error, fields)
                if refused is None:
                    raise RuntimeError(f"{model.runtime.name} answered {status}: {error.get('message')}")
                raise refused
        return found
    except UpstreamLost:
        raise _lost() from None


def _lost() -> Refused:
    return Refused(503, "not_ready", "the model's server does not answer; try again", {"retry-after": "1"})


def _fingerprint(model: LanguageModel) -> str:
    return f"{model.name}@{model.version}"


def _text(choice: dict[str, Any]) -> str:
    found = choice["message"].get("content") if "message" in choice else choice.get("text")
    return found if isinstance(found, str) else ""


def _json(event: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(event.partition(b"data: ")[2])
    return found
