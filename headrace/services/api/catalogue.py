"""The catalogue: models, versions, contracts and health, restricted to what a caller may see."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from headrace.errors import near_miss
from headrace.project import Project
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused, model_list, openai_model, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.services.api.internal_tokens import operator_headers
from headrace.serving.gateway import admin, gateway
from headrace.serving.gateway.clusters import cluster_name
from headrace.serving.gateway.model_route import ModelRoute, Traffic
from headrace.serving.local_http import Address, request
from headrace.serving.local_http import Response as Answer
from headrace.serving.replicas.replica import Replica

logger = logging.getLogger("headrace.services.api")
HEALTH_SECONDS = 1.0
"""How long the health that Envoy reports is cached."""
REPLICA_SECONDS = 5.0
"""How long a replica may take to describe itself."""
SILENT_SECONDS = 5.0
"""A replica that gave no description is not asked again for this long."""

HealthyAddresses = dict[str, set[Address]]
"""Envoy's cluster to the addresses of its healthy replicas."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One model behind the gateway."""

    model: str
    endpoints: list[Replica]
    """The replicas of the pools `main` and `canary`."""
    traffic: dict[str, float]
    """Version to the percentage of requests that it answers."""
    ready: int
    """Number of healthy replicas."""
    contract: Contract | None
    """Contract of the version with the most traffic; None while no replica has given it."""
    streams: bool
    """Whether it can stream an answer."""
    explains: bool
    generates: bool
    """Whether it serves OpenAI's completions API."""
    loaded_at: int
    """When the replica that described it became ready, in seconds since 1970; 0 if unknown."""

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
        protocols: dict[str, Any] = {
            "headrace": {"predict": f"{path}/predict", "feedback": "/v1/feedback", "batches": f"{path}/batches"},
            "open-inference": {"metadata": f"/v2/models/{self.model}", "infer": f"/v2/models/{self.model}/infer"},
        }
        if self.explains:
            protocols["headrace"]["explain"] = f"{path}/explain"
        if self.generates:
            protocols["openai"] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
        return protocols


