"""The Docker engine, through its own client: contexts, DOCKER_HOST and credentials then mean what they mean in a shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headrace.errors import EngineMissing, ServiceError
from headrace.settings import Settings

MEND = 'start Docker (or set docker_host in headrace.toml); or serve as processes: runner = "process"'


@dataclass
class Docker:
    """One engine. `host` is its address, or None for what the client uses by itself."""

    host: str | None = None

    @classmethod
    def connect(cls, settings: Settings) -> Docker:
        """The engine of these settings, having answered.

        Raises:
            EngineMissing: there is no client, or no engine answers it.
        """
        docker = cls(settings.docker_host)
        docker.require()
        return docker

    def require(self) -> None:
        if self._client is None:
            raise EngineMissing("the docker client is not installed", where="docker", hint=f"install Docker; {MEND}")
        done = self._call(["version", "--format", "{{.Server.Version}}"], seconds=20)
        if done.returncode != 0:
            raise EngineMissing(f"no Docker engine answers: {_last_line(done.stderr)}", where=self.host or "docker", hint=MEND)

    def run(
        self, *arguments: str, data: bytes | None = None, seconds: float = 120, environment: dict[str, str] | None = None
    ) -> str:
        """What `docker ARGUMENTS` prints.

        Raises:
            ServiceError: it failed; the message ends with what it said.
        """
        done = self._call(list(arguments), data=data, seconds=seconds, environment=environment)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            if "Cannot connect to the Docker daemon" in said:
                raise EngineMissing("the Docker engine stopped answering", where=self.host or "docker", hint=MEND)
            raise ServiceError(
                f"docker {arguments[0]} failed:\n{said[-2000:]}",
                where="docker",
                hint=f"docker {' '.join(arguments[:2])} ...   (see its message above)",
            )
        return done.stdout.decode(errors="replace").strip()

    def inspect(self, kind: str, *names: str) -> list[dict[str, Any]]:
        """What the engine says of images or containers; those that are not there are left out."""
        if not names:
            return []
        done = self._call([kind, "inspect", *names], seconds=60)
        found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
        return found

    def build(self, context: bytes, tag: str, *arguments: str, seconds: float = 1800) -> None:
        """Builds an image from a tar archive. Neither BuildKit nor its plugin is needed, and either may be there."""
        self.run(
            "build",
            "--tag",
            tag,
            *arguments,
            "-",
            data=context,
            seconds=seconds,
            environment={"DOCKER_BUILDKIT": "1" if self._has_buildkit else "0"},
        )

    def logs(self, name: str, lines: int) -> str:
        """The last lines of a container, errors included, in the order they were written."""
        done = self._call(["logs", "--tail", str(lines), name], seconds=30, merge=True)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

    @cached_property
    def has_bridge(self) -> bool:
        """Whether ports can be published; without a bridge containers share the host's network."""
        return bool(self.run("network", "ls", "--filter", "driver=bridge", "--quiet"))

    @cached_property
    def _has_buildkit(self) -> bool:
        """A client of 23 or newer uses BuildKit through a plugin, which may be missing."""
        version = self.run("version", "--format", "{{.Client.Version}}")
        return int(version.partition(".")[0]) < 23 or self._call(["buildx", "version"], seconds=20).returncode == 0

    @cached_property
    def _client(self) -> str | None:
        return shutil.which("docker")

    def _call(
        self,
        arguments: list[str],
        *,
        data: bytes | None = None,
        seconds: float,
        environment: dict[str, str] | None = None,
        merge: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        command = [self._client or "docker", *(["--host", self.host] if self.host else []), *arguments]
        try:
            return subprocess.run(
                command,
                input=data,
                stdin=subprocess.DEVNULL if data is None else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merge else subprocess.PIPE,
                env={**os.environ, **(environment or {})},
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(
                f"docker {arguments[0]} took longer than {seconds:g} s",
                where="docker",
                hint="look at the engine (docker info), then run the same command",
            ) from None


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"
