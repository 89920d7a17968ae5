"""What is served: models, versions, contracts and health, as far as a caller may know of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.responses import Response
from starlette.routing import Route

from headrace.errors import near_miss
from headrace.project import Project
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused, model_list, openai_model, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.services.api.internal_tokens import operator_headers
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import cluster_name
from headrace.serving.gateway.model_route import ModelRoute, Traffic
from headrace.serving.replicas.replica import Replica
from headrace.settings import Settings

logger = logging.getLogger("headrace.services.api")
HEALTH_SECONDS = 1.0
"""How long Envoy's word on health is believed."""
SILENT_SECONDS = 5.0
"""After a replica gave no description, it is asked again no sooner."""

Health = dict[str, set[tuple[str, int]]]
"""Of each of Envoy's clusters, the replicas that it sends requests to."""


@dataclass(frozen=True)
class Listed:
    """One model behind the door."""

    model: str
    endpoints: list[Replica]
    """Of the pools that answer: `main` and `canary`."""
    traffic: dict[str, float]
    """Percent of the requests that each version answers."""
    ready: int
    """Replicas that Envoy sends requests to."""
    contract: Contract | None
    """Of the version that answers most; None while no replica can be asked."""
    streams: bool
    """Whether it can answer piece by piece."""
    explains: bool
    writes: bool
    """Whether it completes texts, as OpenAI's clients ask."""
    loaded_at: int
    """When the replica that described it was ready, in seconds since 1970; 0 where it did not say."""

    def to_dict(self) -> dict[str, Any]:
        path = f"/v1/models/{self.model}"
        return {
            "model": self.model,
            "path": path,
            "versions": sorted(self.traffic),
            "traffic": self.traffic,
            "health": {"ready": self.ready, "total": len(self.endpoints)},
            "streams": self.streams,
            "protocols": self._protocols(path),
            "contract": self.contract.model_dump(mode="json") if self.contract else None,
        }

    def _protocols(self, path: str) -> dict[str, Any]:
        ways: dict[str, Any] = {
            "headrace": {"predict": f"{path}/predict", "feedback": "/v1/feedback", "batches": f"{path}/batches"},
            "open-inference": {"metadata": f"/v2/models/{self.model}", "infer": f"/v2/models/{self.model}/infer"},
        }
        if self.explains:
            ways["headrace"]["explain"] = f"{path}/explain"
        if self.writes:
            ways["openai"] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
        return ways


