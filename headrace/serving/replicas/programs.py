"""supervisord's files: its configuration, and one file per program. They contain no secrets."""

from __future__ import annotations

import re
import resource
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import ServiceError
from headrace.files import write_text
from headrace.project import Project

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
    return project.runtime_dir / "supervisor.sock"


def log_path(project: Project, program: str) -> Path:
    """A program's output; rotated, with at most two older files."""
    return project.logs / f"{program}.log"


def configuration_path(project: Project) -> Path:
    # Through a link in the short runtime folder: supervisord globs this path, and a project's name may contain [, % or a space.
    return project.runtime_dir / "conf" / "supervisord.conf"


def programs_folder(project: Project) -> Path:
    return project.state / "supervisor" / "programs"


def program_path(project: Project, name: str) -> Path:
    return programs_folder(project) / f"{name}.conf"


def write_configuration(project: Project) -> None:
    folder = project.state / "supervisor"
    programs_folder(project).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # the address of Redis may contain a password
    project.logs.mkdir(parents=True, exist_ok=True)
    project.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, target in (("conf", folder), ("logs", project.logs), ("root", project.root)):
        link = project.runtime_dir / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    write_text(
        folder / "supervisord.conf",
        f"""\
[supervisord]
logfile={project.runtime_dir}/logs/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile={project.runtime_dir}/supervisord.pid
directory={project.runtime_dir}/root
childlogdir={project.runtime_dir}/logs
nocleanup=true
minfds={_file_limit()}
minprocs=16

[unix_http_server]
file={socket_path(project)}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files=programs/*.conf
""",
    )


def _file_limit() -> int:
    """The limit of open files, which Envoy and replicas inherit; each connection takes one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)


def render(project: Project, program: Program) -> str:
    command = _literal(shlex.join(program.argv))
    environment = ",".join(
        f"{name}={_quoted(value)}" for name, value in {**program.env, SUPERVISED: str(project.runtime_dir)}.items()
    )
    code = f"; code {program.code}\n" if program.code else ""
    return f"""\
{code}[program:{program.name}]
command={command}
directory={project.runtime_dir}/root
environment={environment}
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
stdout_logfile={project.runtime_dir}/logs/{program.name}.log
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
