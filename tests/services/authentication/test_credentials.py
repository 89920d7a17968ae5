"""Secrets of MLflow and Prefect: made once, readable by this user only, named when damaged."""

from __future__ import annotations

import multiprocessing
import tomllib

import pytest

from headrace.errors import DamagedFile
from headrace.project import Project
from headrace.services import mlflow, prefect
from headrace.services.authentication import credentials
from headrace.services.authentication.credentials import credential, make_credentials


def _make(project: Project, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    make_credentials(project)


def test_the_secrets_are_made_once_also_by_several_processes(project: Project) -> None:
    assert credential(project, "mlflow") is None and credential(project, "prefect") is None
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_make, args=(project, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    first = credential(project, "mlflow"), credential(project, "prefect")
    make_credentials(project)
    assert (credential(project, "mlflow"), credential(project, "prefect")) == first
    assert None not in first and len({*first}) == 2
    files = [credentials.mlflow_password_file(project), credentials.prefect_profiles(project)]
    assert [path.stat().st_mode & 0o777 for path in (*files, project.keys)] == [0o600, 0o600, 0o700]
    assert sorted(project.keys.iterdir()) == sorted(files), "no temporary file is left"
    profile = tomllib.loads(files[1].read_text())["profiles"]["headrace"]
    assert profile == {"PREFECT_API_AUTH_STRING": first[1], "PREFECT_SERVER_API_AUTH_STRING": first[1]}


def test_no_secret_is_in_a_command_or_in_supervisords_files(project: Project) -> None:
    make_credentials(project)
    for server in (prefect.server(project), prefect.worker(project), mlflow.server(project)):
        shown = " ".join([*server.program.argv, *server.program.env.values(), server.program.code])
        for name in ("mlflow", "prefect"):
            assert (credential(project, name) or "").partition(":")[2] not in shown


def test_a_new_secret_restarts_the_servers(project: Project) -> None:
    make_credentials(project)
    before = [prefect.server(project).program, prefect.worker(project).program, mlflow.server(project).program]
    for path in (credentials.mlflow_password_file(project), credentials.prefect_profiles(project)):
        path.unlink()
    make_credentials(project)
    after = [prefect.server(project).program, prefect.worker(project).program, mlflow.server(project).program]
    assert all(old.code != new.code for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(("server", "name"), [("mlflow", "mlflow"), ("prefect", "prefect.toml")])
@pytest.mark.parametrize("text", ["", "[profiles", "profiles = 1\n"], ids=["empty", "cut", "other"])
def test_a_damaged_secret_is_named(server: str, name: str, text: str, project: Project) -> None:
    if server == "mlflow" and text:
        pytest.skip("any text is a password")
    make_credentials(project)
    (project.keys / name).write_text(text)
    with pytest.raises(DamagedFile, match="no secret") as caught:
        credential(project, server)
    assert str(caught.value.where) == str(project.keys / name) and "headrace up" in (caught.value.hint or "")


def test_credentials_of_the_users_shell_are_not_used(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:else")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_cloud")
    environment = prefect.process_environment(project)
    assert environment["PREFECT_PROFILES_PATH"] == str(project.keys / "prefect.toml")
    assert {"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"}.isdisjoint(environment)
