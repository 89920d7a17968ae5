"""Commands on what serves: back to an earlier version, more or fewer replicas."""

from __future__ import annotations

import getpass

import click

from headrace.cli.shared import here, json_option, print_json


@click.command(short_help="Back to a version that served before.")
@click.argument("model")
@click.option("--to", help="The version, such as 2; by default the one that served before.")
@click.option("--why", default="", help="Kept in the journal.")
@click.option("--by", default=getpass.getuser, show_default="your user name", help="Who wants it; kept in the journal.")
@click.option("--rebuild", is_flag=True, help="Package the version anew, where its bento or image is gone.")
@json_option
def rollback(model: str, to: str | None, why: str, by: str, rebuild: bool, as_json: bool) -> None:
    """Let an earlier version of MODEL serve again, in seconds and without losing a request.

    Nothing is trained or judged. The version that goes is not released again until the recipe or its data change.
    """
    project, settings = here()
    from headrace import console
    from headrace.release.rollback import roll_back

    console.step("roll back", model)
    facts = roll_back(model, to, why, by, project, settings, console.report, rebuild)
    if as_json:
        print_json(facts)
        return
    click.echo(f"{model}@{facts['version']} serves again; {model}@{facts['rolled_back']['from']} was taken back by {by}")


@click.command(short_help="More or fewer replicas of what serves.")
@click.argument("model")
@click.argument("replicas", type=click.IntRange(1, 64))
@json_option
def scale(model: str, replicas: int, as_json: bool) -> None:
    """Let MODEL be served by REPLICAS replicas, until its next release: `serve.replicas` of the recipe counts then."""
    project, settings = here()
    from headrace import console
    from headrace.release.deploy import scale as scale_model

    console.step("scale", f"{model} to {replicas}")
    now = scale_model(model, replicas, project, settings, console.report)
    if as_json:
        print_json({"model": model, "version": now.spec.version, "replicas": len(now.replicas), "address": now.address})
        return
    count = f"{len(now.replicas)} replica{'s' * (len(now.replicas) > 1)}"
    click.echo(f"{model}@{now.spec.version} is served by {count}" + ("" if now.changed else ", as before"))


COMMANDS = [rollback, scale]
