"""Backfills: past data scored with any version, in chunks by several processes, without services; a killed one continues."""
