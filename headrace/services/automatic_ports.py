"""Ports of servers for which no setting gives one: the defaults, or free ones where another program has them.

What was chosen is kept in `.headrace/ports.json` (see `settings.load_settings`), so that all commands of the project find its
servers. Projects of one user leave each other's ports alone, also while they are stopped: a list of them is in
`$XDG_STATE_HOME/headrace/projects.json`, and a lock beside it is held while ports are chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace.console import Report
from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.serving.replicas import ports, supervisor
from headrace.settings import LOOPBACK, PORTS, Settings, load_settings, ports_file, read_kept_ports


def choose_ports(project: Project, report: Report) -> Project:
    """Returns the project with ports that are free, or that its own servers use; reports and keeps those that it changes.

    A port that a setting gives is not changed: `up` refuses it where another program has it.
    """
    supervisor.require_owner(project)
    kept, automatic = read_kept_ports(project.root), _automatic(project)
    if not automatic:
        return project
    with _projects() as others:
        given = {getattr(project.settings, name) for name in PORTS if name not in automatic}
        search = _Search(project, reserved=_ports_of(others - {str(project.root)}), used=given)
        chosen = {name: search.find(name, name in kept) for name in automatic}
        if chosen != kept:
            write_json(ports_file(project.root), chosen)
        others.add(str(project.root))
    changed = {name: port for name, port in chosen.items() if port != getattr(project.settings, name)}
    for name, port in changed.items():
        report(f"port {getattr(project.settings, name)} is in use: {name} is {port} from now on (kept in .headrace/ports.json)")
    return project.using(project.settings.model_copy(update=changed)) if changed else project


def _automatic(project: Project) -> list[str]:
    """Names of the ports that neither `headrace.toml`, the environment nor the caller gives."""
    explicit = load_settings(project.root, with_kept_ports=False).model_fields_set
    kept = read_kept_ports(project.root)
    return [
        name
        for name in PORTS
        if name not in explicit and getattr(project.settings, name) in (Settings.model_fields[name].default, kept.get(name))
    ]


@dataclass
class _Search:
    project: Project
    reserved: set[int]
    """Ports of the user's other projects."""
    used: set[int]
    """Ports that this project has already."""
    own_pids: set[int] | None = field(default=None)

    def find(self, name: str, is_kept: bool) -> int:
        """The port of `name` if it can be used, else the next one that can."""
        first: int = getattr(self.project.settings, name)
        host = self.project.settings.host if name == "gateway_port" else LOOPBACK
        may_use: Callable[[int], bool] = lambda port: port not in self.used and ports.is_free(port, host)  # noqa: E731
        is_usable = may_use(first) and (is_kept or first not in self.reserved)
        found = first
        if not is_usable and (first in self.used or not self._is_own(first, host)):
            not_for_this = self.reserved | {getattr(self.project.settings, other) for other in PORTS}
            found = next(port for port in range(first + 1, 65536) if port not in not_for_this and may_use(port))
        self.used.add(found)
        return found

    def _is_own(self, port: int, host: str) -> bool:
        """Whether a server of this project listens on the port."""
        if ports.is_free(port, host):
            return False
        if self.own_pids is None:
            self.own_pids = {process.pid for process in supervisor.supervised_processes(self.project)}
        owner = ports.find_owner(port)
        return owner is not None and owner.pid in self.own_pids


@contextlib.contextmanager
def _projects() -> Iterator[set[str]]:
    """The user's projects with ports of their own, to be changed while nobody else chooses; empty without a place for them."""
    from filelock import FileLock

    folder = ports.user_state_folder()
    if folder is None:
        yield set()
        return
    with FileLock(folder / "projects.lock"):
        before = {root for root in read_cached_json(folder / "projects.json") or [] if ports_file(Path(root)).exists()}
        projects = set(before)
        yield projects
        if projects != before:
            write_json(folder / "projects.json", sorted(projects))


def _ports_of(roots: set[str]) -> set[int]:
    return {port for root in roots for port in (read_cached_json(ports_file(Path(root))) or {}).values()}
