"""The servers that the serving benchmark compares: how each starts, what it is asked, and what a right answer looks like."""

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
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.packaging import Bento, package, serve_command
from headrace.serving.replicas import environment, supervisor
from headrace.serving.replicas.ports import is_free
from headrace.serving.replicas.replica import Replica, ReplicaSpec
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
class Ask:
    """One request, sent again and again."""

    path: str
    body: bytes
    headers: dict[str, str]
    is_right: Callable[[httpx.Response], bool]


@dataclass
class Running:
    """A server that answers."""

    url: str
    ask: Ask
    start_seconds: float
    roots: list[int]
    """Its processes, but for their children."""

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
        """Bytes."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


@dataclass(frozen=True)
class Place:
    """What all servers share: the model's files and a project of the benchmark's own."""

    root: Path
    model: Path
    project: Project
    name: str = "digits"
    """Of the model."""
    environment: dict[str, str] = field(default_factory=dict)


Open = Callable[[Place, int], contextlib.AbstractContextManager[Running]]
"""Starts a server on a port and ends it with the block."""


@dataclass(frozen=True)
class System:
    """One server."""

    name: str
    about: str
    open: Open


def _labelled(answer: httpx.Response) -> bool:
    found = answer.json()
    return "label" in found.get("predictions", [found])[0]


V1_ASK = Ask("/v1/models/digits/predict", JSON_BODY, JSON, _labelled)
PEER_ASK = Ask("/predict", JSON_BODY, JSON, _labelled)
FLOOR_ASK = Ask(
    "/predict", IMAGE.tobytes(), {"content-type": "application/octet-stream"}, lambda answer: len(answer.content) == 40
)


def _binary_ask() -> Ask:
    """The Open Inference Protocol with binary tensors both ways."""
    tensor = {"name": "pixels", "shape": [1, 28, 28], "datatype": "UINT8", "parameters": {"binary_data_size": 784}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return Ask(
        "/v2/models/digits/infer",
        head + IMAGE.tobytes(),
        headers,
        lambda answer: len(answer.content) == int(answer.headers["inference-header-content-length"]) + 40,
    )


def free_port() -> int:
    return next(port for port in range(FIRST_PORT, FIRST_PORT + 500) if is_free(port))


def make_project(root: Path) -> Project:
    """A project of the benchmark's own."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return Project(root)


def make_place(root: Path, write: Callable[[Path], None]) -> Place:
    """`write` puts the model's files into a folder."""
    write(root / "model")
    variables = {
        "GRAPH": str(root / "model" / "model.onnx"),
        "TORCH": str(root / "model" / "model.pt"),
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # MLflow calls uvicorn
        "DO_NOT_TRACK": "1",
    }
    return Place(root, root / "model", make_project(root / "project"), environment=variables)


def prepare_bento(place: Place) -> Bento:
    return package(place.model, place.name, "1", {}, place.project)


def _headrace(ask: Ask) -> Open:
    @contextmanager
    def open_replica(place: Place, port: int) -> Iterator[Running]:
        with replica(place, port, ask) as running:
            yield running

    return open_replica


@contextmanager
def replica(place: Place, port: int, ask: Ask) -> Iterator[Running]:
    bento = prepare_bento(place)
    settings = Settings()
    spec = ReplicaSpec(place.name, "1", bento.tag)
    variables_of_replica = environment.process_variables(spec, f"{place.name}-{port}", place.project, settings)
    argv, variables = serve_command(place.project, bento.tag, "127.0.0.1", port, 1)
    headers = {**ask.headers, "authorization": f"Bearer {_token(place)}"}
    full = Ask(ask.path, ask.body, headers, ask.is_right)
    with server(argv, {**variables, **variables_of_replica}, port, "/readyz", full, place.root) as running:
        yield running


def _token(place: Place) -> str:
    tokens.prepare_tokens(place.project)
    token, _ = tokens.issue(place.project, "acme", [place.name], 3600)
    return token


def _behind_the_gateway(ask: Ask) -> Open:
    @contextmanager
    def open_both(place: Place, port: int) -> Iterator[Running]:
        settings = Settings(gateway_port=port + 1, gateway_admin_port=port + 2)
        start = time.perf_counter()
        with replica(place, port, ask) as behind:
            try:
                endpoint = Replica(f"digits-{port}", ReplicaSpec("digits", "1", prepare_bento(place).tag), "127.0.0.1", port)
                gateway.update_model(place.project, settings, "digits", [endpoint])
                envoy_process.start(place.project, settings)
                url = gateway.address(settings)
                _wait(url + behind.ask.path, behind.ask)
                envoy = supervisor.states(place.project)[gateway.PROGRAM].pid
                yield Running(url, behind.ask, time.perf_counter() - start, [*behind.roots, *([envoy] if envoy else [])])
            finally:
                supervisor.shutdown(place.project, stop_seconds=5.0)

    return open_both


def script(name: str, ask: Ask = PEER_ASK, ready: str = "/readyz") -> Open:
    """A file of `serving_peers` that serves when it is run."""

    @contextmanager
    def open_script(place: Place, port: int) -> Iterator[Running]:
        argv = [sys.executable, str(PEERS / name)]
        with server(argv, {**place.environment, "PORT": str(port)}, port, ready, ask, place.root) as running:
            yield running

    return open_script


