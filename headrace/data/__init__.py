"""Data: sources, tables, batches, versions, splits."""
