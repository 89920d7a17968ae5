"""Authentication in front of the servers that have none of their own: MLflow and Prefect."""

STARTED = "Headrace starts the server of"
"""A server's first line in its log. What stands before the last one is of an earlier start."""
