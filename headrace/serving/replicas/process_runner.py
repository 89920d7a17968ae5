"""Runs replicas as local processes, each a program of the project's supervisord.

`.headrace/replicas/<id>.json` is the record of each replica. It is written before the process starts and removed after it has
ended, so that `list` is exact, whatever was killed in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from headrace.files import private_folder, read_json, write_json
from headrace.project import Project
from headrace.serving.replicas import environment, supervisor
from headrace.serving.replicas.connections import has_connections
from headrace.serving.replicas.replica import SCHEMA_VERSION, Replica, ReplicaSpec, RunnerName, State, new_id

Argv = tuple[list[str], dict[str, str]]
Command = Callable[[ReplicaSpec, Path], Argv]
"""Makes the arguments and environment variables of a server from a spec, and the path of the Unix socket to listen on."""

STATES: dict[str, State] = {"starting": "starting", "running": "running", "stopping": "stopping", "stopped": "stopped"}


class ProcessRunner:
    """Runs replicas as local processes (see `replica.Runner`)."""

    name: RunnerName = "process"

    def __init__(self, project: Project, command: Command | None = None) -> None:
        """`command` makes the command of a replica; by default one that serves a built bento."""
        self.project = project
        self._command = command or self._serve_bento

    def start(self, spec: ReplicaSpec) -> Replica:
        """Starts a process with a Unix socket of its own, and returns before it is ready.

        Raises:
            ServiceError: it cannot be started, or other users can enter the folder of the socket.
        """
        private_folder(self.project.sockets)
        name, digest = new_id(spec), environment.settings_digest(self.project.settings)
        socket = (self.project.sockets / f"{name}.sock").relative_to(self.project.root)  # short, whatever the project's path
        replica = Replica(name, spec, socket, self.name, digest, started_at=time.time(), state="starting")
        argv, env = self._command(spec, socket)
        write_json(self._path(replica.id), {"schema_version": SCHEMA_VERSION, **replica.to_dict()})
        variables = environment.process_variables(spec, replica.id, self.project)
        supervisor.add(self.project, supervisor.Program(replica.id, argv, {**env, **variables}, priority=400))
        return replace(replica, pid=self._pid(replica.id))

    def stop(self, replica: Replica, drain_seconds: float) -> None:
        supervisor.remove(self.project, replica.id, drain_seconds)
        self._path(replica.id).unlink(missing_ok=True)
        for log in self.project.logs.glob(f"{replica.id}.log*"):
            log.unlink(missing_ok=True)
        if isinstance(socket := replica.address_in(self.project), Path):
            socket.unlink(missing_ok=True)

    def has_connections(self, replica: Replica) -> bool:
        return has_connections(replica.address, self._pid(replica.id))

    def restart(self, replica: Replica, stop_seconds: float) -> None:
        supervisor.restart(self.project, replica.id, stop_seconds)

    def list(self, model: str | None = None) -> list[Replica]:
        states = supervisor.states(self.project)
        found = (
            read_json(path, "headrace down, then headrace up", SCHEMA_VERSION) for path in sorted(self._folder.glob("*.json"))
        )
        replicas = [self._with_state(Replica.from_dict(values), states) for values in found if values]
        return [replica for replica in replicas if model in (None, replica.model)]

    def logs(self, replica: Replica, lines: int) -> str:
        return supervisor.tail(supervisor.log_path(self.project, replica.id), lines)

    @property
    def _folder(self) -> Path:
        return self.project.state / "replicas"

    def _path(self, replica_id: str) -> Path:
        return self._folder / f"{replica_id}.json"

    def _pid(self, replica_id: str) -> int | None:
        state = supervisor.states(self.project).get(replica_id)
        return state.pid if state else None

    def _with_state(self, replica: Replica, states: dict[str, supervisor.ProgramState]) -> Replica:
        state = states.get(replica.id)
        if state is None:  # the start was interrupted, or supervisord is down
            return replace(replica, state="stopped", pid=None)
        return replace(replica, state=STATES.get(state.state, "failed"), pid=state.pid)

    def _serve_bento(self, spec: ReplicaSpec, socket: Path) -> Argv:
        from headrace.serving.packaging import serve_command

        return serve_command(self.project, spec.bento_tag, socket, spec.threads)
