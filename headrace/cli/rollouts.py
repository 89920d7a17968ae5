"""Commands that change the version or the replicas of a served model."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json


@click.command(short_help="Roll a model back to an earlier version.")
@click.argument("model")
@click.option("--to", help="The version, for example 2; by default the previous one.")
@click.option("--why", default="", help="The reason, for the journal.")
@click.option("--rebuild", is_flag=True, help="Package the version again if its bento or image is missing.")
@json_option
def rollback(model: str, to: str | None, why: str, rebuild: bool, as_json: bool) -> None:
    """Roll MODEL back to an earlier version, within seconds and without losing a request.

    Nothing is trained or evaluated. The journal gets the reason and your user name. The current version is not released again
    until the recipe or its data change.
    """
    project = load_project()
    from headrace import console
    from headrace.release.rollback import roll_back
    from headrace.serving.access import audit

    console.step("roll back", model)
    facts = roll_back(model, to, why, audit.user(), project, console.report, rebuild)
    if as_json:
        print_json(facts)
        return
    rolled_back = facts["rolled_back"]
    click.echo(f"{model}@{facts['version']} serves again; {model}@{rolled_back['from']} was rolled back by {rolled_back['by']}")


@click.command(short_help="Change the number of replicas of a model.")
@click.argument("model")
@click.argument("replicas", type=click.IntRange(1, 64))
@json_option
def scale(model: str, replicas: int, as_json: bool) -> None:
    """Scale MODEL to REPLICAS replicas. The next release resets this to `serve.replicas` of the recipe."""
    project = load_project()
    from headrace import console
    from headrace.release.deploy import scale as scale_model

    console.step("scale", f"{model} to {replicas}")
    now = scale_model(model, replicas, project, console.report)
    if as_json:
        print_json({"model": model, "version": now.spec.version, "replicas": len(now.replicas), "address": now.address})
        return
    count = f"{len(now.replicas)} replica{'s' * (len(now.replicas) > 1)}"
    click.echo(f"{model}@{now.spec.version} is served by {count}" + ("" if now.changed else ", as before"))


@click.command(short_help="Make the package of a released version again.")
@click.argument("reference", metavar="NAME@VERSION")
@json_option
def rebuild(reference: str, as_json: bool) -> None:
    """Make the package of NAME@VERSION again, where it is gone from this machine: with the bytes that were released.

    The files come from MLflow, or else from the bento, or else from training the version again from its own code, data and
    recipe. Files with other bytes than the journal says are refused, and nothing is overwritten.
    """
    project = load_project()
    from headrace import console
    from headrace.release.rebuild import rebuild as make_again

    console.step("rebuild", reference)
    found = make_again(reference, project, console.report)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    package = found.image or found.bento
    what = f"is packaged again as {package}" if found.changed else f"was complete: {package}"
    click.echo(f"{found.version} {what}; its files are from {found.source}")
