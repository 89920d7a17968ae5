"""Task types: how rows of a table become tensors, which metrics apply, and how the served model answers. One file per type."""
