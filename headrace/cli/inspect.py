"""Commands that show something: status, logs, the release journal, the lineage of a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import ServiceError, UsageError, near_miss
from headrace.project import Project

if TYPE_CHECKING:
    from headrace.release.journal import Entry


@click.command(short_help="Show services and models.")
@json_option
def status(as_json: bool) -> None:
    """Show services and models, with their state, version, replicas and address.

    What should run and does not work is listed with the reason and the command that resolves it; the exit code is then 5.
    """
    project = load_project()
    if show_status(project, as_json):
        sys.exit(ServiceError.exit_code)


def show_status(project: Project, as_json: bool) -> list[str]:
    """Prints the status, and returns the names of what does not work."""
    from headrace.release import history, journal
    from headrace.services.status import failing
    from headrace.services.status import status as service_status

    found = service_status(project)
    production = history.production(journal.entries(project))
    deleted, misplaced = _deleted(production, project), misplaced_champions(project)
    for model in found["models"]:
        name = model["name"]
        model["deleted_in_mlflow"] = deleted.get(name)
        model["champion_in_mlflow"] = None
        if name in misplaced:
            model["alias"] = None
            model["champion_in_mlflow"] = {
                "version": misplaced[name],
                "serves": production[name].version,
                "hint": f"headrace run {name}",
            }
    if as_json:
        print_json(found)
        return failing(found)
    from headrace.cli.summary import print_status

    print_status(found)
    return failing(found)


def _deleted(production: Mapping[str, Entry], project: Project) -> dict[str, str]:
    """What somebody deleted in MLflow of versions that serve, by model."""
    from headrace.tracking.database import deleted_in_mlflow

    return deleted_in_mlflow({name: (e.version, str(e.facts.get("run_id"))) for name, e in production.items()}, project)


def misplaced_champions(project: Project) -> dict[str, str | None]:
    """Where MLflow's alias `champion` points, by model, if not to the version in production; None where it is missing."""
    from headrace.release import history, journal
    from headrace.tracking import database

    production = history.production(journal.entries(project))
    return database.misplaced_champions({name: entry.version for name, entry in production.items()}, project)


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


@click.command("history", short_help="Show the release journal.")
@click.argument("model", required=False)
@json_option
def history_command(model: str | None, as_json: bool) -> None:
    """Show the release journal: what was released when, with the verdict of the gate and its evidence."""
    project = load_project()
    from headrace.release import history, journal, reviews

    found = journal.entries(project, model)
    if model and not found:
        known = {entry.model for entry in journal.entries(project)}
        raise UsageError(f"no entries for {model!r} in the journal; {near_miss(model, known)}", hint="headrace history")
    if as_json:
        print_json(reviews.described(found, project))
        return
    from headrace.cli.summary import print_deleted, print_history

    print_history(found, reviews.why_not_counted(found, project))
    production = history.production(found)
    for name, what in _deleted(production, project).items():
        print_deleted(f"{name}@{production[name].version}", what)


@click.command(short_help="Show the lineage of a version or of an answer.")
@click.argument("reference")
@click.option(
    "--extract", type=click.Path(path_type=Path), help="Write code, recipe and data of the version to this new folder."
)
@json_option
def trace(reference: str, extract: Path | None, as_json: bool) -> None:
    """Show the lineage of REFERENCE: digits@3, digits@champion, or the `id` of a response.

    Prints the image, bento, model version, run, git commit and data, and how to restore each. The project does not change.
    """
    project = load_project()
    if extract is not None:
        _extract(reference, extract, project, as_json)
        return
    from headrace.release.lineage import trace_version

    chain = trace_version(reference, project)
    if as_json:
        print_json(chain)
        return
    from headrace.cli.summary import print_trace

    print_trace(chain)


def _extract(reference: str, folder: Path, project: Project, as_json: bool) -> None:
    from headrace.release.extract import extract

    code = extract(reference, folder, project)
    if as_json:
        print_json({"folder": str(folder), "code": code})
        return
    click.echo(f"{folder} has the code ({code}), the recipe and the data")


@click.command(short_help="Train a version again and compare the weights.")
@click.argument("reference")
@json_option
def reproduce(reference: str, as_json: bool) -> None:
    """Train REFERENCE (for example digits@3) again, from its own code, data and recipe, and compare it byte for byte. What was
    not committed comes from the copy that is kept with the version.

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


def _models_page(project: Project) -> str:
    """MLflow's page of the registered models; of the only one, its own page."""
    from headrace.release import journal

    names = {entry.model for entry in journal.entries(project)}
    return f"/models/{names.pop()}" if len(names) == 1 else "/models"


@click.command("open", short_help="Open MLflow, Prefect or Data Docs in the browser.")
@click.argument("page", type=click.Choice(["mlflow", "prefect", "docs"]))
@click.option("--link", is_flag=True, help="Print a link that logs in once, within five minutes, and start no browser.")
@json_option
def open_page(page: str, link: bool, as_json: bool) -> None:
    """Open a page in the browser: MLflow or Prefect, logged in, or the Data Docs of the last validation."""
    project = load_project()
    if page == "docs":
        index = project.data_docs / "index.html"
        if not index.exists():
            raise ServiceError("there are no Data Docs yet", hint="headrace run RECIPE validates the data and writes them")
        address = login = opened = index.as_uri()
    else:
        from headrace.services.authentication import login as logins

        address = logins.address(project, page)
        login = logins.login_link(project, page, _models_page(project) if page == "mlflow" else "")
        opened = login if login == address else logins.write_login_file(project, page, login).as_uri()
    if as_json:
        print_json({"address": address, "login": login})
    elif link:
        click.echo(login)
    else:
        # A file, not the link: other users can read the browser's command line.
        click.echo(login if click.launch(opened) else address)
