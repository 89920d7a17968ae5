"""Headrace: the functions that carry data to a running, governed model endpoint. Importing it does nothing."""

__version__ = "0.1.0"
