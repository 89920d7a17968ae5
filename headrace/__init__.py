"""Headrace: from data to a governed model endpoint. Importing this package has no side effects."""

from headrace.runtime import __version__ as __version__