class Catalogue:
    """Reads `models.json`, asks Envoy for health and replicas for their descriptions, and keeps the answers for a while."""

    def __init__(self, project: Project, settings: Settings, http: httpx.AsyncClient) -> None:
        self._project, self._settings, self._http = project, settings, http
        self._health: tuple[float, Health] = (0.0, {})
        self._described: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._silent_until: dict[str, float] = {}

    async def of(self, caller: Caller) -> list[Listed]:
        """The models that `caller` may use, by name."""
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        allowed = {model: found for model, found in routes.items() if caller.may_call(model)}
        return list(await asyncio.gather(*(self._listed(model, allowed[model]) for model in sorted(allowed))))

    async def require(self, caller: Caller, model: str) -> Listed:
        """
        Raises:
            Refused: 403, the token does not open a model of this name, whether there is one or not; 404, with the near miss,
                for a token that opens all.
        """
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        if model in routes and caller.may_call(model):
            return await self._listed(model, routes[model])
        if caller.has_all_models:
            raise Refused(404, "not_found", f"no model {model[:100]!r} is served; {near_miss(model, routes)}")
        raise Refused(403, "forbidden", "this token does not allow this")

    def shadows(self) -> set[str]:
        """Ids of the replicas whose answers nobody gets."""
        served = gateway.read_routes(self._project).values()
        return {endpoint.id for found in served for endpoint in found.endpoints if endpoint.pool == "shadow"}

    async def is_ready(self) -> bool:
        """Whether every model has a replica that answers."""
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        return all([(await self._listed(model, found)).ready for model, found in routes.items()])

    async def _listed(self, model: str, found: ModelRoute) -> Listed:
        endpoints = [endpoint for endpoint in found.endpoints if endpoint.pool != "shadow"]
        health = await self._healthy()
        ready = [e for e in endpoints if e.address in health.get(cluster_name(model, e.pool), ())]
        traffic = _by_version(endpoints, found.traffic)
        said = await self._describe(model, max(traffic, key=lambda version: traffic[version], default=""), ready or endpoints)
        contract = Contract.model_validate(said["contract"]) if said else None
        writes = contract is not None and contract.task == "text-generation" and bool(said.get("completes"))
        explains = contract is not None and contract.output != "text" and bool(said.get("explains"))
        offers = bool(said.get("streams")), explains, writes
        return Listed(model, endpoints, traffic, len(ready), contract, *offers, loaded_at=said.get("created", 0))

    async def _describe(self, model: str, version: str, endpoints: list[Replica]) -> dict[str, Any]:
        """What a replica of this version says of the model; empty when none does."""
        of_version = [endpoint for endpoint in endpoints if endpoint.version == version]
        for endpoint in of_version:
            if known := self._described.get((model, version, endpoint.spec.bento_tag)):
                return known
        for endpoint in of_version:
            if time.monotonic() < self._silent_until.get(endpoint.id, 0.0):
                continue
            if said := await self._ask(model, endpoint):
                self._described[(model, version, endpoint.spec.bento_tag)] = said
                return said
            self._silent_until[endpoint.id] = time.monotonic() + SILENT_SECONDS
        return {}

    async def _ask(self, model: str, endpoint: Replica) -> dict[str, Any]:
        """What it says of the model, and which of the further protocols it has: one of an older bento may not."""
        headers = operator_headers(self._project, self._settings)
        base, path = f"http://{endpoint.host}:{endpoint.port}", f"/v1/models/{model}"
        try:
            response = await self._http.get(base + path, headers=headers)
            said: dict[str, Any] = response.json() if response.status_code == 200 else {}
            for name, further in (("explains", f"{path}/explain"), ("completes", "/v1/completions")):
                # A path that is there only for POST answers 405 to GET.
                said[name] = (await self._http.get(base + further, headers=headers)).status_code == 405
            return said if "contract" in said else {}
        except (httpx.HTTPError, ValueError) as error:
            logger.warning("%s gives no description: %s", endpoint.id, error)
            return {}

    async def _healthy(self) -> Health:
        at, health = self._health
        if time.monotonic() - at > HEALTH_SECONDS:
            health = await self._ask_envoy()
            self._health = (time.monotonic(), health)
        return health

    async def _ask_envoy(self) -> Health:
        try:
            answer = await self._http.get(f"http://127.0.0.1:{self._settings.gateway_admin_port}/clusters?format=json")
            return _healthy_hosts(answer.json())
        except (httpx.HTTPError, json.JSONDecodeError):
            return {}


class Models:
    """`GET /v1/models`: the catalogue, which OpenAI's clients can read too."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.routes = [Route("/v1/models", self.list, methods=["GET"])]

    async def list(self, request: TrackedRequest) -> Response:
        found = await self._catalogue.of(request.caller)
        cards = [openai_model(served.model, served.loaded_at) for served in found if served.writes]
        return to_json(model_list([served.to_dict() for served in found], cards))


def _by_version(endpoints: list[Replica], traffic: Traffic) -> dict[str, float]:
    """Percent of the requests for each version; replicas of one pool share alike."""
    pools = {name: Counter(e.version for e in endpoints if e.pool == name) for name in ("main", "canary")}
    canary = traffic.canary if pools["canary"] else 0.0
    found: dict[str, float] = {}
    for share, versions in ((100.0 - canary, pools["main"]), (canary, pools["canary"])):
        for version, replicas in versions.items():
            found[version] = round(found.get(version, 0.0) + share * replicas / versions.total(), 2)
    return found


def _healthy_hosts(clusters: dict[str, Any]) -> Health:
    found: Health = {}
    for cluster in clusters.get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []):
            where = host["address"]["socket_address"]
            if not any(value for name, value in host["health_status"].items() if name != "eds_health_status"):
                found.setdefault(cluster["name"], set()).add((str(where["address"]), int(where["port_value"])))
    return found