class Catalogue:
    """Reads the gateway's routes, asks Envoy for health and replicas for descriptions, and caches both for a while."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._health: tuple[float, HealthyAddresses] = (0.0, {})
        self._descriptions: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._silent_until: dict[str, float] = {}

    async def list_for(self, caller: Caller) -> list[CatalogueEntry]:
        """Returns the models that `caller` may use, sorted by name."""
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        allowed = {model: found for model, found in routes.items() if caller.may_call(model)}
        return list(await asyncio.gather(*(self._entry(model, allowed[model]) for model in sorted(allowed))))

    async def require(self, caller: Caller, model: str) -> CatalogueEntry:
        """Returns the entry of a model.

        Raises:
            Refused: 403, the token does not allow this model, whether it exists or not; 404, with the closest name, for a
                token that allows all models.
        """
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        if model in routes and caller.may_call(model):
            return await self._entry(model, routes[model])
        if caller.has_all_models:
            raise Refused(404, "not_found", f"no model {model[:100]!r} is served; {near_miss(model, routes)}")
        raise Refused(403, "forbidden", "this token does not allow this")

    def shadow_replicas(self) -> set[str]:
        """Ids of the replicas whose answers are discarded."""
        served = gateway.read_routes(self._project).values()
        return {endpoint.id for found in served for endpoint in found.endpoints if endpoint.pool == "shadow"}

    async def is_ready(self) -> bool:
        """Whether every model has a healthy replica."""
        routes = await asyncio.to_thread(gateway.read_routes, self._project)
        return all([(await self._entry(model, found)).ready for model, found in routes.items()])

    async def _entry(self, model: str, found: ModelRoute) -> CatalogueEntry:
        endpoints = [endpoint for endpoint in found.endpoints if endpoint.pool != "shadow"]
        health = await self._healthy_addresses()
        ready = [e for e in endpoints if e.address in health.get(cluster_name(model, e.pool), ())]
        traffic = _by_version(endpoints, found.traffic)
        description = await self._describe(
            model, max(traffic, key=lambda version: traffic[version], default=""), ready or endpoints
        )
        contract = Contract.model_validate(description["contract"]) if description else None
        generates = contract is not None and contract.task == "text-generation" and bool(description.get("completes"))
        explains = contract is not None and contract.output != "text" and bool(description.get("explains"))
        offers = bool(description.get("streams")), explains, generates
        return CatalogueEntry(model, endpoints, traffic, len(ready), contract, *offers, loaded_at=description.get("created", 0))

    async def _describe(self, model: str, version: str, endpoints: list[Replica]) -> dict[str, Any]:
        """Returns the description that a replica of this version gives; empty when none does."""
        of_version = [endpoint for endpoint in endpoints if endpoint.version == version]
        for endpoint in of_version:
            if known := self._descriptions.get((model, version, endpoint.spec.bento_tag)):
                return known
        for endpoint in of_version:
            if time.monotonic() < self._silent_until.get(endpoint.id, 0.0):
                continue
            if description := await self._ask(model, endpoint):
                self._descriptions[(model, version, endpoint.spec.bento_tag)] = description
                return description
            self._silent_until[endpoint.id] = time.monotonic() + SILENT_SECONDS
        return {}

    async def _ask(self, model: str, endpoint: Replica) -> dict[str, Any]:
        """Returns a replica's description, with the optional protocols that it has: an older bento may lack them."""
        try:
            return await asyncio.to_thread(self._read_description, model, endpoint)
        except (OSError, ValueError) as error:
            logger.warning("%s gives no description: %s", endpoint.id, error)
            return {}

    def _read_description(self, model: str, endpoint: Replica) -> dict[str, Any]:
        """
        Raises:
            OSError: the replica does not answer.
            ValueError: its answer is not JSON.
        """
        path = f"/v1/models/{model}"
        response = self._get(endpoint, path)
        description: dict[str, Any] = response.json() if response.status == 200 else {}
        for name, further in (("explains", f"{path}/explain"), ("completes", "/v1/completions")):
            # A path that exists for POST only answers 405 to GET.
            description[name] = self._get(endpoint, further).status == 405
        return description if "contract" in description else {}

    def _get(self, endpoint: Replica, path: str) -> Answer:
        headers = operator_headers(self._project)
        return request(endpoint.address_in(self._project), path, headers=headers, timeout_seconds=REPLICA_SECONDS)

    async def _healthy_addresses(self) -> HealthyAddresses:
        at, health = self._health
        if time.monotonic() - at > HEALTH_SECONDS:
            health = await self._ask_envoy()
            self._health = (time.monotonic(), health)
        return health

    async def _ask_envoy(self) -> HealthyAddresses:
        try:
            answer = await asyncio.to_thread(admin.ask, self._project, "/clusters?format=json")
            return _healthy_hosts(answer.json()) if answer else {}
        except json.JSONDecodeError:
            return {}


class CatalogueRoutes:
    """`GET /v1/models`: the catalogue, which OpenAI's clients can read as well."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.routes = [Route("/v1/models", self.list, methods=["GET"])]

    async def list(self, request: TrackedRequest) -> Response:
        found = await self._catalogue.list_for(request.caller)
        cards = [openai_model(served.model, served.loaded_at) for served in found if served.generates]
        return to_json(model_list([served.to_dict() for served in found], cards))


def _by_version(endpoints: list[Replica], traffic: Traffic) -> dict[str, float]:
    """Returns the percentage of requests per version; the replicas of a pool get equal shares."""
    pools = {name: Counter(e.version for e in endpoints if e.pool == name) for name in ("main", "canary")}
    canary = traffic.canary if pools["canary"] else 0.0
    found: dict[str, float] = {}
    for share, versions in ((100.0 - canary, pools["main"]), (canary, pools["canary"])):
        for version, replicas in versions.items():
            found[version] = round(found.get(version, 0.0) + share * replicas / versions.total(), 2)
    return found


def _healthy_hosts(clusters: dict[str, Any]) -> HealthyAddresses:
    found: HealthyAddresses = {}
    for cluster in clusters.get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []):
            if admin.is_healthy(host):
                found.setdefault(cluster["name"], set()).add(admin.host_address(host))
    return found
