"""Who gets events: Prefect's server, each address of `notify`, and each webhook."""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrace import __version__
from headrace.errors import HeadraceError
from headrace.event_names import EVENT_NAMES, EventName
from headrace.events.event import Event
from headrace.events.signature import read_key, signed_headers
from headrace.project import Project
from headrace.services import notifications, prefect_api
from headrace.services.events.messages import text_of, title_of
from headrace.settings import Webhook

ANSWER_SECONDS = 20.0
"""The longest time for one request, from its connection to the last header of the answer."""
HOUR, DAY = 3600.0, 86400.0
LONGEST_RETRY_AFTER = DAY


class NotDelivered(Exception):
    """An attempt failed; the message says why, without secrets."""

    def __init__(self, why: str, gone: bool = False, retry_after: float | None = None) -> None:
        """
        Args:
            gone: the receiver wants nothing any more.
            retry_after: seconds that the receiver asks to wait.
        """
        super().__init__(why)
        self.gone, self.retry_after = gone, retry_after


class Receiver(Protocol):
    """Somebody who gets events, one after the other."""

    @property
    def key(self) -> str:
        """Identifies it in the outbox; changes with its address."""

    @property
    def label(self) -> str:
        """For people; without secrets."""

    @property
    def events(self) -> tuple[EventName, ...]: ...

    @property
    def give_up_seconds(self) -> float:
        """Age from which an event that cannot be delivered is dropped."""

    def send(self, event: Event) -> None:
        """
        Raises:
            NotDelivered: it was not accepted.
        """


@dataclass(frozen=True)
class PrefectServer:
    """Prefect's server, where automations answer to events."""

    project: Project
    key: str = "prefect"
    events: tuple[EventName, ...] = EVENT_NAMES
    give_up_seconds: float = HOUR

    @property
    def label(self) -> str:
        return f"Prefect at {self.project.settings.prefect_address}"

    def send(self, event: Event) -> None:
        resource = {"prefect.resource.id": f"headrace.model.{event.model}", "prefect.resource.name": event.model}
        payload = {name: value for name, value in event.data.items() if name != "flow_run"}
        body: dict[str, Any] = {
            "id": event.id,
            "event": event.type,
            "occurred": event.time,
            "resource": resource,
            "payload": payload,
        }
        if run := event.data.get("flow_run"):
            body["related"] = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}]
        try:
            answer = prefect_api.call(self.project, "/events", "POST", [body])
        except HeadraceError as error:
            raise NotDelivered(error.message) from None
        if answer is None or answer.status >= 300:
            raise NotDelivered(f"it answered {answer.status}: {answer.text[:200]}" if answer else "it does not answer")


@dataclass(frozen=True)
class Address:
    """An address of the setting `notify`."""

    address: str
    number: int
    """Its place in the setting."""
    events: tuple[EventName, ...]
    give_up_seconds: float = DAY

    @property
    def key(self) -> str:
        return f"notify {hashlib.sha256(self.address.encode()).hexdigest()[:16]}"

    @property
    def label(self) -> str:
        return f"notify {self.number}: {notifications.without_secrets(self.address)}"

    def send(self, event: Event) -> None:
        if not notifications.send(self.address, title_of(event), text_of(event)):
            raise NotDelivered("it could not be sent; check the address in the setting notify")


@dataclass(frozen=True)
class WebhookReceiver:
    """A receiver by HTTP, with signed requests."""

    webhook: Webhook
    project: Project
    answer_seconds: float = ANSWER_SECONDS

    @property
    def key(self) -> str:
        return f"webhook {self.webhook.name} {hashlib.sha256(self.webhook.url.encode()).hexdigest()[:16]}"

    @property
    def label(self) -> str:
        return f"webhook {self.webhook.name}: {self.webhook.origin}"

    @property
    def events(self) -> tuple[EventName, ...]:
        return self.webhook.events

    @property
    def give_up_seconds(self) -> float:
        return self.project.settings.webhook_days * DAY

    def send(self, event: Event) -> None:
        import asyncio

        try:
            key = read_key(self.webhook, self.project)
        except HeadraceError as error:
            raise NotDelivered(error.message) from None
        body = body_of(event)
        headers = signed_headers(event.id, int(time.time()), body, key)
        headers |= {"content-type": "application/json", "user-agent": f"headrace/{__version__}"}
        try:
            status, retry_after = asyncio.run(asyncio.wait_for(self._post(body, headers), self.answer_seconds))
        except TimeoutError:
            raise NotDelivered(f"no answer within {self.answer_seconds:g} s") from None
        except Exception as error:
            raise NotDelivered(_explained(error, self.webhook)) from None
        if not 200 <= status < 300:
            redirected = ", a redirect, which is not followed; correct its url" if 300 <= status < 400 else ""
            raise NotDelivered(f"it answered {status}{redirected}", gone=status == 410, retry_after=_seconds(retry_after))

    async def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """Returns the status and the header Retry-After; the body of the answer is not read."""
        import httpx

        async with (
            httpx.AsyncClient(timeout=self.answer_seconds, follow_redirects=False) as client,
            client.stream("POST", self.webhook.url, content=body, headers=headers) as answer,
        ):
            return answer.status_code, answer.headers.get("retry-after", "")


def body_of(event: Event) -> bytes:
    """Returns the body of a webhook, in ASCII: type, time and data; in the data `sequence`, which grows with each event."""
    data = {"model": event.model, "sequence": event.seq, **event.data}
    return json.dumps({"type": event.type, "timestamp": event.time, "data": data}).encode()


def receivers(project: Project) -> Sequence[Receiver]:
    """The receivers of the settings."""
    settings = project.settings
    addresses = [Address(one, number, settings.notify_on) for number, one in enumerate(dict.fromkeys(settings.notify), start=1)]
    webhooks = [WebhookReceiver(webhook, project) for webhook in settings.webhooks]
    return [PrefectServer(project), *addresses, *webhooks]


def _seconds(retry_after: str) -> float | None:
    """The seconds of a header Retry-After; None for none, and for a date."""
    return min(float(retry_after), LONGEST_RETRY_AFTER) if retry_after.isdecimal() and len(retry_after) < 10 else None


def _explained(error: BaseException, webhook: Webhook) -> str:
    """A sentence about an error of the network, without the address, which may hold a token."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not valid: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {str(error).replace(webhook.url, webhook.origin)[:200]}"
