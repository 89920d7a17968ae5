"""Commands that look: status, logs, the journal, where a model came from."""

from __future__ import annotations

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.errors import ServiceError, UsageError, near_miss
from headrace.project import Project
from headrace.settings import Settings


@click.command(short_help="What runs, where.")
@json_option
def status(as_json: bool) -> None:
    """What runs, where: services and models with their version, replicas and address."""
    project, settings = here()
    show_status(project, settings, as_json)


def show_status(project: Project, settings: Settings, as_json: bool) -> None:
    from headrace.release import history, journal
    from headrace.services.orchestrate import status as look

    found = look(project, settings)
    champions = {model: entry.version for model, entry in history.production(journal.entries(project)).items()}
    for model in found["models"]:
        model["alias"] = "champion" if champions.get(model["name"]) == model["version"] else None
    if as_json:
        print_json(found)
        return
    from headrace.cli.summary import print_status

    print_status(found, sorted(champions))


@click.command(short_help="The last lines of a service or of replicas.")
@click.argument("name")
@click.option("-n", "--lines", default=50, show_default=True, help="How many lines of each.")
@json_option
def logs(name: str, lines: int, as_json: bool) -> None:
    """The last lines of a service (prefect-server, prefect-worker, mlflow, envoy, desk, keeper) or of a model's replicas."""
    project, settings = here()
    from headrace.services.logs import read

    found = read(name, lines, project, settings)
    if as_json:
        print_json(found)
        return
    for source, text in found.items():
        click.echo(click.style(f"== {source}", bold=True))
        click.echo(text)


@click.command(short_help="The release journal.")
@click.argument("model", required=False)
@json_option
def history(model: str | None, as_json: bool) -> None:
    """The release journal: what was in production when, by which gate, with which evidence."""
    project, _ = here()
    from headrace.release import journal

    found = journal.entries(project, model)
    if model and not found:
        known = {entry.model for entry in journal.entries(project)}
        raise UsageError(f"the journal has nothing of {model!r}; {near_miss(model, known)}", hint="headrace history")
    if as_json:
        print_json([journal.as_json(entry) for entry in found])
        return
    from headrace.cli.summary import print_history

    print_history(found)


@click.command(short_help="Follow a version or an answer back to its bytes.")
@click.argument("reference")
@json_option
def trace(reference: str, as_json: bool) -> None:
    """Follow REFERENCE (digits@3, digits@champion, or the `id` of a response) back to its bytes.

    Prints image, bento, model version, run, git commit and data, and how to get each back.
    """
    project, settings = here()
    from headrace.release.lineage import trace_version

    chain = trace_version(reference, project, settings)
    if as_json:
        print_json(chain)
        return
    from headrace.cli.summary import print_trace

    print_trace(chain)


@click.command(short_help="Train a version again and compare it byte for byte.")
@click.argument("reference")
@json_option
def reproduce(reference: str, as_json: bool) -> None:
    """Train REFERENCE (such as digits@3) again, from its own commit, data and recipe, and compare the weights.

    Works in a folder of its own: nothing of the project changes.
    """
    project, _ = here()
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
    """Open a page in the browser: mlflow, prefect, or the Data Docs of the last validations."""
    project, settings = here()
    addresses = {
        "mlflow": settings.mlflow_address,
        "prefect": settings.prefect_address,
        "docs": (project.data_docs / "index.html").as_uri(),
    }
    if page == "docs" and not (project.data_docs / "index.html").exists():
        raise ServiceError("there are no Data Docs yet", hint="headrace run RECIPE validates data and writes them")
    if as_json:
        print_json({"address": addresses[page]})
    else:
        click.launch(addresses[page])
        click.echo(addresses[page])


COMMANDS = [status, logs, history, trace, reproduce, open_page]
