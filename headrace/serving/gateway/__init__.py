"""The gateway: one Envoy a project, fed by files that Headrace writes."""
