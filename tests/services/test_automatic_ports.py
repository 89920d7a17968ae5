"""Projects on one machine start without settings: each gets ports of its own, and keeps them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace import renamed
from headrace.errors import DamagedFile, SettingsError
from headrace.project import Project
from headrace.services.automatic_ports import choose_ports
from headrace.serving.replicas import ports
from headrace.settings import PORTS, Settings, ports_file
from tests.ports import free_ports, taken
from tests.projects import make_project


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Default ports that no program of this machine has."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for name, port in found.items():
        monkeypatch.setattr(Settings.model_fields[name], "default", port)
    return found


def ports_of(project: Project) -> dict[str, int]:
    """As every later command reads them."""
    settings = Project(project.root).settings
    return {name: getattr(settings, name) for name in PORTS}


def test_a_project_has_the_defaults_where_they_are_free(tmp_path: Path, defaults: dict[str, int]) -> None:
    printed: list[str] = []
    project = make_project(tmp_path / "a")
    assert choose_ports(project, printed.append).settings == project.settings
    assert (printed, ports_of(project)) == ([], defaults)


def test_a_taken_default_is_replaced_once_and_the_choice_is_kept(tmp_path: Path, defaults: dict[str, int]) -> None:
    printed: list[str] = []
    project = make_project(tmp_path / "a")
    with taken(defaults["mlflow_port"]):
        chosen = choose_ports(project, printed.append)
        assert {name for name in PORTS if getattr(chosen.settings, name) != defaults[name]} == {"mlflow_port"}
        assert ports.is_free(chosen.settings.mlflow_port)
        new = f"mlflow_port is {chosen.settings.mlflow_port} from now on (kept in .headrace/ports.json)"
        assert printed == [f"port {defaults['mlflow_port']} is in use: {new}"]
    assert ports_of(project)["mlflow_port"] == chosen.settings.mlflow_port
    assert choose_ports(Project(project.root), printed.append).settings.mlflow_port == chosen.settings.mlflow_port
    assert len(printed) == 1, "kept, though the default is free again"


def test_starts_at_once_take_different_ports(tmp_path: Path, defaults: dict[str, int]) -> None:
    """None of them listens yet when the others choose."""
    projects = [make_project(tmp_path / name) for name in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        chosen = list(pool.map(lambda project: choose_ports(project, lambda line: None), projects))
    everything = [getattr(project.settings, name) for project in chosen for name in PORTS]
    assert len(set(everything)) == len(everything)


def test_the_ports_of_a_stopped_project_are_left_to_it_until_it_is_removed(tmp_path: Path, defaults: dict[str, int]) -> None:
    first, second = make_project(tmp_path / "a"), make_project(tmp_path / "b")
    choose_ports(first, lambda line: None)
    assert choose_ports(second, lambda line: None).settings.gateway_port != defaults["gateway_port"]
    first.root.rename(tmp_path / "moved")
    ports_file(tmp_path / "moved").unlink()
    third = make_project(tmp_path / "c")
    assert choose_ports(third, lambda line: None).settings.gateway_port == defaults["gateway_port"]


def test_a_port_of_a_setting_is_not_replaced(tmp_path: Path, defaults: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "a")
    explicit, variable = free_ports(2)
    (project.root / "headrace.toml").write_text(f"gateway_port = {explicit}\n")
    monkeypatch.setenv("HEADRACE_MLFLOW_PORT", str(variable))
    with taken(explicit), taken(variable):
        choose_ports(project, lambda line: None)
    assert (ports_of(project)["gateway_port"], ports_of(project)["mlflow_port"]) == (explicit, variable)


@pytest.mark.parametrize(("name", "why"), renamed.REMOVED_SETTINGS.items())
def test_a_port_that_no_server_needs_any_more_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    project = make_project(tmp_path / "a")
    (project.root / "headrace.toml").write_text(f"{name} = 8090\n")
    with pytest.raises(SettingsError, match=f"{name}: no setting any more: {why}; remove the line"):
        _ = project.settings
    (project.root / "headrace.toml").unlink()
    monkeypatch.setenv(f"HEADRACE_{name.upper()}", "8090")
    with pytest.raises(SettingsError, match=f"HEADRACE_{name.upper()} is not a setting any more: {why}"):
        _ = Project(project.root).settings


def test_a_user_without_a_writable_home_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    project = make_project(tmp_path / "a")
    choose_ports(project, lambda line: None)
    assert ports_file(project.root).exists()


def test_ports_that_an_earlier_version_chose_and_no_server_needs_are_ignored(tmp_path: Path, defaults: dict[str, int]) -> None:
    project = make_project(tmp_path / "a")
    project.state.mkdir()
    ports_file(project.root).write_text(json.dumps({**defaults, "mlflow_port": 1234, "api_port": 8091}))
    assert ports_of(project) == {**defaults, "mlflow_port": 1234}


@pytest.mark.parametrize("text", ["{", "[]", '{"gateway_port": "8080"}', '{"other": 1}'])
def test_damaged_ports_are_an_error(tmp_path: Path, text: str) -> None:
    project = make_project(tmp_path / "a")
    project.state.mkdir()
    ports_file(project.root).write_text(text)
    with pytest.raises(DamagedFile, match="damaged file") as caught:
        _ = project.settings
    assert caught.value.hint == "headrace down; remove the file; headrace up (it chooses ports again)"
