"""Names that recipes, settings and the command line had before, and their present names. An old name is an error that gives
the new one; `headrace reproduce` translates the recipes of old commits."""

from __future__ import annotations

RECIPE_FIELDS = {
    "data.arrive": "data.incremental",
    "data.split.given": "data.split.predefined",
    "data.split.group.alike": "data.split.group.match",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.gradient_clip": "train.max_grad_norm",
    "train.warm_up": "train.warmup",
    "serve.rollout.bounds.least_requests": "serve.rollout.bounds.min_requests",
}
"""Dotted paths. A new path differs from the old one in its last part only."""
RECIPE_VALUES = {("gate.approval", "person"): "manual"}
"""Values by dotted path and old value."""
SETTINGS = {
    "on": "runner",
    "door_port": "gateway_port",
    "door_admin_port": "gateway_admin_port",
}
"""Fields of `headrace.toml`; in upper case after `HEADRACE_`, environment variables."""
REMOVED_SETTINGS = {
    "api_port": "the API server listens on a Unix socket",
    "desk_port": "the API server listens on a Unix socket",
    "replica_ports": "replicas listen on Unix sockets",
}
"""Fields, and why they are no longer needed."""
SETTING_VALUES = {("runner", "processes"): "process", ("tls", "own"): "self_signed"}
"""Values by field and old value."""
OPTIONS = {"--on": "--runner"}
"""Options of the command line."""
REMOVED_OPTIONS = {
    "--by": (
        "who decides is not free text; it is the name of the token in HEADRACE_TOKEN, or else your user name",
        "leave it out; for another person: headrace tokens issue --tenant NAME --role reviewer, and set HEADRACE_TOKEN",
    )
}
"""Options that have no successor, with what there is instead."""
