"""File formats: reads files as tables."""
