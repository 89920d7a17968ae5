"""Writes recipes for a user's own data: recognises how it is written, describes its columns, and decides the task."""
