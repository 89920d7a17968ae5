"""The protocols that a replica speaks."""
