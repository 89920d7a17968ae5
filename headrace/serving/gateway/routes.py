"""Envoy's routes: to the pools of a model, to the API server, or to a 404 that names the models."""

from __future__ import annotations

from headrace.serving.gateway.access_filters import (
    COMPLETIONS,
    OPEN_PATHS,
    Access,
    allow_any_token,
    allow_model,
    for_all_routes,
    names_model,
    reads_body,
)
from headrace.serving.gateway.clusters import API_SERVER, cluster_name, trial_name
from headrace.serving.gateway.listener import BUFFER, COMPLETE
from headrace.serving.gateway.model_route import ModelRoute, Routes
from headrace.serving.gateway.protobuf import TYPES, Json, error, typed
from headrace.settings import Settings

UNLIMITED = {"max_stream_duration": {"max_stream_duration": "0s"}}
EXTRA_SECONDS = 5.0
"""The gateway waits this much longer than the API server, so that the client gets the API server's error."""
API_PATHS = (*OPEN_PATHS, "/v1/models", "/v1/feedback", "/v1/candidates", "/openapi.json")
API_PREFIXES = ("/v1/candidates/", "/v1/history/")
"""The API server checks the role of the token."""


def route_configuration(routes: Routes, settings: Settings, access: Access) -> Json:
    """Returns all routes. Unknown paths get a 404 that names the served models, for tokens that allow all models."""
    unknown, unnamed = ({"direct_response": _answer(404, body(routes))} for body in (_unknown, _unnamed))
    models = sorted(routes)
    return {
        "@type": TYPES + "config.route.v3.RouteConfiguration",
        "name": "models",
        "typed_per_filter_config": for_all_routes(access),
        "virtual_hosts": [
            {
                "name": "models",
                "domains": ["*"],
                "routes": [
                    _route({"path": "/readyz"}, allow_any_token(access), direct_response=_answer(200, {"ready": True})),
                    *(entry for model in models for entry in model_routes(model, routes[model], settings, access)),
                    *(entry for model in models for entry in completion_routes(model, routes[model], settings, access)),
                    *(_route({"path": path}, allow_model(access, None) | reads_body(), **unnamed) for path in COMPLETIONS),
                    *(_route({"path": path}, allow_any_token(access), route=api_action(settings)) for path in API_PATHS),
                    *(_route({"prefix": path}, allow_any_token(access), route=api_action(settings)) for path in API_PREFIXES),
                    _route({"prefix": "/"}, allow_model(access, None), **unknown),
                ],
            }
        ],
    }


def weights(model: str, route: ModelRoute) -> Json:
    """Returns the traffic split of a model. Percents become parts of 10,000, as Envoy expects."""
    canary = round(route.traffic.canary * 100) if route.pool("canary") else 0
    shadow = round(route.traffic.shadow * 100) if route.pool("shadow") else 0
    weighted = [(cluster_name(model, "main"), 10_000 - canary), (trial_name(model), canary)]
    mirror = {
        "cluster": cluster_name(model, "shadow"),
        "runtime_fraction": {"default_value": {"numerator": shadow, "denominator": "TEN_THOUSAND"}},
        "disable_shadow_host_suffix_append": True,
    }
    return {
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in weighted]},
        **({"request_mirror_policies": [mirror]} if shadow else {}),
    }


def model_routes(model: str, route: ModelRoute, settings: Settings, access: Access) -> list[Json]:
    """Returns the routes of `/v1/models/<model>` and `/v2/models/<model>` and all paths below; batches go to the API server."""
    action, right = model_action(model, route, settings), allow_model(access, model)
    unbuffered = {BUFFER: {"@type": TYPES + "extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True}}
    batches = [{"path": f"/v1/models/{model}/batches"}, {"prefix": f"/v1/models/{model}/batches/"}]
    matches = [match for v in ("v1", "v2") for match in ({"path": f"/{v}/models/{model}"}, {"prefix": f"/{v}/models/{model}/"})]
    return [
        *(_route(match, right | unbuffered, route=batch_action(settings)) for match in batches),
        *(entry for match in matches for entry in _two_limits(match, right, action)),
    ]


def completion_routes(model: str, route: ModelRoute, settings: Settings, access: Access) -> list[Json]:
    """Returns the routes of OpenAI's paths, for bodies that name `model`."""
    action, right = model_action(model, route, settings), allow_model(access, model)
    matches = [{"path": path, **names_model(model)} for path in COMPLETIONS]
    return [entry for match in matches for entry in _two_limits(match, right | reads_body(), action)]


def _two_limits(match: Json, per_filter: Json, action: Json) -> list[Json]:
    """Returns a route without time limit for complete requests, then the same route for requests that are still arriving."""
    complete = {**match, "filter_state": [{"key": COMPLETE, "string_match": {"exact": "yes"}}]}
    return [_route(complete, per_filter, route={**action, **UNLIMITED}), _route(match, per_filter, route=action)]


def model_action(model: str, route: ModelRoute, settings: Settings) -> Json:
    """Returns the action that sends requests to the pools of a model. A prediction changes nothing, so it may be retried."""
    return {
        **weights(model, route),
        # A limit on inactivity, not on the total time: a streamed text may take as long as it makes progress.
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": retry_policy(),
    }


def api_action(settings: Settings) -> Json:
    """Returns the action for the API server. Its requests may change something, so only failed connections are retried."""
    return {
        "cluster": API_SERVER,
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
    }


def batch_action(settings: Settings) -> Json:
    """Returns the action for uploads, which may take as long as they make progress: the API server ends idle ones."""
    idle_seconds = max(settings.request_seconds, settings.upload_idle_seconds + EXTRA_SECONDS)
    return {**api_action(settings), **UNLIMITED, "idle_timeout": f"{idle_seconds:g}s"}


def retry_policy() -> Json:
    """Returns how a failed prediction is retried, on another replica."""
    return {
        "retry_on": "connect-failure,refused-stream,reset,unavailable,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.2s"},
        "retry_host_predicate": [
            typed(
                "envoy.retry_host_predicates.previous_hosts", "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            )
        ],
        "host_selection_retry_max_attempts": 5,
        # A request that failed on a canary is retried on the main pool.
        "retry_priority": typed(
            "envoy.retry_priorities.previous_priorities",
            "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            update_frequency=1,
        ),
    }


def _unknown(routes: Routes) -> Json:
    return error("not_found", f"nothing is served at %REQ(:path)%; models served: {_names(routes)}")


def _unnamed(routes: Routes) -> Json:
    """Returns the error that OpenAI's clients show, with the code that they know."""
    how = "in `model`, as JSON with content-type application/json"
    body = error("model_not_found", f"the body names no served model ({how}); models served: {_names(routes)}")
    return {**body, "error": {**body["error"], "type": "invalid_request_error", "param": "model"}}


def _names(routes: Routes) -> str:
    return ", ".join(sorted(routes)) or "none"


def _route(match: Json, per_filter: Json, **action: Json) -> Json:
    return {"match": match, "typed_per_filter_config": per_filter, **action}


def _answer(status: int, body: Json) -> Json:
    return {"status": status, "body_format": {"json_format": body}}
