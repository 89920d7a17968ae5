"""Defines the servers of the serving benchmark: how each starts, its request, and what a correct answer is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.serving_model import sample
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.serving.access import tokens
from headrace.serving.gateway import gateway
from headrace.serving.packaging import Bento, package, serve_command
from headrace.serving.replicas import environment, supervisor
from headrace.serving.replicas.ports import is_free
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings

PEERS = Path(__file__).parent / "serving_peers"
PINNED = Path(__file__).parent / "serving-peers.txt"
PEERS_HOME = Path(tempfile.gettempdir()) / "headrace-serving-peers"
FIRST_PORT = 18_100
READY_SECONDS = 90.0
IMAGE = sample()
JSON_BODY = json.dumps({"pixels": IMAGE.tolist()}).encode()
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class SampleRequest:
    """The request that is sent repeatedly."""

    path: str
    body: bytes
    headers: dict[str, str]
    is_correct: Callable[[httpx.Response], bool]


@dataclass
class RunningServer:
    """A server that is ready."""

    url: str
    request: SampleRequest
    start_seconds: float
    roots: list[int]
    """Ids of its processes, without their children."""

    def processes(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in self.roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(pid)
                found |= {process.pid: process for process in [root, *root.children(recursive=True)]}
        return list(found.values())

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rss(self) -> int:
        """Returns the resident memory in bytes."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


@dataclass(frozen=True)
class Workspace:
    """What all servers share: the files of the model, and a project for the benchmark."""

    root: Path
    model: Path
    project: Project
    name: str = "digits"
    """Name of the model."""
    environment: dict[str, str] = field(default_factory=dict)


Open = Callable[[Workspace, int], contextlib.AbstractContextManager[RunningServer]]
"""Starts a server on a port, and stops it at the end of the block."""


@dataclass(frozen=True)
class System:
    """A server to compare."""

    name: str
    about: str
    open: Open


def _labelled(answer: httpx.Response) -> bool:
    found = answer.json()
    return "label" in found.get("predictions", [found])[0]


V1_REQUEST = SampleRequest("/v1/models/digits/predict", JSON_BODY, JSON, _labelled)
PEER_REQUEST = SampleRequest("/predict", JSON_BODY, JSON, _labelled)
FLOOR_REQUEST = SampleRequest(
    "/predict", IMAGE.tobytes(), {"content-type": "application/octet-stream"}, lambda answer: len(answer.content) == 40
)


