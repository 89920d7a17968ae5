"""supervisord's files: its configuration, and one file per program. They contain no secrets."""

from __future__ import annotations

import re
import resource
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import ServiceError
from headrace.files import private_folder, write_text
from headrace.permissions import PRIVATE_UMASK
from headrace.project import Project

SOCKET = "supervisor.sock"
SUPERVISED = "HEADRACE_SUPERVISED"
"""Environment variable of every program; processes that outlive supervisord are found by it."""


@dataclass(frozen=True)
class Program:
    """A command that supervisord keeps running."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """Added to the environment that supervisord inherited. Never a secret, since it is written to a file."""
    stop_seconds: float = 10.0
    """Time from SIGTERM to SIGKILL."""
    start_seconds: int = 1
    """A program that ends sooner counts as a failed start."""
    start_retries: int = 3
    priority: int = 500
    """Lower values start first and stop last."""
    code: str = ""
    """Digest or version of its code: a program with other code is restarted, even if its command is the same."""


def socket_path(project: Project) -> Path:
    return project.runtime_dir / SOCKET


def log_path(project: Project, program: str) -> Path:
    """A program's output; rotated, with at most two older files."""
    return project.logs / f"{program}.log"


def configuration_path(project: Project) -> Path:
    return project.state / "supervisor" / "supervisord.conf"


def programs_folder(project: Project) -> Path:
    return project.state / "supervisor" / "programs"


def program_path(project: Project, name: str) -> Path:
    return programs_folder(project) / f"{name}.conf"


def write_configuration(project: Project) -> None:
    """Writes supervisord's configuration, and makes its folders.

    Raises:
        ServiceError: others can enter the folder of the socket, or a path contains what supervisord cannot read.
    """
    private_folder(project.runtime_dir)
    programs_folder(project).mkdir(parents=True, exist_ok=True)
    configuration_path(project).parent.chmod(0o700)  # the address of Redis may contain a password
    project.logs.mkdir(parents=True, exist_ok=True)
    logs = _literal(str(project.logs))
    write_text(
        configuration_path(project),
        f"""\
[supervisord]
logfile={logs}/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
{pid_file_option(project)}
childlogdir={logs}
nocleanup=true
umask={PRIVATE_UMASK:03o}
minfds={_file_limit(project.settings.max_connections)}
minprocs=16

[unix_http_server]
file={SOCKET}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files=programs/*.conf
""",
    )


def pid_file_option(project: Project) -> str:
    """A line of the configuration that has the project's path."""
    return f"pidfile={_literal(str(project.runtime_dir))}/supervisord.pid"


def _file_limit(max_connections: int) -> int:
    """The limit of open files, which Envoy and replicas inherit; each connection takes one, and its request another."""
    wanted, hard = max(8192, 2 * max_connections), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def render(project: Project, program: Program) -> str:
    command = _literal(shlex.join(program.argv))
    environment = ",".join(f"{name}={_quoted(value)}" for name, value in {**program.env, SUPERVISED: project.label}.items())
    logs = _literal(_literal(str(project.logs)))  # supervisord expands this option twice
    code = f"; code {program.code}\n" if program.code else ""
    return f"""\
{code}[program:{program.name}]
command={command}
directory={_literal(str(project.root))}
environment={environment}
umask={PRIVATE_UMASK:03o}
priority={program.priority}
autostart=true
autorestart=true
startsecs={program.start_seconds}
startretries={program.start_retries}
stopsignal=TERM
stopwaitsecs={max(1, round(program.stop_seconds))}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={logs}/{program.name}.log
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=2
"""


def _quoted(value: str) -> str:
    quote = "'" if '"' in value else '"'
    if quote in value or value != value.strip("'\""):
        raise ServiceError(
            f"environment variables of programs cannot begin or end with a quote, or contain both ' and \": {value}",
            hint="rename the project's folder, without quotes",
        )
    return quote + _literal(value) + quote


def _literal(value: str) -> str:
    """Escapes % for supervisord, which also treats a space before ; or # as a comment, even inside quotes."""
    if re.search(r"\s[;#]|[\r\n]", value):
        raise ServiceError(
            f"commands of programs cannot contain a space followed by ; or #: {value}",
            hint="rename the project's folder, without these characters",
        )
    return value.replace("%", "%%")
