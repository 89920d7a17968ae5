"""Thin Prefect wrappers: retries, time limits, names. Each body is one call into `headrace`."""
