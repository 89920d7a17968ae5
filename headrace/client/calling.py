"""A client of the door, for `headrace predict`: what any team's own client does, over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from headrace import console
from headrace.errors import DataError, HeadraceError, ServiceError, UsageError
from headrace.project import Project
from headrace.runtime.contract import Contract
from headrace.serving.access.tls import trust
from headrace.serving.access.tokens import operator_token
from headrace.serving.gateway.gateway import address
from headrace.settings import Settings

LONGER_SECONDS = 5.0
"""Waited for longer than the door waits for a model, so that its own word on it comes first."""


def token_to_call(project: Project, settings: Settings) -> str | None:
    """`HEADRACE_TOKEN` where it is set, else the operator's own; None where nobody asks for one."""
    given = os.environ.get("HEADRACE_TOKEN", "").strip()
    return given or (operator_token(project) if settings.access == "tokens" else None)


@dataclass(frozen=True)
class Described:
    """What a model says of itself."""

    contract: Contract
    streams: bool
    """Whether it can answer piece by piece."""


class Door:
    """Calls models through the balancer."""

    def __init__(self, project: Project, settings: Settings) -> None:
        self._base = address(settings)
        token = token_to_call(project, settings)
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._trust = trust(project, settings)
        self._patience = settings.request_seconds
        self._seconds = settings.request_seconds + LONGER_SECONDS

    def describe(self, model: str) -> Described:
        """What the model takes and gives.

        Raises:
            ServiceError: the door does not answer, or no replica is ready.
            UsageError: no such model is served.
        """
        found = self._call("GET", f"/v1/models/{model}", model)
        return Described(Contract.model_validate(found["contract"]), bool(found.get("streams")))

    def predict(self, model: str, instances: list[Any]) -> dict[str, Any]:
        """Predictions for `instances`, with the model's version and the request's id.

        Raises:
            DataError: an instance breaks the contract; the message names the field.
        """
        return self._call("POST", f"/v1/models/{model}/predict", model, {"instances": instances})

    def stream(self, model: str, instance: Any) -> Iterator[dict[str, Any]]:
        """The answer to `instance` as it is written: events with a `text` each; the last one also says what `predict` says.

        Raises:
            DataError: the instance breaks the contract.
            ServiceError: also when the answer breaks off, however much of it has come.
        """
        path = f"/v1/models/{model}/predict"
        body = {"instances": [instance], "stream": True}
        begun = False
        try:
            with self._client() as client, client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refusal(response, path, model)
                begun = True
                yield from self._whole(_events(response.iter_bytes()), model)
        except httpx.TransportError as error:
            raise self._broken_off(model) if begun else self._silent(error) from None

    def _whole(self, events: Iterator[tuple[str, dict[str, Any]]], model: str) -> Iterator[dict[str, Any]]:
        """The events' data, down to the last one, which has an `id`."""
        for name, data in events:
            if name == "error":
                said, request = data["error"]["message"], data["request_id"]
                raise ServiceError(f"{said} ({request})", where=self._base, hint=f"headrace logs {model}")
            yield data
            if "id" in data:
                return
        raise self._broken_off(model)

    def _call(self, method: str, path: str, model: str, body: Any = None) -> dict[str, Any]:
        try:
            with self._client() as client:
                response = client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._silent(error) from None
        if response.status_code != 200:
            raise self._refusal(response, path, model)
        answer: dict[str, Any] = response.json()
        return answer

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._base, headers=self._headers, verify=self._trust, timeout=self._seconds)

    def _silent(self, error: httpx.TransportError) -> ServiceError:
        return ServiceError(f"the balancer does not answer ({error})", where=self._base, hint="headrace up")

    def _broken_off(self, model: str) -> ServiceError:
        why = f"its replica was stopped, or wrote nothing for {self._patience:g} s (request_seconds)"
        return ServiceError(f"the answer broke off: {why}", where=self._base, hint=f"ask again; headrace logs {model}")

    def _refusal(self, response: httpx.Response, path: str, model: str) -> HeadraceError:
        said = _error_of(response)
        if response.status_code in (401, 403):
            return ServiceError(f"{response.status_code}: {said}", where=self._base, hint=mend_token(model))
        if response.status_code == 404:
            hint = "see what is served: headrace status; release another: headrace run NAME"
            return UsageError(said, where=self._base, hint=hint)
        if response.status_code in (400, 413, 415, 422):
            bearer = f' -H "authorization: Bearer $({console.program()} tokens show)"' if self._headers else ""
            hint = f"see the fields the model takes: curl{bearer} {self._base}/v1/models/{model}"
            return DataError(said, where=f"{self._base}{path}", hint=hint)
        return ServiceError(f"{response.status_code}: {said}", where=self._base, hint=f"headrace logs {model}")


def mend_token(opens: str = "what is asked for") -> str:
    """The operator's own token opens everything: where it does not, the door knows another key."""
    if os.environ.get("HEADRACE_TOKEN", "").strip():
        return f"the token is that of HEADRACE_TOKEN: unset it to call as the operator, or set one that opens {opens}"
    return "headrace up"


def _events(chunks: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n\n")
        for block in whole:
            # By "\n" alone: a text may hold other characters that Python takes for the end of a line.
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
            if "data" in fields:  # else a comment
                yield fields.get("event", "message"), json.loads(fields["data"])


def _error_of(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"]) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
