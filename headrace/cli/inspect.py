"""Commands that show something: status, logs, the release journal, the lineage of a model."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import ServiceError, UsageError, near_miss
from headrace.project import Project


@click.command(short_help="Show services and models.")
@json_option
def status(as_json: bool) -> None:
    """Show services and models, with their state, version, replicas and address."""
    project = load_project()
    show_status(project, as_json)


def show_status(project: Project, as_json: bool) -> None:
    from headrace.release import history, journal
    from headrace.services.status import status as service_status

    found = service_status(project)
    champions = {model: entry.version for model, entry in history.production(journal.entries(project)).items()}
    for model in found["models"]:
        model["alias"] = "champion" if champions.get(model["name"]) == model["version"] else None
    if as_json:
        print_json(found)
        return
    from headrace.cli.summary import print_status

    print_status(found, sorted(champions))


@click.command(short_help="Show log lines of a service or of replicas.")
@click.argument("name")
@click.option("-n", "--lines", default=50, show_default=True, help="Lines per log.")
@json_option
def logs(name: str, lines: int, as_json: bool) -> None:
    """Show the last log lines of NAME: a model, or a service (prefect-server, prefect-worker, mlflow, envoy, api-server,
    watchdog)."""
    project = load_project()
    from headrace.services.status import read_log

    found = read_log(name, lines, project)
    if as_json:
        print_json(found)
        return
    for source, text in found.items():
        click.echo(click.style(f"== {source}", bold=True))
        click.echo(text)


@click.command(short_help="Show the release journal.")
@click.argument("model", required=False)
@json_option
def history(model: str | None, as_json: bool) -> None:
    """Show the release journal: what was released when, with the verdict of the gate and its evidence."""
    project = load_project()
    from headrace.release import journal

    found = journal.entries(project, model)
    if model and not found:
        known = {entry.model for entry in journal.entries(project)}
        raise UsageError(f"no entries for {model!r} in the journal; {near_miss(model, known)}", hint="headrace history")
    if as_json:
        print_json([journal.as_json(entry) for entry in found])
        return
    from headrace.cli.summary import print_history

    print_history(found)


@click.command(short_help="Show the lineage of a version or of an answer.")
@click.argument("reference")
@json_option
def trace(reference: str, as_json: bool) -> None:
    """Show the lineage of REFERENCE: digits@3, digits@champion, or the `id` of a response.

    Prints the image, bento, model version, run, git commit and data, and how to restore each.
    """
    project = load_project()
    from headrace.release.lineage import trace_version

    chain = trace_version(reference, project)
    if as_json:
        print_json(chain)
        return
    from headrace.cli.summary import print_trace

    print_trace(chain)


@click.command(short_help="Train a version again and compare the weights.")
@click.argument("reference")
@json_option
def reproduce(reference: str, as_json: bool) -> None:
    """Train REFERENCE (for example digits@3) again, from its own commit, data and recipe, and compare it byte for byte.

    Works in a separate folder and does not change the project.
    """
    project = load_project()
    from headrace import console
    from headrace.release.reproduce import reproduce as train_again

    console.step("reproduce", reference)
    found = train_again(reference, project, console.report)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    from headrace.cli.summary import print_reproduction

    print_reproduction(found)


@click.command("open", short_help="Open MLflow, Prefect or Data Docs in the browser.")
@click.argument("page", type=click.Choice(["mlflow", "prefect", "docs"]))
@json_option
def open_page(page: str, as_json: bool) -> None:
    """Open a page in the browser: MLflow, Prefect, or the Data Docs of the last validation."""
    project = load_project()
    addresses = {
        "mlflow": project.settings.mlflow_address,
        "prefect": project.settings.prefect_address,
        "docs": (project.data_docs / "index.html").as_uri(),
    }
    if page == "docs" and not (project.data_docs / "index.html").exists():
        raise ServiceError("there are no Data Docs yet", hint="headrace run RECIPE validates the data and writes them")
    if as_json:
        print_json({"address": addresses[page]})
    else:
        click.launch(addresses[page])
        click.echo(addresses[page])
