"""Envoy as the project's gateway, configured by files that Headrace writes."""
