"""The commands that watch a model: monitor and drift."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError


@click.command(short_help="Compare what a model is asked with its training rows, now.")
@click.argument("name")
@click.option("--restart", is_flag=True, help="Begin the alarm again, once you have looked at what raised it.")
@json_option
def monitor(name: str, restart: bool, as_json: bool) -> None:
    """Look at the version of NAME in production: count the hours that are new, compare the last day with the training rows, and
    its answers with the true ones where feedback has them. The report is a page; `headrace drift NAME` prints the last one.

    Exits with 8 while the alarm is raised.
    """
    project = load_project()
    from headrace import console
    from headrace.recipe.recipe import load_recipe
    from headrace.services.monitoring.look import look
    from headrace.services.monitoring.look import restart as restart_alarm
    from headrace.services.monitoring.report import folder_of

    recipe = load_recipe(name, project)
    if restart:
        restart_alarm(name, project)
    found = look(name, recipe.monitor, project, console.report, metric=recipe.gate.main_metric)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        for line in found.lines():
            click.echo(line)
        click.echo(f"report: {(folder_of(name, project) / 'report.html').relative_to(project.root)}")
    if found.is_alarming:
        raise SystemExit(8)


@click.command(short_help="Show the last report of the monitoring of a model.")
@click.argument("name")
@json_option
def drift(name: str, as_json: bool) -> None:
    """Show the last report about NAME, without looking again."""
    project = load_project()
    from headrace.services.monitoring.report import last_report

    found = last_report(name, project)
    if found is None:
        raise UsageError(f"no report about {name!r} has been written yet", where="NAME", hint=f"headrace monitor {name}")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for line in found.lines():
        click.echo(line)
    click.echo(f"looked at {found.at}")
