"""Backups: one archive with all state of a project that cannot be made again, and its restoration."""
