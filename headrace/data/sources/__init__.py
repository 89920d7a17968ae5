"""Data sources: package registries, web servers, object stores, local files."""
