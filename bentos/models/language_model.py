"""A language model that a runtime made for such models serves, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bentos.models import progress
from bentos.models.runtimes.llama_cpp import LlamaCpp
from bentos.models.runtimes.process import RuntimeProcess
from bentos.models.runtimes.runtime import Runtime
from bentos.models.runtimes.upstream import UpstreamLost, opened
from bentos.models.served_model import InvalidOutput, NotServable, ServedModel
from headrace.runtime.contract import Contract
from headrace.runtime.violations import ContractViolation

MAX_TEXTS = 32
"""Most prompts of one request to `predict`."""
SILENT_SECONDS = 120.0
"""Longest time without a token."""
EVENT = b"data: "


class LanguageModel(ServedModel):
    """Answers the contract's `prompt` and sampling fields with `text`, `finish_reason`, `tokens` and `prompt_tokens`; chats and
    completions of OpenAI's API are passed to the runtime (see `bentos.protocols.language`)."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Starts the runtime for the model in `folder`.

        Raises:
            NotServable: the runtime is not installed, or cannot load the model.
        """
        super().__init__(folder)
        self.runtime = _runtime_for(folder, self.contract, threads)
        self.runtime.check()
        self.process = RuntimeProcess(self.runtime)
        try:
            self.sample_seconds = self._warm()
        except UpstreamLost:
            self.close()
            raise NotServable(f"{self.process.end} while it answered the contract's sample") from None
        except BaseException:
            self.close()
            raise

    @property
    def generates(self) -> bool:
        return True

    @property
    def failure(self) -> str:
        return self.process.end

    def close(self) -> None:
        self.process.close()

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Continues the prompts one after another.

        Raises:
            ContractViolation: also for a prompt that exceeds the model's context, or for more than `MAX_TEXTS` prompts.
            InvalidOutput: the runtime failed.
        """
        if len(instances) > MAX_TEXTS:
            raise ContractViolation("instances", f"at most {MAX_TEXTS} prompts", f"{len(instances)}")
        self.to_feeds(instances)  # checks them
        defaults = {field.name: field.default for field in self.contract.inputs if field.default is not None}
        return [self._continue({**defaults, **instance}, row) for row, instance in enumerate(instances)]

    def _continue(self, values: dict[str, Any], row: int) -> dict[str, Any]:
        seed, stop = values.pop("seed", None), values.pop("stop", None)
        fields = {**values, "model": self.name, "prompt": self.runtime.to_text(values["prompt"]), "stream": True}
        fields |= {"stop": [stop]} if stop else {}
        fields |= {"seed": seed} if seed is not None and seed >= 0 else {}
        body = msgspec.json.encode(self.runtime.to_request(fields))
        with opened(self.process.address, "/v1/completions", body, SILENT_SECONDS) as answer:
            if answer.status != 200:
                raise self._failed(answer.status, answer.read(), fields, row)
            texts, finish = [], "stop"
            usage: dict[str, int] = {}
            for line in answer:
                if not line.startswith(EVENT) or line.startswith(b"data: [DONE]"):
                    continue
                progress.report()
                event = msgspec.json.decode(line[len(EVENT) :])
                if "error" in event:
                    raise InvalidOutput(str(event["error"].get("message")))
                for choice in event.get("choices", ()):
                    texts.append(choice.get("text") or "")
                    finish = choice.get("finish_reason") or finish
                usage = event.get("usage") or usage
        counts = {"tokens": usage.get("completion_tokens", 0), "prompt_tokens": usage.get("prompt_tokens", 0)}
        return {"text": "".join(texts), "finish_reason": finish, **counts}

    def _failed(self, status: int, body: bytes, fields: dict[str, Any], row: int) -> Exception:
        error = error_in(body)
        refused = self.runtime.to_refusal(status, error, fields)
        if refused is None:
            return InvalidOutput(f"{self.runtime.name} answered {status}: {error.get('message')}")
        expected, _, got = refused.message.partition(": ")[2].partition(", got ")
        return ContractViolation(f"instances.{row}.prompt", expected or "another value", got or refused.message)


def error_in(body: bytes) -> dict[str, Any]:
    """Returns the error of a runtime's answer, as OpenAI's API has it."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {"message": body[:200].decode(errors="replace")}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {"message": str(error or found)[:200]}


def _runtime_for(folder: Path, contract: Contract, threads: int | None) -> Runtime:
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise NotServable("model.gguf is missing beside the contract")
    return LlamaCpp(found[0], contract.model, threads or contract.threads, contract.context, contract.parallel)