def _binary_request() -> SampleRequest:
    """Returns a request of the Open Inference Protocol with binary tensors in request and answer."""
    tensor = {"name": "pixels", "shape": [1, 28, 28], "datatype": "UINT8", "parameters": {"binary_data_size": 784}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return SampleRequest(
        "/v2/models/digits/infer",
        head + IMAGE.tobytes(),
        headers,
        lambda answer: len(answer.content) == int(answer.headers["inference-header-content-length"]) + 40,
    )


def free_port() -> int:
    return next(port for port in range(FIRST_PORT, FIRST_PORT + 500) if is_free(port))


def make_project(root: Path) -> Project:
    """Creates an empty project."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return Project(root)


def make_workspace(root: Path, write: Callable[[Path], None]) -> Workspace:
    """Creates a workspace; `write` writes the files of the model into a folder."""
    write(root / "model")
    variables = {
        "GRAPH": str(root / "model" / "model.onnx"),
        "TORCH": str(root / "model" / "model.pt"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # MLflow calls uvicorn
        "DO_NOT_TRACK": "1",
    }
    return Workspace(root, root / "model", make_project(root / "project"), environment=variables)


def prepare_bento(workspace: Workspace) -> Bento:
    return package(workspace.model, workspace.name, "1", {}, workspace.project)


def _headrace(request: SampleRequest) -> Open:
    @contextmanager
    def open_replica(workspace: Workspace, port: int) -> Iterator[RunningServer]:
        with replica(workspace, port, request) as running:
            yield running

    return open_replica


@contextmanager
def replica(workspace: Workspace, port: int, request: SampleRequest) -> Iterator[RunningServer]:
    bento = prepare_bento(workspace)
    settings = Settings()
    spec = ReplicaSpec(workspace.name, "1", bento.tag)
    variables_of_replica = environment.process_variables(spec, f"{workspace.name}-{port}", workspace.project.using(settings))
    argv, variables = serve_command(workspace.project, bento.tag, ("127.0.0.1", port), 1)
    full = _authorized(request, workspace)
    with server(argv, {**variables, **variables_of_replica}, port, "/readyz", full, workspace.root) as running:
        yield running


def _authorized(request: SampleRequest, workspace: Workspace) -> SampleRequest:
    tokens.prepare_tokens(workspace.project)
    token, _ = tokens.issue(workspace.project, "acme", [workspace.name], 3600)
    headers = {**request.headers, "authorization": f"Bearer {token}"}
    return SampleRequest(request.path, request.body, headers, request.is_correct)


def _behind_gateway(request: SampleRequest) -> Open:
    @contextmanager
    def open_both(workspace: Workspace, port: int) -> Iterator[RunningServer]:
        settings = Settings(gateway_port=port + 1, gateway_admin_port=port + 2)
        project, spec = workspace.project.using(settings), ReplicaSpec(workspace.name, "1", prepare_bento(workspace).tag)
        full = _authorized(request, workspace)
        start = time.perf_counter()
        try:
            rolling.roll_out(spec, 1, project, ProcessRunner(project), lambda line: None)
            url = gateway.address(settings)
            _wait(url + full.path, full)
            running = [state.pid for state in supervisor.states(project).values() if state.pid]
            yield RunningServer(url, full, time.perf_counter() - start, running)
        finally:
            supervisor.shutdown(project, stop_seconds=5.0)

    return open_both


def script(name: str, request: SampleRequest = PEER_REQUEST, ready: str = "/readyz") -> Open:
    """Returns a server that is a script of `serving_peers`."""

    @contextmanager
    def open_script(workspace: Workspace, port: int) -> Iterator[RunningServer]:
        argv = [sys.executable, str(PEERS / name)]
        with server(argv, {**workspace.environment, "PORT": str(port)}, port, ready, request, workspace.root) as running:
            yield running

    return open_script


def bentoml_service(name: str, request: SampleRequest = PEER_REQUEST) -> Open:
    """Returns a server that runs a BentoML service of `serving_peers`, as `file:Class`."""

    @contextmanager
    def open_service(workspace: Workspace, port: int) -> Iterator[RunningServer]:
        argv = [sys.executable, "-m", "bentoml", "serve", name, "--host", "127.0.0.1", "--port", str(port)]
        variables = {**workspace.environment, "BENTOML_HOME": str(workspace.root / "peer"), "BENTOML_DO_NOT_TRACK": "true"}
        with server([*argv, "--working-dir", str(PEERS)], variables, port, "/readyz", request, workspace.root) as running:
            yield running

    return open_service


@contextmanager
def _mlflow(workspace: Workspace, port: int) -> Iterator[RunningServer]:
    import mlflow
    import onnx
    from mlflow.models import infer_signature

    folder = workspace.root / "mlflow"
    if not folder.exists():
        example = IMAGE[None].astype("uint8")
        graph = onnx.load(str(workspace.model / "model.onnx"))
        mlflow.onnx.save_model(graph, str(folder), pip_requirements=["onnxruntime"], signature=infer_signature(example))
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    body = json.dumps({"inputs": [IMAGE.tolist()]}).encode()
    request = SampleRequest("/invocations", body, JSON, lambda answer: "predictions" in answer.json())
    with server(argv, workspace.environment, port, "/ping", request, workspace.root) as running:
        yield running


@contextmanager
def server(
    argv: list[str], variables: dict[str, str], port: int, ready: str, request: SampleRequest, root: Path
) -> Iterator[RunningServer]:
    log = root / f"server-{port}.log"
    start = time.perf_counter()
    # In a new process group, because BentoML, MLflow and Ray start children.
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env={**os.environ, **variables}, stdout=out, stderr=out, cwd=root, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url + ready, None, process, log)
        seconds = time.perf_counter() - start
        _wait(url + request.path, request, process, log)
        yield RunningServer(url, request, seconds, [process.pid])
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    tree: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _wait(
    url: str, request: SampleRequest | None, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Waits until the server is ready, or answers `request` correctly.

    Raises:
        HeadraceError: it did not within 90 seconds, or its process ended.
    """
    end = time.monotonic() + READY_SECONDS
    last = "no answer"
    while time.monotonic() < end and (process is None or process.poll() is None):
        try:
            answer = (
                httpx.get(url, timeout=5) if request is None else httpx.post(url, content=request.body, headers=request.headers)
            )
            if answer.status_code == 200 and (request is None or request.is_correct(answer)):
                return
            last = f"{answer.status_code} {answer.text[:300]}"
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    tail = log.read_text(errors="replace")[-500:] if log else ""
    raise HeadraceError(f"the server did not answer correctly; last answer: {last}\n{tail}", where=url, hint="read its log")


def install_peer(name: str) -> str:
    """Installs the packages of one peer into a separate folder, kept for the next run; returns its PYTHONPATH.

    Raises:
        HeadraceError: the installation failed.
    """
    folder = PEERS_HOME / name
    if not (folder / "done").exists():
        wanted = next(line for line in PINNED.read_text(encoding="utf-8").splitlines() if line.startswith(name))
        neighbour = Path(sys.executable).with_name("uv")
        uv = str(neighbour) if neighbour.exists() else "uv"
        links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
        # Packages that Headrace also needs have the same version, so that only the server differs.
        versions = ["--constraint", str(Path(__file__).parents[1] / "requirements.lock")]
        command = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--target",
            str(folder),
            *versions,
            *links,
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no error message"]
            raise HeadraceError(f"{wanted} cannot be installed: {lines[-1][:200]}", where=name, hint="read " + PINNED.name)
        (folder / "done").touch()
    return str(folder)


def _installed(name: str, script: str, request: SampleRequest = PEER_REQUEST, ready: str = "/readyz") -> Open:
    @contextmanager
    def open_peer(workspace: Workspace, port: int) -> Iterator[RunningServer]:
        variables = {**workspace.environment, "PORT": str(port), "PYTHONPATH": install_peer(name)}
        with server([sys.executable, str(PEERS / script)], variables, port, ready, request, workspace.root) as running:
            yield running

    return open_peer


SYSTEMS = {
    "floor": System("floor: Starlette, raw bytes", "ONNX Runtime, no checks", script("floor.py", FLOOR_REQUEST)),
    "binary": System("Headrace, binary", "all features on", _headrace(_binary_request())),
    "json": System("Headrace, JSON", "all features on", _headrace(V1_REQUEST)),
    "gateway-binary": System("Headrace, binary, gateway", "through Envoy", _behind_gateway(_binary_request())),
    "gateway-json": System("Headrace, JSON, gateway", "through Envoy", _behind_gateway(V1_REQUEST)),
    "fastapi-tuned": System("FastAPI, tuned", "orjson, ONNX Runtime", script("fastapi_tuned.py")),
    "fastapi-torch": System("FastAPI with torch", "as in its tutorial", script("fastapi_torch.py")),
    "bentoml": System("BentoML", "as in its quickstart, ONNX Runtime", bentoml_service("bentoml_stock:Digits")),
    "litserve": System("LitServe", "as in its quickstart, ONNX Runtime", _installed("litserve", "litserve_api.py")),
    "mlflow": System("mlflow models serve", "ONNX flavour", _mlflow),
    "ray": System(
        "Ray Serve",
        "as in its quickstart, ONNX Runtime",
        _installed("ray", "ray_serve.py", SampleRequest("/", JSON_BODY, JSON, _labelled), "/"),
    ),
}
