"""A client of the door, for `headrace predict`: what any team's own client does, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from headrace.contract import Contract
from headrace.errors import DataError, ServiceError, UsageError
from headrace.rollout.door import address
from headrace.settings import Settings

SECONDS = 30.0


class Door:
    """Calls models through the balancer."""

    def __init__(self, settings: Settings) -> None:
        self._base = address(settings)

    def contract(self, model: str) -> Contract:
        """What the model takes and gives.

        Raises:
            ServiceError: the door does not answer, or no replica is ready.
            UsageError: no such model is served.
        """
        return Contract.model_validate(self._call("GET", model, f"/v1/models/{model}")["contract"])

    def predict(self, model: str, instances: list[Any]) -> dict[str, Any]:
        """Predictions for `instances`, with the model's version and the request's id.

        Raises:
            DataError: an instance breaks the contract; the message names the field.
        """
        return self._call("POST", model, f"/v1/models/{model}/predict", {"instances": instances})

    def _call(self, method: str, model: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            response = httpx.request(method, self._base + path, json=body, timeout=SECONDS)
        except httpx.TransportError as error:
            raise ServiceError(f"the balancer does not answer ({error})", where=self._base, mend="headrace up") from None
        if response.status_code == 200:
            answer: dict[str, Any] = response.json()
            return answer
        said = _error_of(response)
        if response.status_code == 404:
            raise UsageError(
                said, where=self._base, mend="see what is served: headrace status; release another: headrace run NAME"
            )
        if response.status_code in (400, 413, 415, 422):
            raise DataError(
                said, where=f"{self._base}{path}", mend=f"see the fields the model takes: curl {self._base}/v1/models/{model}"
            )
        raise ServiceError(f"{response.status_code}: {said}", where=self._base, mend=f"headrace logs {model}")


def _error_of(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"]) if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
