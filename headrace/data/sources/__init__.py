"""Where data comes from: package registries, web servers, object stores, files."""
