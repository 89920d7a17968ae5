"""Who comes through the door: Envoy's filters for tokens, rights and rates, and the parts of its routes that feed them.

The filters stand still; what changes (models, revoked tokens, rates, whether tokens are asked for at all) is in the routes,
which Envoy swaps in milliseconds without closing a connection. A changed filter would reach new connections alone.
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
"""They name no model, so they ask for no token."""
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
"""Paths under which the body, not the path, names the model."""
UNLIMITED = {"max_tokens": 2**31, "tokens_per_fill": 2**31, "fill_interval": "1s"}
"""A bucket that nobody empties; Envoy asks for one."""


@dataclass(frozen=True)
class Access:
    """What the door knows of tokens."""

    keys: Sequence[Json] = ()
    """Public keys, as a JWKS holds them."""
    revoked: Sequence[str] = ()
    """Ids of tokens that are refused although they have not expired."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Requests per second of each tenant that has a limit."""
    is_open: bool = False
    """Whether everybody may come in without a token."""


def filters(access: Access, max_request_bytes: int) -> list[Json]:
    """From the token to the model, in this order: a stranger's body is not read, and who asks too often is told so early."""
    closed = {"rules": {"action": "ALLOW", "policies": {}}}  # in force where no route says otherwise: nobody
    return [
        typed(RETRY_AFTER, "extensions.filters.http.header_mutation.v3.HeaderMutation", **_retry_after()),
        typed(JWT, "extensions.filters.http.jwt_authn.v3.JwtAuthentication", **_authentication(access)),
        typed(REVOKED, "extensions.filters.http.rbac.v3.RBAC"),
        typed(RATES, "extensions.filters.http.local_ratelimit.v3.LocalRateLimit", stat_prefix="tenants"),
        *body_filters(max_request_bytes),
        typed(RIGHTS, "extensions.filters.http.rbac.v3.RBAC", **closed),
    ]


def _retry_after() -> Json:
    """Whoever asks too often is told when the bucket is filled again: in whole seconds, and Envoy rounds them down."""
    reset = "response.headers['x-ratelimit-reset']"
    seconds = f"%CEL(response.code != 429 ? '' : {reset} == '0' ? '1' : {reset})%"
    header = {"header": {"key": "retry-after", "value": seconds}, "append_action": "ADD_IF_ABSENT"}
    return {"mutations": {"response_mutations": [{"append": header}]}}


def _authentication(access: Access) -> Json:
    provider = {
        "issuer": ISSUER,
        "local_jwks": {"inline_string": _text({"keys": list(access.keys)})},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],  # and not from the address, which is logged
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
        "strip_failure_response": True,  # else its header would tell a missing token from a wrong one
    }


def body_filters(max_request_bytes: int) -> list[Json]:
    """Read the `model` of a JSON body, on the routes that ask for it; then the route is chosen anew."""
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": BODY, "key": "model"},
        "on_missing": {"metadata_namespace": BODY, "key": "model", "value": ""},
        "on_error": {"metadata_namespace": BODY, "key": "model", "value": ""},
    }
    whole = typed(WHOLE_BODY, "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=max_request_bytes)
    named = typed(
        BODY,
        "extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        request_rules={"rules": [rule], "allow_content_types_regex": {"regex": r"(?i)application/json.*"}},
    )
    return [{**whole, "disabled": True}, {**named, "disabled": True}]


def reads_body() -> Json:
    """Of a route: the body names the model."""
    enabled = {"@type": TYPES + "config.route.v3.FilterConfig", "config": {}, "disabled": False}
    return {WHOLE_BODY: enabled, BODY: enabled}


def names_model(model: str) -> Json:
    """Of a route's match: a body that names `model`."""
    return {"dynamic_metadata": [{"filter": BODY, "path": [{"key": "model"}], "value": {"string_match": {"exact": model}}}]}


def everywhere(access: Access) -> Json:
    """Of all routes: what was revoked, and how often each tenant may ask; nobody is asked for a token where it is open."""
    if access.is_open:
        off = {"@type": TYPES + "config.route.v3.FilterConfig", "disabled": True}
        return dict.fromkeys((JWT, REVOKED, RATES, RIGHTS), off)
    return {REVOKED: _rules("DENY", _revoked(access.revoked)), RATES: _limits(access.rates)}


def opens(access: Access, model: str | None) -> Json:
    """Of a route: the token has to name `model`, or all; None asks for one that opens all."""
    names = ["*"] if model is None else ["*", model]
    policy = {"models": _claim("models", {"list_match": {"one_of": _any_of(names)}})}
    return {} if access.is_open else {RIGHTS: _rules("ALLOW", policy)}


def opens_to_all(access: Access) -> Json:
    """Of a route: any token will do, and none where none is asked for."""
    return {} if access.is_open else {RIGHTS: _rules("ALLOW", {"all": {"any": True}})}


def _revoked(ids: Sequence[str]) -> dict[str, Json]:
    return {"revoked": _claim("jti", _any_of(ids))} if ids else {}


def _any_of(texts: Sequence[str]) -> Json:
    matchers = [{"string_match": {"exact": text}} for text in texts]
    return matchers[0] if len(matchers) == 1 else {"or_match": {"value_matchers": matchers}}  # Envoy's `or` takes two or more


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
    """A bucket for each tenant, all of Envoy's threads together; who has none is not limited."""
    tenant = {"metadata_key": {"key": JWT, "path": [{"key": "claims"}, {"key": "sub"}]}, "descriptor_key": "tenant"}
    everybody = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": TYPES + "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "tenants",
        "filter_enabled": everybody,
        "filter_enforced": everybody,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "token_bucket": UNLIMITED,
        "rate_limits": [{"actions": [{"metadata": tenant}]}],
        "descriptors": [
            {"entries": [{"key": "tenant", "value": name}], "token_bucket": bucket(rate)} for name, rate in rates.items()
        ],
    }


def bucket(rate: float) -> Json:
    """Filled evenly with `rate` requests per second; it holds those of one second, and at least one request."""
    size = max(1, math.ceil(rate))
    return {"max_tokens": size, "tokens_per_fill": size, "fill_interval": f"{size / rate:.6f}s"}


def _text(value: Json) -> str:
    import json

    return json.dumps(value, sort_keys=True)
