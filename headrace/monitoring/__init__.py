"""Monitoring of a served model, as pure functions: profiles, drift, alarms with an error rate over time, estimates."""
