"""The secrets of MLflow and Prefect: made on first use, in `.headrace/keys`, readable by this user only.

Processes read them from these files. They are in no command line and in no file that supervisord reads.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import tomllib
from pathlib import Path

from headrace.errors import DamagedFile
from headrace.files import create_secret
from headrace.project import Project

USER = "headrace"
PROFILE = "headrace"
PREFECT_SETTINGS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
"""Settings of Prefect's clients and of its server; both have the same value."""


def prefect_profiles(project: Project) -> Path:
    """Prefect's file of profiles, from which its server and all its clients read their secret."""
    return project.keys / "prefect.toml"


def mlflow_password_file(project: Project) -> Path:
    """Holds the password of the user `headrace` of MLflow."""
    return project.keys / "mlflow"


def make_credentials(project: Project) -> None:
    """Makes the secrets that do not exist."""
    if not mlflow_password_file(project).exists():
        create_secret(mlflow_password_file(project), secrets.token_urlsafe(32) + "\n")
    if not prefect_profiles(project).exists():
        value = f"{USER}:{secrets.token_urlsafe(32)}"
        lines = [f'{name} = "{value}"' for name in PREFECT_SETTINGS]
        create_secret(prefect_profiles(project), "\n".join([f'active = "{PROFILE}"', "", f"[profiles.{PROFILE}]", *lines, ""]))


def credential(project: Project, server: str) -> str | None:
    """Returns `user:password` of `mlflow` or `prefect`; None before the first `headrace up`.

    Raises:
        DamagedFile: the file of the secret has no secret.
    """
    path = mlflow_password_file(project) if server == "mlflow" else prefect_profiles(project)
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    value: object = f"{USER}:{text.strip()}"
    try:
        if server == "prefect":
            value = tomllib.loads(text)["profiles"][PROFILE][PREFECT_SETTINGS[1]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        value = None
    if not isinstance(value, str) or not value.partition(":")[2]:
        hint = f"restore it from a backup; or rm '{path}', then headrace up   (makes a new secret)"
        raise DamagedFile("damaged file: it has no secret", where=str(path), hint=hint)
    return value


def basic(user_and_password: str) -> str:
    """Returns the value of the header `authorization` for `user:password` (RFC 7617)."""
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


def fingerprint(project: Project, server: str) -> str:
    """Changes when the secret or the code of this package changes: a running server has to be restarted then."""
    digest = hashlib.sha256((credential(project, server) or "").encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
