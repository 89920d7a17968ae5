"""Measures serving: a replica as a process and as a container, roll-outs under load, and images."""

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
from benchmarks.release_measures import Values, spread
from benchmarks.release_processes import Memory, memory_of, process_tree
from headrace.console import Report
from headrace.errors import EngineMissing, HeadraceError
from headrace.release import journal
from headrace.serving.access.tokens import operator_token
from headrace.serving.local_http import Address, address_text, request, try_request
from headrace.serving.packaging import build_image, find_bento, serve_command
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.image import Image, find_image, serving_base
from headrace.serving.packaging.wheelhouse import is_current
from headrace.serving.replicas.docker_runner import DockerRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.replicas.runners import runner_for
from headrace.serving.rollout.rolling import roll_out

POLL_SECONDS = 0.01
REQUESTS = 300
"""A replica's memory is read after this many requests."""
READY_SECONDS = 120.0


class Load:
    """Sends requests from three clients until the block ends: two keep their connection, one opens a new one each time."""

    def __init__(self, clone: Clone, model: str) -> None:
        self.milliseconds: list[float] = []
        self.failures: list[str] = []
        self._target = (clone.settings.gateway_port, f"/v1/models/{model}/predict", sample_body(model, clone))
        self._token = operator_token(clone.project)
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


def replica(recipe: str, clone: Clone, runs: int, report: Report) -> Values:
    """Measures a replica of the released bento as a process: seconds until it is ready, and memory."""
    facts = _released(recipe, clone)
    seconds, memories = [], []
    for _ in range(runs):
        address = clone.project.sockets / "measured.sock"
        command, variables = serve_command(clone.project, facts["bento"], address, facts["threads"])
        start = time.perf_counter()
        process = clone.start(*command, environment=variables, stdout=DEVNULL, stderr=DEVNULL)
        try:
            _wait_ready(address, lambda process=process: process.poll() is None)  # type: ignore[misc]
            seconds.append(time.perf_counter() - start)
            _send_requests(address, recipe, clone)
            memories.append(memory_of(process_tree(process.pid)))
        finally:
            clone.end(process)
    report(f"replica ready in {statistics.median(seconds):.2f} s")
    return {"ready": spread(seconds), "memory": _median_memory(memories)}


def changed_release(recipe: str, clone: Clone, report: Report) -> Values:
    """Releases a retrain with another seed while clients send requests; measures its time and their latency."""
    path = clone.project.recipes / f"{recipe}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields["train"]["seed"] = 8
    # The results of seeds differ by chance. The margin lets the new model pass, because this measures the roll-out.
    fields["gate"] = {**fields["gate"], "beat_champion": {"metric": "accuracy", "margin": -0.2}}
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    with Load(clone, recipe) as load:
        ran = clone.headrace("run", recipe, "--json")
    if json.loads(ran.stdout)["version"] == "1":
        raise HeadraceError("the new version was not released", where=recipe, hint=f"headrace history {recipe}")
    report(f"a changed recipe: {ran.seconds:.1f} s, {len(load.failures)} of {len(load.milliseconds)} requests failed")
    return {"seconds": round(ran.seconds, 2), **load.to_dict()}


def swaps(recipe: str, clone: Clone, runs: int, report: Report) -> Values:
    """Replaces two replicas of one version by two of another, back and forth, while clients send requests."""
    versions = [entry.facts for entry in journal.entries(clone.project, recipe) if entry.event == "released"]
    settings, project = clone.settings, clone.project
    seconds: list[float] = []
    with Load(clone, recipe) as load:
        for turn in range(runs):
            facts = versions[-2 if turn % 2 == 0 else -1]
            version = facts["bento"].partition(":")[2].rpartition("-")[0]
            start = time.perf_counter()
            roll_out(
                ReplicaSpec(recipe, version, facts["bento"], None, facts["threads"]),
                2,
                project.using(settings),
                runner_for(project.using(settings), "process"),
                lambda line: None,
            )
            seconds.append(time.perf_counter() - start)
    report(f"roll-out {statistics.median(seconds):.1f} s, {len(load.failures)} of {len(load.milliseconds)} requests failed")
    return {"seconds": spread(seconds), **load.to_dict()}


