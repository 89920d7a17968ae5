"""Access control in Envoy: the filters for tokens, permissions and rates, and the parts of the routes that configure them.

The filters never change. What changes (models, revoked tokens, rates, whether tokens are required) is in the routes, which
Envoy replaces in milliseconds without closing a connection. A changed filter would affect new connections only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.runtime.token_verifier import ISSUER, LEEWAY_SECONDS
from headrace.serving.gateway.protobuf import TYPES, Json, typed

JWT = "envoy.filters.http.jwt_authn"
REVOKED, RATES, BODY, RIGHTS = "headrace.revoked", "headrace.rates", "headrace.body", "headrace.rights"
WHOLE_BODY, RETRY_AFTER = "headrace.whole-body", "headrace.retry-after"
OPEN_PATHS = ("/readyz", "/livez", "/v2", "/v2/health/live", "/v2/health/ready", "/docs")
"""Paths without a model, which need no token."""
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
"""Paths whose model is named in the body."""
UNLIMITED = {"max_tokens": 2**31, "tokens_per_fill": 2**31, "fill_interval": "1s"}
"""A bucket that never runs empty; Envoy requires one."""


@dataclass(frozen=True)
class Access:
    """What the gateway needs to check tokens."""

    keys: Sequence[Json] = ()
    """Public keys, in the format of a JWKS."""
    revoked: Sequence[str] = ()
    """Ids of revoked tokens that have not expired."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Tenant to its limit of requests per second."""
    is_open: bool = False
    """Whether no token is required."""


def filters(access: Access, max_request_bytes: int) -> list[Json]:
    """Returns the filters in their order: tokens and rates are checked by the headers, before the body is read."""
    deny_all = {"rules": {"action": "ALLOW", "policies": {}}}  # allows nothing, unless a route overrides it
    return [
        typed(RETRY_AFTER, "extensions.filters.http.header_mutation.v3.HeaderMutation", **_retry_after()),
        typed(JWT, "extensions.filters.http.jwt_authn.v3.JwtAuthentication", **_authentication(access)),
        typed(REVOKED, "extensions.filters.http.rbac.v3.RBAC"),
        typed(RATES, "extensions.filters.http.local_ratelimit.v3.LocalRateLimit", stat_prefix="tenants"),
        *body_filters(max_request_bytes),
        typed(RIGHTS, "extensions.filters.http.rbac.v3.RBAC", **deny_all),
    ]


def _retry_after() -> Json:
    """Adds `retry-after` to a 429: the whole seconds until the bucket is filled again, at least 1, since Envoy rounds down."""
    reset = "response.headers['x-ratelimit-reset']"
    seconds = f"%CEL(response.code != 429 ? '' : {reset} == '0' ? '1' : {reset})%"
    header = {"header": {"key": "retry-after", "value": seconds}, "append_action": "ADD_IF_ABSENT"}
    return {"mutations": {"response_mutations": [{"append": header}]}}


def _authentication(access: Access) -> Json:
    provider = {
        "issuer": ISSUER,
        "local_jwks": {"inline_string": _text({"keys": list(access.keys)})},
        # Not from the URL, which is logged. Of any scheme: Envoy would compare its case; `_refused` checks the scheme.
        "from_headers": [{"name": "authorization", "value_prefix": " "}],
        "forward": True,  # replicas check it again
        "payload_in_metadata": "claims",
        "clock_skew_seconds": LEEWAY_SECONDS,
        "require_expiration": True,
        "jwt_cache_config": {"jwt_cache_size": 1000},
    }
    return {
        "providers": {"headrace": provider},
        "rules": [
            *({"match": {"path": path}} for path in OPEN_PATHS),
            {"match": {"prefix": "/"}, "requires": {"provider_name": "headrace"}},
        ],
        "strip_failure_response": True,  # otherwise its header would distinguish a missing token from a wrong one
    }


