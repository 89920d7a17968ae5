"""How many connections one client address may hold at the gateway.

Envoy has no limit for each address, but one for each filter chain. So a new connection goes to one of `GROUPS` chains by the
hash of its address: however many connections one address opens, it exhausts its own chain only.
"""

from __future__ import annotations

from headrace.serving.gateway.protobuf import Json, typed
from headrace.settings import Settings

GROUPS = 64
"""Filter chains that addresses are divided among. Two addresses share one, and its limit, with a chance of 1 in 64."""
SILENT_SECONDS = 0.25
"""A connection that has sent nothing for so long goes to a chain of its own, which closes it soon.

Until then it counts for no address, so this is short: clients send their request as soon as they are connected.
"""
SILENT_SHARE = 4
"""At most one in this many of all connections may be silent ones."""
SILENT = "silent"


def filter_chains(settings: Settings, chain: Json, silent: Json) -> Json:
    """Returns the listener's filter chains, the listener filters that they need, and the rules that select a chain.

    Args:
        chain: the filter chain for a connection that sends a request.
        silent: the filter chain for a connection that has sent nothing yet. TLS needs none: its handshake has a time limit.
    """
    is_limited = settings.max_connections_per_address < settings.max_connections
    groups = [f"group-{index}" for index in range(GROUPS if is_limited else 1)]
    chains = [_limited(chain, name, settings.max_connections_per_address) for name in groups]
    matcher = _by_address(groups)
    if settings.tls != "off":
        return {"filter_chains": chains, "filter_chain_matcher": matcher}
    return {
        "listener_filters": [
            typed("envoy.filters.listener.http_inspector", "extensions.filters.listener.http_inspector.v3.HttpInspector")
        ],
        "listener_filters_timeout": f"{SILENT_SECONDS:g}s",
        "continue_on_listener_filters_timeout": True,
        "filter_chains": [*chains, _limited(silent, SILENT, max(1, settings.max_connections // SILENT_SHARE))],
        "filter_chain_matcher": _if_silent(SILENT, matcher),
    }


def _limited(chain: Json, name: str, max_connections: int) -> Json:
    limit = typed(
        "envoy.filters.network.connection_limit",
        "extensions.filters.network.connection_limit.v3.ConnectionLimit",
        stat_prefix=f"gateway.{name}",
        max_connections=max_connections,
    )
    return {**chain, "name": name, "filters": [limit, *chain["filters"]]}


def _by_address(names: list[str]) -> Json:
    """Returns rules that select one of the chains by the hash of the client's address."""
    first, *others = names
    kind = "extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing"
    matchers = [
        {
            "predicate": {
                "single_predicate": {
                    "input": _input("source_ip", "SourceIPInput"),
                    "custom_match": typed(
                        "envoy.matching.matchers.consistent_hashing", kind, threshold=index, modulo=len(names)
                    ),
                }
            },
            "on_match": _select(name),
        }
        for index, name in reversed(
            list(enumerate(others, start=1))
        )  # a rule matches this remainder of the hash or a larger one
    ]
    return {**({"matcher_list": {"matchers": matchers}} if matchers else {}), "on_no_match": _select(first)}


def _if_silent(name: str, otherwise: Json) -> Json:
    """Returns rules that select `name` where the inspector has recognized no HTTP."""
    recognized = {"input": _input("application_protocol", "ApplicationProtocolInput"), "value_match": {"prefix": "'"}}
    return {
        "matcher_list": {"matchers": [{"predicate": {"single_predicate": recognized}, "on_match": {"matcher": otherwise}}]},
        "on_no_match": _select(name),
    }


def _input(name: str, message: str) -> Json:
    return typed(f"envoy.matching.inputs.{name}", f"extensions.matching.common_inputs.network.v3.{message}")


def _select(name: str) -> Json:
    value = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}
    return {"action": {"name": name, "typed_config": value}}