def bentoml_service(name: str, ask: Ask = PEER_ASK) -> Open:
    """A service of `serving_peers`, `file:Class`."""

    @contextmanager
    def open_service(place: Place, port: int) -> Iterator[Running]:
        argv = [sys.executable, "-m", "bentoml", "serve", name, "--host", "127.0.0.1", "--port", str(port)]
        variables = {**place.environment, "BENTOML_HOME": str(place.root / "peer"), "BENTOML_DO_NOT_TRACK": "true"}
        with server([*argv, "--working-dir", str(PEERS)], variables, port, "/readyz", ask, place.root) as running:
            yield running

    return open_service


@contextmanager
def _mlflow(place: Place, port: int) -> Iterator[Running]:
    import mlflow
    import onnx
    from mlflow.models import infer_signature

    folder = place.root / "mlflow"
    if not folder.exists():
        example = IMAGE[None].astype("uint8")
        graph = onnx.load(str(place.model / "model.onnx"))
        mlflow.onnx.save_model(graph, str(folder), pip_requirements=["onnxruntime"], signature=infer_signature(example))
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    body = json.dumps({"inputs": [IMAGE.tolist()]}).encode()
    ask = Ask("/invocations", body, JSON, lambda answer: "predictions" in answer.json())
    with server(argv, place.environment, port, "/ping", ask, place.root) as running:
        yield running


@contextmanager
def server(argv: list[str], variables: dict[str, str], port: int, ready: str, ask: Ask, root: Path) -> Iterator[Running]:
    log = root / f"server-{port}.log"
    start = time.perf_counter()
    # In a group of its own: BentoML, MLflow and Ray keep children.
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env={**os.environ, **variables}, stdout=out, stderr=out, cwd=root, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url + ready, None, process, log)
        seconds = time.perf_counter() - start
        _wait(url + ask.path, ask, process, log)
        yield Running(url, ask, seconds, [process.pid])
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


def _wait(url: str, ask: Ask | None, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    """Until the server is ready, or gives a right answer to `ask`."""
    end = time.monotonic() + READY_SECONDS
    said = "nothing"
    while time.monotonic() < end and (process is None or process.poll() is None):
        try:
            answer = httpx.get(url, timeout=5) if ask is None else httpx.post(url, content=ask.body, headers=ask.headers)
            if answer.status_code == 200 and (ask is None or ask.is_right(answer)):
                return
            said = f"{answer.status_code} {answer.text[:300]}"
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    tail = log.read_text(errors="replace")[-500:] if log else ""
    raise HeadraceError(f"the server never answered rightly; last: {said}\n{tail}", where=url, hint="read its log")


def install_peer(name: str) -> str:
    """The packages of one peer in a folder of its own, as its PYTHONPATH; kept for the next run.

    Raises:
        HeadraceError: they cannot be had.
    """
    folder = PEERS_HOME / name
    if not (folder / "done").exists():
        wanted = next(line for line in PINNED.read_text(encoding="utf-8").splitlines() if line.startswith(name))
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.exists() else "uv"
        links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
        # What Headrace needs too comes in the same version, so that only the server differs.
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
            said = done.stderr.strip().splitlines()[-1:] or ["no word"]
            raise HeadraceError(f"{wanted} cannot be installed: {said[0][:200]}", where=name, hint="read " + PINNED.name)
        (folder / "done").touch()
    return str(folder)


def _installed(name: str, script: str, ask: Ask = PEER_ASK, ready: str = "/readyz") -> Open:
    @contextmanager
    def open_peer(place: Place, port: int) -> Iterator[Running]:
        variables = {**place.environment, "PORT": str(port), "PYTHONPATH": install_peer(name)}
        with server([sys.executable, str(PEERS / script)], variables, port, ready, ask, place.root) as running:
            yield running

    return open_peer


SYSTEMS = {
    "floor": System("floor: Starlette, raw bytes", "ONNX Runtime, nothing checked", script("floor.py", FLOOR_ASK)),
    "binary": System("Headrace, binary", "all on", _headrace(_binary_ask())),
    "json": System("Headrace, JSON", "all on", _headrace(V1_ASK)),
    "gateway-binary": System("Headrace, binary, gateway", "through Envoy", _behind_the_gateway(_binary_ask())),
    "gateway-json": System("Headrace, JSON, gateway", "through Envoy", _behind_the_gateway(V1_ASK)),
    "fastapi-tuned": System("FastAPI, tuned", "orjson, ONNX Runtime", script("fastapi_tuned.py")),
    "fastapi-torch": System("FastAPI with torch", "as in its tutorials", script("fastapi_torch.py")),
    "bentoml": System("BentoML", "as in its quickstart, ONNX Runtime", bentoml_service("bentoml_stock:Digits")),
    "litserve": System("LitServe", "as in its quickstart, ONNX Runtime", _installed("litserve", "litserve_api.py")),
    "mlflow": System("mlflow models serve", "ONNX flavour", _mlflow),
    "ray": System(
        "Ray Serve",
        "as in its quickstart, ONNX Runtime",
        _installed("ray", "ray_serve.py", Ask("/", JSON_BODY, JSON, _labelled), "/"),
    ),
}
