"""The `headrace` command: its sections of commands, and errors."""

from __future__ import annotations

import os
import sys

import click

from headrace import __version__, renamed
from headrace.cli import (
    backfill,
    backups,
    batches,
    compress,
    data,
    feedback,
    importing,
    inspect,
    monitor,
    new,
    predict,
    projects,
    prune,
    recipes,
    reviews,
    rollouts,
    run,
    search,
    service,
    simulate,
    tokens,
    usage,
    webhooks,
)
from headrace.errors import UsageError, near_miss
from headrace.permissions import set_private_umask
from headrace.processes import bypass_proxies_on_loopback

EXIT_CODES = """
Exit codes: 0 done · 1 failed · 2 usage, recipe or settings · 3 data refused · 4 model not released ·
5 a service, port or engine · 6 busy · 7 disk full · 8 an alarm · 130 interrupted.
"""
SECTIONS: dict[str, list[click.Command]] = {
    "Projects": [projects.init, projects.upgrade],
    "Build and release": [
        run.run,
        reviews.approve,
        reviews.reject,
        rollouts.rollback,
        rollouts.rebuild,
        inspect.reproduce,
        prune.prune,
    ],
    "Serve": [run.up, run.down, rollouts.scale, service.service],
    "Call models": [predict.predict, batches.batch, backfill.backfill, feedback.feedback],
    "Recipes and data": [
        recipes.list_recipes,
        new.new,
        importing.import_model,
        recipes.check,
        recipes.expectations,
        data.data,
        search.search,
        simulate.simulate,
        compress.compress,
    ],
    "Monitor": [monitor.monitor, monitor.drift, webhooks.webhooks],
    "Inspect": [inspect.status, inspect.logs, inspect.history_command, inspect.trace, inspect.open_page],
    "Back up": [backups.backup, backups.restore],
    "Access and usage": [tokens.tokens, usage.usage, usage.audit],
}


class SectionedGroup(click.Group):
    """Lists commands by section in the help, and suggests the near miss of an unknown command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UsageError(f"unknown command {args[0]!r}; {near_miss(args[0], self.commands)}", hint="headrace --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                limit = formatter.width - 6 - width
                formatter.write_dl([(str(one.name).ljust(width), one.get_short_help_str(limit)) for one in commands])


@click.group(
    cls=SectionedGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="headrace")
def cli() -> None:
    """From raw data to a governed model endpoint: one recipe, one command.

    \b
    headrace run digits               release a model: data, training, gate, registry, replicas, gateway
    headrace predict digits --sample  call it
    headrace status                   show services and models
    headrace new NAME --data FILE --target COLUMN
    headrace import NAME SOURCE       release a model that others trained
    """


for section in SECTIONS.values():
    for command in section:
        cli.add_command(command)


def main() -> None:
    """Entry point of the `headrace` command."""
    from headrace.cli.shared import report_error

    bypass_proxies_on_loopback(os.environ)
    set_private_umask()
    as_json = "--json" in sys.argv
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.NoSuchOption as error:
        if error.option_name in renamed.OPTIONS:
            new = renamed.OPTIONS[error.option_name]
            sys.exit(report_error(UsageError(f"{error.option_name} was renamed to {new}", hint=f"use {new}"), as_json))
        if error.option_name in renamed.REMOVED_OPTIONS:
            message, hint = renamed.REMOVED_OPTIONS[error.option_name]
            sys.exit(report_error(UsageError(f"{error.option_name} was removed: {message}", hint=hint), as_json))
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error, as_json))
