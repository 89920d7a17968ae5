"""The `headrace` command. Each module holds the commands of one subject; heavy imports wait inside the commands."""

from headrace.cli.main import main

__all__ = ["main"]
