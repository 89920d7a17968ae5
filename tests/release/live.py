"""A project whose services run for as long as tests need them, driven through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headrace.project import Project
from headrace.services import prefect_api
from headrace.serving.access.tokens import operator_token
from headrace.settings import Settings
from tests.projects import table

HEADRACE = str(Path(sys.executable).with_name("headrace"))
INSTANCE = {"length": 3.0, "width": 0.5, "colour": "red"}
"""An instance of the recipe `tiny`."""
SECONDS = 480


@dataclass
class Live:
    """Runs `headrace` in a project of its own."""

    project: Project
    ports: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "PREFECT_", "MLFLOW_"))}
        kept = {name: os.environ[name] for name in ("HEADRACE_BASE_IMAGE", "HEADRACE_DOCKER_HOST") if name in os.environ}
        return {**clean, **kept, **self.ports, "PATH": path, "COLUMNS": "200"}

    @property
    def settings(self) -> Settings:
        """As the commands see them."""
        fields = {name.removeprefix("HEADRACE_").lower(): value for name, value in self.ports.items()}
        ports: dict[str, Any] = {name: int(value) for name, value in fields.items()}
        return Settings(**ports)

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.ports['HEADRACE_GATEWAY_PORT']}"

    @property
    def token(self) -> str:
        """The operator's own, made by the first `headrace up`."""
        return operator_token(self.project)

    @property
    def headers(self) -> dict[str, str]:
        """The operator's token."""
        return {"authorization": f"Bearer {self.token}"}

    def run(
        self, *arguments: str, code: int = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `headrace ARGUMENTS` and checks its exit code."""
        done = subprocess.run(
            [HEADRACE, *arguments],
            cwd=self.project.root,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str, code: int = 0, environment: dict[str, str] | None = None) -> Any:
        """What `headrace ARGUMENTS --json` prints."""
        return json.loads(self.run(*arguments, "--json", code=code, environment=environment).stdout)

    def serving(self, name: str) -> str:
        """The version of a model that answers now; other models may be served beside it."""
        return str(next(model["version"] for model in self.status()["models"] if model["name"] == name))

    def status(self) -> Any:
        """What `headrace status` says, whether or not all that should run works."""
        command = [HEADRACE, "status", "--json"]
        done = subprocess.run(
            command, cwd=self.project.root, env=self.environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode in (0, 5), done.stderr
        return json.loads(done.stdout)

    def prefect(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """What Prefect's API answers."""
        answer = prefect_api.call(self.project.using(self.settings), path, method, body)
        assert answer is not None and answer.status < 300, answer
        return answer.json()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `headrace ARGUMENTS` in a process group of its own, its steps readable on standard error."""
        return subprocess.Popen(
            [HEADRACE, *arguments],
            cwd=self.project.root,
            env=self.environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=1,
        )


def kill_group(process: subprocess.Popen[str], how: signal.Signals = signal.SIGKILL) -> None:
    """Ends a command and all it started, as a power cut would."""
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return
    process.wait(30)


def steps_until(process: subprocess.Popen[str], step: str | None) -> Sequence[str]:
    """Reads the steps a release announces, until `step` begins (or to the end)."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        if line.startswith("▸"):
            seen.append(line.removeprefix("▸").strip().split("  ")[0])
            if seen[-1] == step:
                break
    return seen


def another_recipe(live: Live, name: str, **sections: dict[str, object]) -> str:
    """A recipe of its own data, so that a release of it has every step to do."""
    recipe = yaml.safe_load((live.project.recipes / "tiny.yaml").read_text())
    recipe |= {"name": name, "serve": {"replicas": 1}, "gate": {"require": {"accuracy": ">= 0.5"}}}
    recipe["data"] = {**recipe["data"], "source": f"{name}.csv"}
    for section, fields in sections.items():
        recipe[section] = {**recipe[section], **fields}
    table(300, seed=sum(name.encode())).to_csv(live.project.root / f"{name}.csv", index=False)
    (live.project.recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return name
