"""The command group, and what happens to an error."""

from __future__ import annotations

import sys

import click

from headrace import __version__
from headrace.cli import batches, data, inspect, predict, recipes, rollouts, run, tokens, usage
from headrace.errors import UsageError, near_miss

EXIT_CODES = """
Exit codes: 0 done · 1 failed · 2 usage, recipe or settings · 3 data refused · 4 model refused by the gate ·
5 a service, port or engine · 6 busy · 7 disk full · 130 interrupted.
"""


class Commands(click.Group):
    """Offers the near miss for a command that does not exist."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UsageError(f"no command {args[0]!r}; {near_miss(args[0], self.commands)}", hint="headrace --help")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="headrace")
def cli() -> None:
    """From raw data to a governed model endpoint: one recipe, one command.

    \b
    headrace run digits            release a model: data, training, gate, registry, image, replicas, balancer
    headrace predict digits --sample
    headrace status                what runs, where
    headrace new NAME --data FILE --target COLUMN
    """


for command in (
    *run.COMMANDS,
    *rollouts.COMMANDS,
    *inspect.COMMANDS,
    *predict.COMMANDS,
    *batches.COMMANDS,
    *recipes.COMMANDS,
    *data.COMMANDS,
    *tokens.COMMANDS,
    *usage.COMMANDS,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `headrace` command."""
    from headrace.cli.shared import tell

    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(tell(error, as_json="--json" in sys.argv))
