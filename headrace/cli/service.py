"""Commands that make systemd start the services at boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from headrace.cli.shared import json_option, load_project, print_json

if TYPE_CHECKING:
    from headrace.services.systemd import Unit


@click.group(short_help="Start the services at boot, with systemd.")
def service() -> None:
    """Manage the systemd user unit that runs `headrace up` at boot and `headrace down` at shutdown."""


@service.command("install", short_help="Write and enable the unit.")
@json_option
def install(as_json: bool) -> None:
    """Write and enable the unit. Services that run are not touched; settings in HEADRACE_ variables are written into it."""
    project = load_project()
    from headrace.services import systemd

    _show(systemd.install(project), as_json)


@service.command("uninstall", short_help="Remove the unit.")
@json_option
def uninstall(as_json: bool) -> None:
    """Disable and remove the unit. Services that run are not touched."""
    project = load_project()
    from headrace.services import systemd

    found = systemd.uninstall(project)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(f"{found.name} is not installed")


@service.command("status", short_help="Show whether the services start at boot.")
@json_option
def status(as_json: bool) -> None:
    """Show whether the services start at boot, and which commands are missing until they do."""
    project = load_project()
    from headrace.services import systemd

    _show(systemd.find(project), as_json)


def _show(unit: Unit, as_json: bool) -> None:
    if as_json:
        print_json({**unit.to_dict(), "next_steps": unit.next_steps})
        return
    click.echo(f"{unit.name} is {'installed: ' + unit.path if unit.installed else 'not installed'}")
    if unit.next_steps:
        click.echo("until the services start at boot, run:")
    for step in unit.next_steps:
        click.echo(f"  {step}")
