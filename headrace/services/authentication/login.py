"""How `headrace open` logs the operator's browser in: by a link with a code that is valid once."""

from __future__ import annotations

import html
from pathlib import Path

from headrace.errors import ServiceError
from headrace.files import write_secret
from headrace.project import Project
from headrace.services.authentication.credentials import basic, credential
from headrace.services.authentication.login_page import CODES_PATH, LOGIN_PATH
from headrace.serving.local_http import try_request
from headrace.settings import LOOPBACK


def address(project: Project, server: str) -> str:
    """Returns where the pages of `mlflow` or `prefect` are."""
    if server == "prefect":
        return project.settings.prefect_address
    return project.settings.tracking_uri or project.settings.mlflow_address


def login_link(project: Project, server: str, page: str = "") -> str:
    """Returns a link that logs a browser in once, within five minutes; for another MLflow server its address alone.

    Args:
        page: where the browser goes then, as MLflow names its pages: `/models/digits`.

    Raises:
        ServiceError: the server does not answer, or does not know the secret.
    """
    if server == "mlflow" and project.settings.tracking_uri is not None:
        return project.settings.tracking_uri
    port = project.settings.prefect_port if server == "prefect" else project.settings.mlflow_port
    headers = {"authorization": basic(credential(project, server) or "")}
    answer = try_request((LOOPBACK, port), CODES_PATH, method="POST", headers=headers)
    if answer is None or answer.status != 200:
        reason = "does not answer" if answer is None else f"refuses the login (HTTP {answer.status})"
        raise ServiceError(f"{server} {reason}", where=address(project, server), hint="headrace up")
    return f"{address(project, server)}{LOGIN_PATH}#{answer.json()['code']}" + (f"~{page}" if page else "")


def write_login_file(project: Project, server: str, link: str) -> Path:
    """Writes a page that leads to `link`, readable by this user only: the command line of a browser is readable by all."""
    path = project.state / "login" / f"{server}.html"
    target = html.escape(link, quote=True)
    write_secret(
        path,
        f"<!doctype html><meta charset='utf-8'><meta name='referrer' content='no-referrer'>"
        f"<meta http-equiv='refresh' content='0; url={target}'><a href='{target}'>{server}</a>\n",
    )
    return path
