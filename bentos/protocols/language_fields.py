"""Fields of OpenAI's API that language models of a runtime take, and what of them the runtime is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bentos.protocols.openai_fields import StreamOptions, refused_field

MAX_CHOICES = 8
"""Largest `n` of a request."""
MAX_FORM_BYTES = 32 * 1024
"""Largest schema of an answer: a runtime compares each token with it, and meanwhile generates for no one else."""
MAX_TOOLS_BYTES = 256 * 1024
"""Largest description of the tools."""
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
"""Unsupported fields, with the values (beside null) that are accepted because they leave the answer unchanged."""
COMMON_FIELDS = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "logprobs", "seed"),
)
"""Fields that the runtime takes under the same name."""
CHAT_FIELDS = ("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format")
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Common(msgspec.Struct, kw_only=True):
    """Fields of both requests. `top_k`, `min_p` and `repeat_penalty` are extensions."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Completion(Common, kw_only=True):
    """A text to continue."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class ContentPart(msgspec.Struct):
    """A part of a message: texts only."""

    type: Literal["text"]
    text: str


class CalledFunction(msgspec.Struct):
    """The function that an assistant called."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct):
    """A call of a tool in an earlier answer."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"


class Message(msgspec.Struct, omit_defaults=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct, omit_defaults=True):
    """A function that the model may call; `parameters` is its JSON schema."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that the model may call."""

    function: Function
    type: Literal["function"]


class NamedFunction(msgspec.Struct):
    """The name of a function."""

    name: str


class ToolChoice(msgspec.Struct):
    """The tool that has to be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct, omit_defaults=True):
    """The schema of an answer in JSON."""

    schema: dict[str, Any]
    name: str = "answer"
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, omit_defaults=True):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Chat(Common, kw_only=True):
    """A conversation to continue."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


def fields_of_chat(asked: Chat, to_text: Callable[[str], str]) -> dict[str, Any]:
    """Returns what the runtime is sent for a chat.

    Args:
        to_text: takes control tokens out of a client's text.

    Raises:
        Refused: 400, fields that do not fit together.
    """
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refused_field("top_logprobs", "top_logprobs: needs logprobs: true")
    form = asked.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        raise refused_field("response_format", "response_format.json_schema: missing")
    for name, most in (("response_format", MAX_FORM_BYTES), ("tools", MAX_TOOLS_BYTES)):
        if (size := len(msgspec.json.encode(getattr(asked, name)))) > most:
            raise refused_field(name, f"{name}: expected at most {most:,} bytes of JSON, got {size:,}")
    fields = _common(asked)
    fields["max_tokens"] = asked.max_completion_tokens or asked.max_tokens
    fields["messages"] = [_message(message, i, to_text) for i, message in enumerate(asked.messages)]
    fields |= {name: msgspec.to_builtins(getattr(asked, name)) for name in CHAT_FIELDS}
    if not fields["tools"]:  # the others say how to call them
        fields = {name: value for name, value in fields.items() if "tool" not in name}
    else:
        fields["tools"] = _cleaned(fields["tools"], to_text)
    return fields


def fields_of_completion(asked: Completion, prompt: str, to_text: Callable[[str], str]) -> dict[str, Any]:
    """Returns what the runtime is sent to continue `prompt`, one of those of a request."""
    return {**_common(asked), "prompt": to_text(prompt)}


def to_completion_logprobs(choice: dict[str, Any], start: int = 0) -> dict[str, Any] | None:
    """Returns the probabilities of a choice in the form of completions; the runtime gives them in that of chats.

    Args:
        start: characters of the text before those of the choice.
    """
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    offsets = [start]
    for token in content[:-1]:
        offsets.append(offsets[-1] + len(token["token"]))
    return {
        "tokens": [token["token"] for token in content],
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": [{one["token"]: one["logprob"] for one in token["top_logprobs"]} for token in content],
        "text_offset": offsets[: len(content)],
    }


def _common(asked: Common) -> dict[str, Any]:
    fields = {name: getattr(asked, name, None) for name in COMMON_FIELDS}
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return {**fields, "model": asked.model, "stop": [stop for stop in stops if stop] or None}


def _message(message: Message, place: int, to_text: Callable[[str], str]) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise refused_field("messages", f"messages[{place}].content: expected a text, got nothing")
    found = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
        "name": message.name,
        "tool_calls": msgspec.to_builtins(message.tool_calls or None),
        "tool_call_id": message.tool_call_id,
    }
    return {name: _cleaned(value, to_text) for name, value in found.items() if value is not None}


def _cleaned(value: Any, to_text: Callable[[str], str]) -> Any:
    """Returns nested values with all texts cleaned."""
    if isinstance(value, str):
        return to_text(value)
    if isinstance(value, list):
        return [_cleaned(one, to_text) for one in value]
    if isinstance(value, dict):
        return {to_text(name): _cleaned(one, to_text) for name, one in value.items()}
    return value
