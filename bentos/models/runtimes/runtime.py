"""The interface of a runtime: an inference server with OpenAI's routes, which a replica starts and passes requests to.

A further runtime is one file beside `llama_cpp.py` and one line in `bentos.models.language_model._runtime_for`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from headrace.runtime.http import Refused


class Runtime(ABC):
    """How one kind of inference server is started, asked and understood."""

    name: ClassVar[str]
    """As its makers write it."""
    tokenize_path: ClassVar[str] = "/tokenize"
    """Takes `{"content"}` of a text, and gives `{"tokens"}`."""
    template_path: ClassVar[str] = "/apply-template"
    """Takes the fields of a chat, and gives `{"prompt"}` as the model reads it."""
    concurrency: int
    """Requests that it works on at once."""
    context: int
    """Most tokens of a prompt and its answer together."""

    @abstractmethod
    def check(self) -> None:
        """Checks before the start that the package, the model's file and the machine's memory allow it.

        Raises:
            NotServable: with what is missing.
        """

    @property
    @abstractmethod
    def needed_bytes(self) -> int:
        """Memory for the weights, which replicas on one machine share, and for requests in progress."""

    @abstractmethod
    def command(self, socket: Path) -> list[str]:
        """Returns the command of a server that listens on the Unix socket, and gives 200 at `/health` when it is ready."""

    @abstractmethod
    def takes_chats(self) -> bool:
        """Whether the model says how a chat is written."""

    @abstractmethod
    def takes_tools(self) -> bool:
        """Whether the model says how a chat describes tools and their calls."""

    @abstractmethod
    def to_text(self, text: str) -> str:
        """Returns the text of a client without control tokens, so that it cannot end its message or begin another one."""

    @abstractmethod
    def to_request(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns the body for the server: `fields` of OpenAI's API and its extensions, in the server's own words."""

    @abstractmethod
    def to_refusal(self, status: int, error: dict[str, Any], fields: dict[str, Any]) -> Refused | None:
        """Returns the refusal for an error of the server, if the client's request is to blame.

        Args:
            error: what it gave as `error`.
            fields: of the request.
        """
