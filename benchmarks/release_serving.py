"""What is measured of the served side: a replica as a process and as a container, a roll-out under load, an image."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import statistics
import tarfile
import threading
import time
from collections.abc import Callable
from subprocess import DEVNULL
from typing import Any

import yaml

from benchmarks.release_clone import CHECKOUT, Clone
from benchmarks.release_measures import Tell, Values, spread
from benchmarks.release_processes import Memory, memory_of, tree
from headrace.errors import EngineMissing, HeadraceError
from headrace.release import journal
from headrace.serving.access.tokens import operator_token
from headrace.serving.packaging import build_image, find_bento, serve_command
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.image import Image, find_image, serving_base
from headrace.serving.packaging.wheelhouse import is_current
from headrace.serving.replicas.docker_runner import DockerRunner
from headrace.serving.replicas.ports import next_free
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.replicas.runners import runner_for
from headrace.serving.rollout.rolling import roll_out

POLL_SECONDS = 0.01
REQUESTS = 300
"""A replica's memory is read after so many."""
READY_SECONDS = 120.0


class Load:
    """Sends requests from three clients until the block ends: two keep their connection, one opens a new one each time."""

    def __init__(self, made: Clone, model: str) -> None:
        self.milliseconds: list[float] = []
        self.failures: list[str] = []
        self._target = (made.settings.gateway_port, f"/v1/models/{model}/predict", sample_body(model, made))
        self._token = operator_token(made.project)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(keep,), daemon=True) for keep in (True, True, False)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def to_dict(self) -> Values:
        cuts = statistics.quantiles(self.milliseconds, n=100)
        return {
            "requests": len(self.milliseconds) + len(self.failures),
            "failed": len(self.failures),
            "failures": self.failures[:3],
            "p50_ms": round(cuts[49], 1),
            "p99_ms": round(cuts[98], 1),
            "max_ms": round(max(self.milliseconds), 1),
        }

    def _client(self, keep: bool) -> None:
        port, path, body = self._target
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"} | (
            {} if keep else {"connection": "close"}
        )
        while not self._stopped.wait(0.01):
            start = time.perf_counter()
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                raw = response.read()
                if response.status != 200:
                    self.failures.append(f"{response.status}: {raw[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
            else:
                self.milliseconds.append((time.perf_counter() - start) * 1000)
        connection.close()


def replica(recipe: str, made: Clone, runs: int, tell: Tell) -> Values:
    """A replica of the released bento as a process: until it is ready, and its memory."""
    facts = _released(recipe, made)
    seconds, memories = [], []
    for _ in range(runs):
        port = next_free(made.settings.replica_ports[1] + 1)
        command, variables = serve_command(made.project, facts["bento"], "127.0.0.1", port, facts["threads"])
        start = time.perf_counter()
        process = made.start(*command, environment=variables, stdout=DEVNULL, stderr=DEVNULL)
        try:
            _wait_ready(port, lambda process=process: process.poll() is None)  # type: ignore[misc]
            seconds.append(time.perf_counter() - start)
            _ask(port, recipe, sample_body(recipe, made), REQUESTS)
            memories.append(memory_of(tree(process.pid)))
        finally:
            made.end(process)
    tell(f"replica ready in {statistics.median(seconds):.2f} s")
    return {"ready": spread(seconds), "memory": _middle(memories)}


def changed_release(recipe: str, made: Clone, tell: Tell) -> Values:
    """A retrain with another seed, released while clients call: what a user's next version costs, and costs them."""
    path = made.project.recipes / f"{recipe}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields["train"]["seed"] = 8
    # Seeds differ by chance: the margin lets the new model through, for it is the roll-out that is looked at here.
    fields["gate"] = {**fields["gate"], "beat_champion": {"metric": "accuracy", "margin": -0.2}}
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    with Load(made, recipe) as load:
        ran = made.headrace("run", recipe, "--json")
    if json.loads(ran.stdout)["version"] == "1":
        raise HeadraceError("the new version was not released", where=recipe, hint=f"headrace history {recipe}")
    tell(f"a changed recipe: {ran.seconds:.1f} s, {len(load.failures)} of {len(load.milliseconds)} requests failed")
    return {"seconds": round(ran.seconds, 2), **load.to_dict()}


def swaps(recipe: str, made: Clone, runs: int, tell: Tell) -> Values:
    """Two replicas of one version in place of two of the other, there and back, while clients call."""
    versions = [entry.facts for entry in journal.entries(made.project, recipe) if entry.event == "released"]
    settings, project = made.settings, made.project
    seconds: list[float] = []
    with Load(made, recipe) as load:
        for turn in range(runs):
            facts = versions[-2 if turn % 2 == 0 else -1]
            version = facts["bento"].partition(":")[2].rpartition("-")[0]
            start = time.perf_counter()
            roll_out(
                ReplicaSpec(recipe, version, facts["bento"], None, facts["threads"]),
                2,
                project,
                settings,
                runner_for(project, settings, "process"),
                lambda line: None,
            )
            seconds.append(time.perf_counter() - start)
    tell(f"roll-out {statistics.median(seconds):.1f} s, {len(load.failures)} of {len(load.milliseconds)} requests failed")
    return {"seconds": spread(seconds), **load.to_dict()}


def containers(recipe: str, made: Clone, runs: int, tell: Tell) -> Values:
    """Images and containers, where an engine answers; else `skipped` says why. What it built and started is removed."""
    try:
        docker = Docker.connect(made.settings)
    except EngineMissing as error:
        return {"skipped": error.message}
    if find_image(docker, made.settings.base_image) is None:
        return {"skipped": f"no base image {made.settings.base_image} on this engine (HEADRACE_BASE_IMAGE names another)"}
    wheelhouse = CHECKOUT / "wheelhouse"
    if is_current(wheelhouse) and not made.project.wheelhouse.exists():
        shutil.copytree(wheelhouse, made.project.wheelhouse)
    base = f"headrace-benchmark/base:{made.token}"
    built = [base]
    try:
        # The same base under another digest: nothing of an earlier build fits, so the first build is a first one.
        docker.build(_dockerfile(f"FROM {made.settings.base_image}\nLABEL headrace.benchmark={made.token}\n"), base)
        return _images_and_containers(recipe, made, docker, base, built, runs, tell)
    finally:
        for container in DockerRunner(made.project, made.settings).list():
            docker.run("rm", "--force", container.id)
        for tag in reversed(built):
            with contextlib.suppress(HeadraceError):
                docker.run("image", "rm", tag)


def _images_and_containers(
    recipe: str, made: Clone, docker: Docker, base: str, built: list[str], runs: int, tell: Tell
) -> Values:
    settings = made.settings.model_copy(update={"base_image": base})
    bentos = sorted({e.facts["bento"] for e in journal.entries(made.project, recipe) if e.event == "released"})
    start = time.perf_counter()
    built.append(serving_base(made.project, settings, docker).tag)
    times = {"serving_base": round(time.perf_counter() - start, 2)}
    tell(f"serving base: {times['serving_base']:.1f} s")
    image = None
    for name, tag in (("first", bentos[0]), ("next_version", bentos[-1]), ("again", bentos[-1])):
        start = time.perf_counter()
        image = build_image(made.project, settings, find_bento(made.project, tag))
        times[name] = round(time.perf_counter() - start, 2)
        built.append(image.tag)
        tell(f"image, {name.replace('_', ' ')}: {times[name]:.1f} s, {image.size_bytes / 1e6:.0f} MB")
    assert image is not None
    seconds, memories = _run_containers(recipe, made, docker, image, runs)
    tell(f"container ready in {statistics.median(seconds):.2f} s")
    return {
        "engine": docker.run("version", "--format", "{{.Server.Version}}"),
        "image_mb": round(image.size_bytes / 1e6, 1),
        "build_seconds": times,
        "ready": spread(seconds),
        "memory": _middle(memories),
    }


def _run_containers(recipe: str, made: Clone, docker: Docker, image: Image, runs: int) -> tuple[list[float], list[Memory]]:
    facts = _released(recipe, made)
    version = facts["bento"].partition(":")[2].rpartition("-")[0]
    runner = DockerRunner(made.project, made.settings)
    seconds, memories = [], []
    for _ in range(runs):
        port = next_free(made.settings.replica_ports[1] + 1)
        start = time.perf_counter()
        container = runner.start(ReplicaSpec(recipe, version, facts["bento"], image.tag, facts["threads"]), port)
        _wait_ready(port, lambda: True)
        seconds.append(time.perf_counter() - start)
        _ask(port, recipe, sample_body(recipe, made), REQUESTS)
        memories.append(_memory_of_container(docker, container.id))
        runner.stop(container, 5.0)
    return seconds, memories


def _memory_of_container(docker: Docker, name: str) -> Memory:
    """By its processes, where the engine's are this machine's; 0 where they are out of sight (a virtual machine)."""
    pid = int(docker.run("inspect", "--format", "{{.State.Pid}}", name))
    return memory_of(tree(pid))


def sample_body(recipe: str, made: Clone) -> bytes:
    """A request with the contract's own sample."""
    contract = json.loads((made.project.artifacts(recipe) / "export" / "contract.json").read_text(encoding="utf-8"))
    return json.dumps({"instances": [contract["sample"]]}).encode()


def _released(recipe: str, made: Clone) -> dict[str, Any]:
    entry = journal.last(made.project, recipe, "released")
    assert entry is not None  # the first release came before
    return entry.facts


def _wait_ready(port: int, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while _status(port, "/readyz") != 200:
        if not alive() or time.monotonic() > deadline:
            raise HeadraceError("the replica does not become ready", where=f"127.0.0.1:{port}", hint="headrace logs MODEL")
        time.sleep(POLL_SECONDS)


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _ask(port: int, model: str, body: bytes, times: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(times):
        connection.request("POST", f"/v1/models/{model}/predict", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise HeadraceError(
                f"the replica answers {response.status}: {response.read()[:300]!r}",
                where=f"127.0.0.1:{port}",
                hint="headrace logs MODEL",
            )
        response.read()
    connection.close()


def _middle(memories: list[Memory]) -> Values:
    return sorted(memories, key=lambda memory: memory.rss)[len(memories) // 2].to_dict()


def _dockerfile(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