def body_filters(max_request_bytes: int) -> list[Json]:
    """Returns filters that read `model` from a JSON body, on the routes that enable them; then the route is selected again."""
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": BODY, "key": "model"},
        "on_missing": {"metadata_namespace": BODY, "key": "model", "value": ""},
        "on_error": {"metadata_namespace": BODY, "key": "model", "value": ""},
    }
    buffer = typed(WHOLE_BODY, "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=max_request_bytes)
    model = typed(
        BODY,
        "extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        request_rules={"rules": [rule], "allow_content_types_regex": {"regex": r"(?i)application/json.*"}},
    )
    return [{**buffer, "disabled": True}, {**model, "disabled": True}]


def reads_body() -> Json:
    """Returns the route settings that enable reading the model from the body."""
    enabled = {"@type": TYPES + "config.route.v3.FilterConfig", "config": {}, "disabled": False}
    return {WHOLE_BODY: enabled, BODY: enabled}


def names_model(model: str) -> Json:
    """Returns the part of a route's match for bodies that name `model`."""
    return {"dynamic_metadata": [{"filter": BODY, "path": [{"key": "model"}], "value": {"string_match": {"exact": model}}}]}


def for_all_routes(access: Access) -> Json:
    """Returns the settings of all routes: revoked tokens and the rate of each tenant, or none with open access."""
    if access.is_open:
        off = {"@type": TYPES + "config.route.v3.FilterConfig", "disabled": True}
        return dict.fromkeys((JWT, REVOKED, RATES, RIGHTS), off)
    return {REVOKED: _rules("DENY", _refused(access.revoked)), RATES: _limits(access.rates)}


def allow_model(access: Access, model: str | None) -> Json:
    """Returns the settings of a route whose token has to allow `model`, or all models if it is None."""
    names = ["*"] if model is None else ["*", model]
    policy = {"models": _claim("models", {"list_match": {"one_of": _any_of(names)}})}
    return {} if access.is_open else {RIGHTS: _rules("ALLOW", policy)}


def allow_any_token(access: Access) -> Json:
    """Returns the settings of a route that every valid token may use."""
    return {} if access.is_open else {RIGHTS: _rules("ALLOW", {"all": {"any": True}})}


def _refused(revoked: Sequence[str]) -> dict[str, Json]:
    """Returns who is refused like a caller without a token: revoked tokens, and schemes other than `bearer` in any case."""
    is_bearer = {"name": "authorization", "string_match": {"prefix": "bearer ", "ignore_case": True}}
    has_scheme = {"header": {"name": "authorization", "present_match": True}}
    other_scheme = {"and_ids": {"ids": [has_scheme, {"not_id": {"header": is_bearer}}]}}
    return {"revoked": {"or_ids": {"ids": [other_scheme, *([_claim("jti", _any_of(revoked))] if revoked else [])]}}}


def _any_of(texts: Sequence[str]) -> Json:
    matchers = [{"string_match": {"exact": text}} for text in texts]
    return matchers[0] if len(matchers) == 1 else {"or_match": {"value_matchers": matchers}}  # Envoy's `or` needs two or more


def _rules(action: str, principals: Mapping[str, Json]) -> Json:
    policies = {name: {"permissions": [{"any": True}], "principals": [who]} for name, who in principals.items()}
    return {
        "@type": TYPES + "extensions.filters.http.rbac.v3.RBACPerRoute",
        "rbac": {"rules": {"action": action, "policies": policies}},
    }


def _claim(name: str, value: Json) -> Json:
    path = [{"key": "claims"}, {"key": name}]
    return {"sourced_metadata": {"metadata_matcher": {"filter": JWT, "path": path, "value": value}}}


def _limits(rates: Mapping[str, float]) -> Json:
    """Returns a token bucket for each tenant with a limit, shared by Envoy's threads."""
    tenant = {"metadata_key": {"key": JWT, "path": [{"key": "claims"}, {"key": "sub"}]}, "descriptor_key": "tenant"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": TYPES + "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "tenants",
        "filter_enabled": always,
        "filter_enforced": always,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "token_bucket": UNLIMITED,
        "rate_limits": [{"actions": [{"metadata": tenant}]}],
        "descriptors": [
            {"entries": [{"key": "tenant", "value": name}], "token_bucket": bucket(rate)} for name, rate in rates.items()
        ],
    }


def bucket(rate: float) -> Json:
    """Returns a bucket that is filled evenly with `rate` requests per second and holds one second's, at least one request."""
    size = max(1, math.ceil(rate))
    return {"max_tokens": size, "tokens_per_fill": size, "fill_interval": f"{size / rate:.6f}s"}


def _text(value: Json) -> str:
    import json

    return json.dumps(value, sort_keys=True)
