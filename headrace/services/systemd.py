"""A systemd user unit that starts the project's services at boot, and stops them in order at shutdown."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.errors import ServiceError
from headrace.files import atomic_write
from headrace.project import Project
from headrace.settings import Settings

SECONDS = 30.0
HEADRACE = (sys.executable, "-c", "from headrace.cli import main; main()")


@dataclass(frozen=True)
class Unit:
    """The unit of a project, as it is on this machine."""

    name: str
    path: str
    installed: bool
    current: bool
    """Whether the file runs this installation of Headrace."""
    enabled: bool | None
    """Whether systemd starts it; None where systemd does not answer."""
    lingers: bool | None
    """Whether systemd starts it at boot, rather than at the first login; None where systemd does not answer."""

    def to_dict(self) -> dict[str, str | bool | None]:
        return asdict(self)

    @property
    def next_steps(self) -> list[str]:
        """Commands that remain to be run until the services come back after a reboot."""
        steps = []
        if not self.installed or not self.current:
            steps.append("headrace service install")
        elif not self.enabled:
            steps.append(f"systemctl --user daemon-reload && systemctl --user enable {self.name}")
        if not self.lingers:
            steps.append(f"loginctl enable-linger {getpass.getuser()}")
        return steps


def find(project: Project) -> Unit:
    """The state of the project's unit."""
    name, path = unit_name(project), _path(project)
    text = path.read_text(encoding="utf-8") if path.exists() else None
    return Unit(
        name,
        str(path),
        installed=text is not None,
        current=text is not None and _start() in text.splitlines(),
        enabled=_says("enabled", "systemctl", "--user", "is-enabled", name),
        lingers=_says("yes", "loginctl", "show-user", getpass.getuser(), "--property=Linger", "--value"),
    )


def install(project: Project) -> Unit:
    """Writes the unit and enables it, where systemd answers. Running services are not touched.

    Raises:
        ServiceError: this machine has no systemd.
    """
    if not sys.platform.startswith("linux"):
        raise ServiceError("systemd was not found on this machine", hint="run headrace up at login or boot")
    path = _path(project)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.touch(mode=0o600)  # a setting may contain a password
        temporary.write_text(render(project), encoding="utf-8")
    _run("systemctl", "--user", "daemon-reload")
    _run("systemctl", "--user", "enable", unit_name(project))
    return find(project)


def uninstall(project: Project) -> Unit:
    """Disables and removes the unit. Running services are not touched."""
    _run("systemctl", "--user", "disable", unit_name(project))
    _path(project).unlink(missing_ok=True)
    _run("systemctl", "--user", "daemon-reload")
    return find(project)


def unit_name(project: Project) -> str:
    folder = re.sub(r"[^a-z0-9]+", "-", project.root.name.lower()).strip("-")[:40] or "project"
    return f"headrace-{folder}-{project.label[-6:]}.service"


def render(project: Project) -> str:
    """The unit's text."""
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    variables = {"HEADRACE_ROOT": str(project.root), "PATH": path, **_settings_of_this_shell()}
    return f"""\
[Unit]
Description=Headrace services of {_escaped(str(project.root))}

[Service]
Type=oneshot
RemainAfterExit=yes
# A model that does not start fails the command, and must not end the services and models that run.
KillMode=process
Restart=on-failure
RestartSec=60
TimeoutStartSec=15min
TimeoutStopSec=5min
{"".join(f"Environment={_quoted(f'{name}={value}')}{os.linesep}" for name, value in sorted(variables.items()))}\
{_start()}
ExecStop={_command([*HEADRACE, "down"])}

[Install]
WantedBy=default.target
"""


def _start() -> str:
    return f"ExecStart={_command([*HEADRACE, 'up'])}"


def _settings_of_this_shell() -> dict[str, str]:
    """Settings given by environment variables: they would be missing at boot."""
    names = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name in names}


def _path(project: Project) -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user" / unit_name(project)


def _command(arguments: list[str]) -> str:
    return " ".join(_quoted(argument).replace("$", "$$") for argument in arguments)


def _quoted(value: str) -> str:
    """A value in systemd's quotes: backslashes, quotes and specifiers are escaped."""
    return _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(value: str) -> str:
    return value.replace("%", "%%")


def _says(wanted: str, *command: str) -> bool | None:
    done = _run(*command)
    if done is None or "Failed to connect" in done.stderr:
        return None
    return done.stdout.strip() == wanted


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """None where the program is missing, or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
