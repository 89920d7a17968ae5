"""Releases: the decision, deployment, journal, rollback, recovery, lineage."""
