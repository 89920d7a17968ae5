"""llama.cpp: serves language models in the format GGUF, on CPUs with quantized weights. https://github.com/ggml-org/llama.cpp"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from bentos.models.runtimes.runtime import Runtime
from bentos.models.served_model import NotServable
from headrace.runtime.gguf_file import InvalidGGUF, read_gguf
from headrace.runtime.http import Refused
from headrace.runtime.memory import free_memory

PACKAGE, EXTRA = "xllamacpp", "headrace[llama]"
CONTEXT, PARALLEL = 4096, 4
"""Defaults; a model that was trained for less has a smaller context."""
STEP = 256
"""llama.cpp rounds a context up to a multiple of this."""
LOOKS_LIKE_CONTROL = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|<(?:start|end)_of_turn>|\[/?INST\]")
"""llama.cpp takes such tokens for control tokens even where the file does not say so."""
BREAK = "\u200b"
"""A space of no width, which is put into a control token of a client's text: its characters are left, the token is not."""
RANDOM_SEED = 2**32 - 1
"""The seed that means any seed to llama.cpp."""


class LlamaCpp(Runtime):
    """Starts llama.cpp's server through the package xllamacpp."""

    name: ClassVar[str] = "llama.cpp"

    def __init__(
        self, model: Path, served_name: str, threads: int, context: int | None = None, parallel: int | None = None
    ) -> None:
        """
        Args:
            served_name: the model's name in answers.
            context: tokens of one request and its answer; by default what the model was trained for, at most `CONTEXT`.
            parallel: requests that are answered at once, each with a context of its own.

        Raises:
            NotServable: the file is not a complete GGUF file.
        """
        try:
            self._file = read_gguf(model)
        except (OSError, InvalidGGUF) as error:
            raise NotServable(f"{model.name} is not a complete GGUF file: {error}") from None
        self._model, self._served_name, self._threads = model, served_name, threads
        self.context = -(-(context or min(self._file.context or CONTEXT, CONTEXT)) // STEP) * STEP
        self.concurrency = parallel or PARALLEL
        looks_like = [
            token for token in self._file.metadata.get("tokenizer.ggml.tokens", []) if LOOKS_LIKE_CONTROL.match(token)
        ]
        control = {token for token in [*self._file.control_tokens, *looks_like] if len(token) > 1}
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True)))) if control else None

    def check(self) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise NotServable(f"the runtime llama.cpp is not installed: pip install '{EXTRA}'")
        needed = self.needed_bytes
        if needed > (free := free_memory()):
            raise NotServable(
                f"{self._model.name} needs {needed / 1e6:,.0f} MB of memory ({self._file.size_bytes / 1e6:,.0f} MB of weights; "
                f"the rest for {self.concurrency} x {self.context:,} tokens), and {free / 1e6:,.0f} MB are free; set "
                "serve.context or serve.parallel lower, or take a smaller quantization"
            )

    @property
    def needed_bytes(self) -> int:
        return self._file.size_bytes + self._file.state_bytes(self.concurrency * self.context)

    def command(self, socket: Path) -> list[str]:
        options = {
            "model": self._model,
            "socket": socket,
            "name": self._served_name,
            "threads": self._threads,
            "context": self.context,
            "parallel": self.concurrency,
            "parent": os.getpid(),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-P", str(Path(__file__).with_name("llama_server.py")), *arguments]

    def takes_chats(self) -> bool:
        return self._file.chat_template is not None

    def takes_tools(self) -> bool:
        return "tools" in (self._file.chat_template or "")

    def to_text(self, text: str) -> str:
        while self._control is not None and self._control.search(text):
            text = self._control.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        return text

    def to_request(self, fields: dict[str, Any]) -> dict[str, Any]:
        body = {name: value for name, value in fields.items() if value is not None}
        if "seed" in body:
            # Logits differ in their last digits with what was read from the cache, and a seed promises the same text.
            body |= {"seed": body["seed"] % RANDOM_SEED, "cache_prompt": False}
        if body.get("stream"):
            body |= {"stream_options": {"include_usage": True}, "return_progress": True}
        return body

    def to_refusal(self, status: int, error: dict[str, Any], fields: dict[str, Any]) -> Refused | None:
        message, kind = str(error.get("message", ""))[:1000], error.get("type")
        text = "messages" if "messages" in fields else "prompt"
        if kind == "exceed_context_size_error":
            limit, tokens = int(error.get("n_ctx") or self.context), int(error.get("n_prompt_tokens") or 0)
            message = f"{text}: at most {limit:,} tokens with the answer fit the model's context, got {tokens:,}"
            return Refused(400, "context_length_exceeded", message, param=text)
        named = next((name for name in ("response_format", "tools") if fields.get(name)), text)
        if "schema" in message or "grammar" in message or "parser generation failed" in message:
            return Refused(400, "invalid_value", f"{named}: {message}", param=named)
        if "emplate" in message or "inja" in message:
            return Refused(400, "invalid_value", f"the model's chat template refuses the messages: {message}", param=text)
        if "does not match the expected" in message:
            wrong = f"the model wrote neither a text nor what {named} asks for; try again"
            return Refused(422, "no_answer", wrong, param=named)
        if status >= 500 and kind != "invalid_request_error":
            return None
        return Refused(400, "invalid_value", message, param=text)
