"""The `headrace` command. Each module has the commands of one subject, which import heavy packages when they are called."""

from headrace.cli.main import main

__all__ = ["main"]
