"""Calls the Docker engine through its command-line client, so that contexts, DOCKER_HOST and credentials work as in a shell."""

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

HINT = 'start Docker (or set docker_host in headrace.toml); or serve as processes: runner = "process"'


@dataclass
class Docker:
    """One Docker engine. `host` is its address, or None for the client's default."""

    host: str | None = None

    @classmethod
    def connect(cls, settings: Settings) -> Docker:
        """Connects to the engine of these settings.

        Raises:
            EngineMissing: the client is not installed, or the engine does not answer.
        """
        docker = cls(settings.docker_host)
        docker.require()
        return docker

    def require(self) -> None:
        """
        Raises:
            EngineMissing: the client is not installed, or the engine does not answer.
        """
        if self._client is None:
            raise EngineMissing("the docker client is not installed", where="docker", hint=f"install Docker; {HINT}")
        done = self._call(["version", "--format", "{{.Server.Version}}"], seconds=20)
        if done.returncode != 0:
            raise EngineMissing(
                f"the Docker engine does not answer: {_last_line(done.stderr)}", where=self.host or "docker", hint=HINT
            )

    def run(
        self, *arguments: str, data: bytes | None = None, seconds: float = 120, environment: dict[str, str] | None = None
    ) -> str:
        """Runs `docker ARGUMENTS` and returns its output.

        Raises:
            ServiceError: it failed; the message ends with its output.
        """
        done = self._call(list(arguments), data=data, seconds=seconds, environment=environment)
        if done.returncode != 0:
            output = (done.stderr or done.stdout).decode(errors="replace").strip()
            if "Cannot connect to the Docker daemon" in output:
                raise EngineMissing("the Docker engine stopped answering", where=self.host or "docker", hint=HINT)
            raise ServiceError(
                f"docker {arguments[0]} failed:\n{output[-2000:]}",
                where="docker",
                hint=f"docker {' '.join(arguments[:2])} ...   (see its message above)",
            )
        return done.stdout.decode(errors="replace").strip()

    def inspect(self, kind: str, *names: str) -> list[dict[str, Any]]:
        """The engine's records of images or containers; missing ones are left out."""
        if not names:
            return []
        done = self._call([kind, "inspect", *names], seconds=60)
        found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
        return found

    def build(self, context: bytes, tag: str, *arguments: str, seconds: float = 1800) -> None:
        """Builds an image from a tar archive, with or without BuildKit."""
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
        """The last lines that a container wrote, to stdout and stderr."""
        done = self._call(["logs", "--tail", str(lines), name], seconds=30, merge=True)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

    @cached_property
    def has_bridge(self) -> bool:
        """Whether ports can be published; without a bridge network, containers share the host's network."""
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
                hint="check the engine (docker info), then run the same command",
            ) from None


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
