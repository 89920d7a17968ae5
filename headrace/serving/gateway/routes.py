"""Which request goes where: to a model's pools, to the desk, or to a 404 for those who may know what is served."""

from __future__ import annotations

from headrace.serving.gateway.access_filters import (
    COMPLETIONS,
    OPEN_PATHS,
    Access,
    everywhere,
    names_model,
    opens,
    opens_to_all,
    reads_body,
)
from headrace.serving.gateway.clusters import DESK, Routes, Served, cluster_name, trial_name
from headrace.serving.gateway.listener import ARRIVED, BUFFER
from headrace.serving.gateway.protobuf import TYPES, Json, error, typed
from headrace.settings import Settings

UNLIMITED = {"max_stream_duration": {"max_stream_duration": "0s"}}
LONGER_SECONDS = 5.0
"""What the door waits longer than the desk does, so that the desk's own word comes first."""
DESK_PATHS = (*OPEN_PATHS, "/v1/models", "/v1/feedback", "/openapi.json")


def route_configuration(routes: Routes, settings: Settings, access: Access) -> Json:
    """Paths to models and to the desk, and for the rest a 404 that names what is served, to those who may know."""
    unknown, unnamed = ({"direct_response": _answer(404, body(routes))} for body in (_unknown, _unnamed))
    models = sorted(routes)
    return {
        "@type": TYPES + "config.route.v3.RouteConfiguration",
        "name": "models",
        "typed_per_filter_config": everywhere(access),
        "virtual_hosts": [
            {
                "name": "models",
                "domains": ["*"],
                "routes": [
                    _route({"path": "/readyz"}, opens_to_all(access), direct_response=_answer(200, {"ready": True})),
                    *(route for model in models for route in model_routes(model, routes[model], settings, access)),
                    *(route for model in models for route in completion_routes(model, routes[model], settings, access)),
                    *(_route({"path": path}, opens(access, None) | reads_body(), **unnamed) for path in COMPLETIONS),
                    *(_route({"path": path}, opens_to_all(access), route=api_action(settings)) for path in DESK_PATHS),
                    _route({"prefix": "/"}, opens(access, None), **unknown),
                ],
            }
        ],
    }


def shares(model: str, served: Served) -> Json:
    """Where a request goes, and where its copy. Percent become whole parts of 10,000, as Envoy counts them."""
    canary = round(served.traffic.canary * 100) if served.pool("canary") else 0
    shadow = round(served.traffic.shadow * 100) if served.pool("shadow") else 0
    weights = [(cluster_name(model, "main"), 10_000 - canary), (trial_name(model), canary)]
    mirror = {
        "cluster": cluster_name(model, "shadow"),
        "runtime_fraction": {"default_value": {"numerator": shadow, "denominator": "TEN_THOUSAND"}},
        "disable_shadow_host_suffix_append": True,
    }
    return {
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in weights]},
        **({"request_mirror_policies": [mirror]} if shadow else {}),
    }


def model_routes(model: str, served: Served, settings: Settings, access: Access) -> list[Json]:
    """`/v1/models/<model>` and all below it, but not `/v1/models/<model>-2`; the same for version 2; batches to the desk."""
    action, right = model_action(model, served, settings), opens(access, model)
    unbuffered = {BUFFER: {"@type": TYPES + "extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True}}
    batches = [{"path": f"/v1/models/{model}/batches"}, {"prefix": f"/v1/models/{model}/batches/"}]
    mine = [match for v in ("v1", "v2") for match in ({"path": f"/{v}/models/{model}"}, {"prefix": f"/{v}/models/{model}/"})]
    return [
        *(_route(match, right | unbuffered, route=batch_action(settings)) for match in batches),
        *(route for match in mine for route in _once_arrived(match, right, action)),
    ]


def completion_routes(model: str, served: Served, settings: Settings, access: Access) -> list[Json]:
    """OpenAI's paths, for bodies that name `model`."""
    action, right = model_action(model, served, settings), opens(access, model)
    matches = [{"path": path, **names_model(model)} for path in COMPLETIONS]
    return [route for match in matches for route in _once_arrived(match, right | reads_body(), action)]


def _once_arrived(match: Json, per_filter: Json, action: Json) -> list[Json]:
    """A route for requests that are whole, whose answer may take as long as it lives, before the same for those that arrive."""
    whole = {**match, "filter_state": [{"key": ARRIVED, "string_match": {"exact": "yes"}}]}
    return [_route(whole, per_filter, route={**action, **UNLIMITED}), _route(match, per_filter, route=action)]


def model_action(model: str, served: Served, settings: Settings) -> Json:
    """To the model's pools. What replicas answer changes nothing, so it may be asked again on another one."""
    return {
        **shares(model, served),
        # A limit on silence, not on the whole: a text that is written piece by piece may take as long as it lives.
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": retry_policy(),
    }


def api_action(settings: Settings) -> Json:
    """To the desk, which may change something: sent once more only where it was not reached at all."""
    return {
        "cluster": DESK,
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
    }


def batch_action(settings: Settings) -> Json:
    """To the desk, with files that may take as long as something of them comes: the desk itself says when nothing does."""
    patience = max(settings.request_seconds, settings.upload_idle_seconds + LONGER_SECONDS)
    return {**api_action(settings), **UNLIMITED, "idle_timeout": f"{patience:g}s"}


def retry_policy() -> Json:
    """A prediction changes nothing, so it may be repeated, on another replica."""
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
        # A request that a canary failed is tried again on the main pool.
        "retry_priority": typed(
            "envoy.retry_priorities.previous_priorities",
            "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            update_frequency=1,
        ),
    }


def _unknown(routes: Routes) -> Json:
    return error("not_found", f"nothing is served at %REQ(:path)%; models served: {_names(routes)}")


def _unnamed(routes: Routes) -> Json:
    """What OpenAI's clients show, with the code that they know."""
    how = "in `model`, as JSON with content-type application/json"
    said = error("model_not_found", f"the body names no model that is served ({how}); models served: {_names(routes)}")
    return {**said, "error": {**said["error"], "type": "invalid_request_error", "param": "model"}}


def _names(routes: Routes) -> str:
    return ", ".join(sorted(routes)) or "none"


def _route(match: Json, per_filter: Json, **action: Json) -> Json:
    return {"match": match, "typed_per_filter_config": per_filter, **action}


def _answer(status: int, body: Json) -> Json:
    return {"status": status, "body_format": {"json_format": body}}
