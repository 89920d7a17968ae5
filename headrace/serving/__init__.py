"""From a registered version to replicas behind the gateway: access, packaging, replicas, gateway, rollout."""