def containers(recipe: str, clone: Clone, runs: int, report: Report) -> Values:
    """Measures images and containers, and removes them; without a container engine returns the reason as `skipped`."""
    try:
        docker = Docker.connect(clone.settings)
    except EngineMissing as error:
        return {"skipped": error.message}
    if find_image(docker, clone.settings.base_image) is None:
        return {"skipped": f"no base image {clone.settings.base_image} on this engine (HEADRACE_BASE_IMAGE names another)"}
    wheelhouse = CHECKOUT / "wheelhouse"
    if is_current(wheelhouse) and not clone.project.wheelhouse.exists():
        shutil.copytree(wheelhouse, clone.project.wheelhouse)
    base = f"headrace-benchmark/base:{clone.token}"
    built = [base]
    try:
        # A label gives the base image a new digest, so that no layer of an earlier build is reused.
        docker.build(_dockerfile(f"FROM {clone.settings.base_image}\nLABEL headrace.benchmark={clone.token}\n"), base)
        return _images_and_containers(recipe, clone, docker, base, built, runs, report)
    finally:
        for container in DockerRunner(clone.project.using(clone.settings)).list():
            docker.run("rm", "--force", container.id)
        for tag in reversed(built):
            with contextlib.suppress(HeadraceError):
                docker.run("image", "rm", tag)


def _images_and_containers(
    recipe: str, clone: Clone, docker: Docker, base: str, built: list[str], runs: int, report: Report
) -> Values:
    settings = clone.settings.model_copy(update={"base_image": base})
    bentos = sorted({e.facts["bento"] for e in journal.entries(clone.project, recipe) if e.event == "released"})
    start = time.perf_counter()
    built.append(serving_base(clone.project.using(settings), docker).tag)
    times = {"serving_base": round(time.perf_counter() - start, 2)}
    report(f"serving base: {times['serving_base']:.1f} s")
    image = None
    for name, tag in (("first", bentos[0]), ("next_version", bentos[-1]), ("again", bentos[-1])):
        start = time.perf_counter()
        image = build_image(clone.project.using(settings), find_bento(clone.project, tag))
        times[name] = round(time.perf_counter() - start, 2)
        built.append(image.tag)
        report(f"image, {name.replace('_', ' ')}: {times[name]:.1f} s, {image.size_bytes / 1e6:.0f} MB")
    assert image is not None
    seconds, memories = _run_containers(recipe, clone, docker, image, runs)
    report(f"container ready in {statistics.median(seconds):.2f} s")
    return {
        "engine": docker.run("version", "--format", "{{.Server.Version}}"),
        "image_mb": round(image.size_bytes / 1e6, 1),
        "build_seconds": times,
        "ready": spread(seconds),
        "memory": _median_memory(memories),
    }


def _run_containers(recipe: str, clone: Clone, docker: Docker, image: Image, runs: int) -> tuple[list[float], list[Memory]]:
    facts = _released(recipe, clone)
    version = facts["bento"].partition(":")[2].rpartition("-")[0]
    runner = DockerRunner(clone.project.using(clone.settings))
    seconds, memories = [], []
    for _ in range(runs):
        start = time.perf_counter()
        container = runner.start(ReplicaSpec(recipe, version, facts["bento"], image.tag, facts["threads"]))
        address = container.address_in(clone.project)
        _wait_ready(address, lambda: True)
        seconds.append(time.perf_counter() - start)
        _send_requests(address, recipe, clone)
        memories.append(_memory_of_container(docker, container.id))
        runner.stop(container, 5.0)
    return seconds, memories


def _memory_of_container(docker: Docker, name: str) -> Memory:
    """Returns the memory of a container's processes; 0 if they are not visible here (engine in a virtual machine)."""
    pid = int(docker.run("inspect", "--format", "{{.State.Pid}}", name))
    return memory_of(process_tree(pid))


def sample_body(recipe: str, clone: Clone) -> bytes:
    """Returns a request body with the sample of the contract."""
    contract = json.loads((clone.project.artifacts(recipe) / "export" / "contract.json").read_text(encoding="utf-8"))
    return json.dumps({"instances": [contract["sample"]]}).encode()


def _released(recipe: str, clone: Clone) -> dict[str, Any]:
    entry = journal.last(clone.project, recipe, "released")
    assert entry is not None  # the first release came before
    return entry.facts


def _wait_ready(address: Address, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while (answer := try_request(address, "/readyz")) is None or answer.status != 200:
        if not alive() or time.monotonic() > deadline:
            raise HeadraceError("the replica did not become ready", where=address_text(address), hint="headrace logs MODEL")
        time.sleep(POLL_SECONDS)


def _send_requests(address: Address, model: str, clone: Clone) -> None:
    body = json.loads(sample_body(model, clone))
    token = operator_token(clone.project)
    for _ in range(REQUESTS):
        answer = request(address, f"/v1/models/{model}/predict", method="POST", body=body, token=token, timeout_seconds=20)
        if answer.status != 200:
            raise HeadraceError(
                f"the replica answered {answer.status}: {answer.text[:300]!r}",
                where=address_text(address),
                hint="headrace logs MODEL",
            )


def _median_memory(memories: list[Memory]) -> Values:
    return sorted(memories, key=lambda memory: memory.rss)[len(memories) // 2].to_dict()


def _dockerfile(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
