"""Reviews over HTTP: who may see candidates and history, and who may approve and reject."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest

from headrace.client import Client, Forbidden, InvalidInput, NotFound
from headrace.project import Project
from headrace.release import journal
from headrace.services.api.app import ApiServer
from headrace.serving.access import audit, tokens
from headrace.settings import Settings
from headrace.tracking.registry import Version
from tests.release.candidates import decide, new_recipe, register
from tests.services.api.server import LocalService

ROLES = ("reviewer", "viewer")


class Api:
    """The API server of a project in this process, without servers around it."""

    def __init__(self, project: Project, access: Literal["tokens", "open"]) -> None:
        self._app = ApiServer(project.using(Settings(access=access)))
        self._project = project

    def call(self, method: str, path: str, token: str, body: Any = None) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            headers = {"authorization": f"Bearer {token}"} if token else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
                return await client.request(method, path, json=body)

        return asyncio.run(once())

    def token(self, name: str, role: str | None) -> str:
        return tokens.issue(self._project, name, [] if role else ["*"], 3600, role=role)[0]


@pytest.fixture(params=["tokens", "open"])
def api(built: Project, request: pytest.FixtureRequest) -> Api:
    """Reviews take a token whether or not calls of models do."""
    return Api(built, request.param)


@pytest.fixture
def candidate(built: Project) -> Version:
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    assert decide(recipe, version, built).result == "awaiting-approval"
    return version


def path_of(version: Version, act: str) -> str:
    return f"/v1/candidates/{version.model}/{version.version}/{act}"


def test_a_reviewer_approves_and_the_journal_and_the_audit_log_have_the_name(
    api: Api, built: Project, candidate: Version
) -> None:
    response = api.call("POST", path_of(candidate, "approve"), api.token("ada", "reviewer"), {"why": "looks good"})
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["outcome"], body["by"], body["role"], body["why"]) == ("approved", "ada", "reviewer", "looks good")
    entry = journal.entries(built, candidate.model)[-1]
    assert (entry.event, entry.version, entry.facts["by"]) == ("approved", candidate.version, "ada")
    assert audit.entries(built)[-1].facts["by"] == "ada"
    again = api.call("POST", path_of(candidate, "approve"), api.token("bob", "reviewer"), {})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "not_waiting")
    assert "was approved already, by ada" in again.json()["error"]["message"]


def test_the_operator_rejects_and_gives_a_reason(api: Api, built: Project, candidate: Version) -> None:
    operator = tokens.operator_token(built)
    bodies: list[Any] = [{}, {"why": ""}, {"why": "two\nlines"}, {"why": 1}, {"why": "x", "by": "ada"}, []]
    for body in bodies:
        assert api.call("POST", path_of(candidate, "reject"), operator, body).status_code == 422, body
    assert api.call("POST", path_of(candidate, "reject"), operator, {"why": "slow"}).json()["by"] == "operator"
    assert journal.entries(built, candidate.model)[-1].event == "rejected"


@pytest.mark.parametrize("act", ["approve", "reject"])
@pytest.mark.parametrize("role", ["viewer", None])
def test_viewers_and_tenants_decide_nothing(api: Api, built: Project, candidate: Version, role: str | None, act: str) -> None:
    response = api.call("POST", path_of(candidate, act), api.token("vic", role), {"why": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert ("has the role viewer" if role else "has no role") in response.json()["error"]["message"]
    unknown = api.call("POST", "/v1/candidates/nothing/1/approve", api.token("vic", role), {"why": "x"})
    assert unknown.status_code == 403, "whether there is such a version is not said"
    assert journal.entries(built, candidate.model)[-1].event == "awaiting-approval"


@pytest.mark.parametrize("role", ROLES)
def test_people_with_a_role_see_candidates_and_history(api: Api, candidate: Version, role: str) -> None:
    token = api.token("vic", role)
    listed = api.call("GET", "/v1/candidates", token).json()["candidates"]
    (found,) = (one for one in listed if one["model"] == candidate.model)
    assert (found["version"], found["state"], found["review"]) == (candidate.version, "waiting", None)
    assert found["verdict"]["passed"] and found["run_id"] == candidate.run_id
    entries = api.call("GET", f"/v1/history/{candidate.model}", token).json()["entries"]
    assert [entry["event"] for entry in entries] == ["awaiting-approval"]
    assert api.call("GET", "/v1/history/nothing", token).status_code == 404


@pytest.mark.parametrize("path", ["/v1/candidates", "/v1/history/tiny"])
def test_tenants_and_strangers_see_neither(api: Api, path: str) -> None:
    assert api.call("GET", path, api.token("acme", None)).status_code == 403
    for token in ("", "nonsense"):
        refused = api.call("GET", path, token)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_a_revoked_reviewer_decides_nothing(api: Api, built: Project, candidate: Version) -> None:
    token, facts = tokens.issue(built, "ada", [], 3600, role="reviewer")
    tokens.revoke(built, facts.jti)
    assert api.call("POST", path_of(candidate, "approve"), token, {}).status_code == 401


def test_unknown_versions_and_those_that_do_not_wait_are_errors(api: Api, built: Project, candidate: Version) -> None:
    token = api.token("ada", "reviewer")
    unknown = api.call("POST", f"/v1/candidates/{candidate.model}/77/approve", token, {})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    recipe = new_recipe(built, approval="manual", require={"accuracy": "> 1"})
    bad = register(recipe, built)
    assert api.call("POST", path_of(bad, "approve"), token, {}).status_code == 404
    assert decide(recipe, bad, built).result == "refused"
    refused = api.call("POST", path_of(bad, "approve"), token, {})
    assert refused.status_code == 409 and "does not wait for approval" in refused.json()["error"]["message"]
    assert f"headrace history {recipe.name}" in refused.json()["error"]["hint"]


# -- through the gateway


@pytest.fixture
def people(service: LocalService) -> Iterator[dict[str, Client]]:
    """Clients of the gateway, one of each role."""
    if not journal.entries(service.project, "trips"):
        journal.record(service.project, "awaiting-approval", "trips", "2", {"verdict": {"passed": True, "reasons": ["better"]}})
    made = {role: Client(service.gateway, tokens.issue(service.project, "ada", [], 3600, role=role)[0]) for role in ROLES}
    yield made | {"tenant": service.client("acme", "trips")}
    for client in made.values():
        client.close()


def test_the_gateway_passes_reviews_on_to_the_api_server(people: dict[str, Client]) -> None:
    for role in ROLES:
        assert people[role].candidates()[0]["version"] == "2"
        assert people[role].history("trips")[0]["event"] == "awaiting-approval"
        with pytest.raises(Forbidden):
            people[role].predict("trips", {"distance": 1, "carrier": "AA"})
    with pytest.raises(Forbidden, match="the token of ada has the role viewer"):
        people["viewer"].approve("trips", "2")
    with pytest.raises(NotFound, match="no registered model 'trips'"):
        people["reviewer"].approve("trips", "2")
    with pytest.raises(InvalidInput, match="why: expected one line"):
        people["reviewer"].reject("trips", "2", "")
    for refused in (people["tenant"].candidates, lambda: people["tenant"].history("trips")):
        with pytest.raises(Forbidden, match="this token has no role"):
            refused()
