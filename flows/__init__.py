"""Prefect flows, one a file; each reads like a table of contents and computes nothing."""
