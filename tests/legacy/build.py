"""Makes the fixture of a project released before the move: `PYTHON build.py CHECKOUT WORKDIR ARCHIVE`.

Run it with the Python of the environment that commit 4271f0e pins (its `make setup`), on a checkout of that commit:

    .venv/bin/python build.py PATH/TO/CHECKOUT PATH/TO/AN/EMPTY/WORKDIR legacy.tar.xz

It makes a project of tiny recipes with the checkout's code, releases each (one of them twice) through the command line, stops
everything, asks each bento for a few predictions, removes what can be created again, and packs the rest. `ROOT_WAS` replaces
the project's folder; `unpack.py` inserts the new one. The expectations of the tests are in `facts.json` in the work folder. It
takes about ten minutes. A work folder that has a project in it is only packed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from fixture_archive import ROOT_WAS, RUNNING, keep_running, pack, trim
from fixture_recipes import INSTANCES, RECIPES, write_sources

COMMIT = "4271f0e"
FIRST_PORT = 31_100
CODE = (
    *("headrace", "flows", "tasks", "bentos", "deploy/serving"),
    *(".dvc/config", ".dvcignore", ".gitignore", "pyproject.toml", "prefect.yaml", "requirements.lock"),
)
"""What a clone needs to train and to release."""
EXAMPLES = ("gated.py", "signals.py", "served_signals.py")
"""A custom model, task type and served class from the documentation of that commit."""
WHO = ("-c", "user.name=headrace", "-c", "user.email=headrace@example.com", "-c", "commit.gpgsign=false")
WHEN = "2026-01-01T00:00:00+0000"


class LegacyProject:
    """The project, and the command line of that commit on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = ("DOOR_PORT", "DOOR_ADMIN_PORT", "MLFLOW_PORT", "PREFECT_PORT", "DESK_PORT")
        ports = {f"HEADRACE_{name}": str(FIRST_PORT + i) for i, name in enumerate(names)}
        ports["HEADRACE_REPLICA_PORTS"] = f"[{FIRST_PORT + 10},{FIRST_PORT + 60}]"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "PREFECT_", "MLFLOW_", "PYTHON"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **clean,
            **ports,
            "PATH": path,
            "PYTHONPATH": str(root),  # the project's own code, wherever the environment's `headrace` comes from
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("headrace")), *arguments]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"headrace {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def json(self, *arguments: str) -> object:
        return json.loads(self.run(*arguments, "--json"))

    def git(self, *arguments: str) -> str:
        when = {"GIT_AUTHOR_DATE": WHEN, "GIT_COMMITTER_DATE": WHEN}
        done = subprocess.run(
            ["git", *WHO, *arguments], cwd=self.root, env={**os.environ, **when}, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


def make_project(checkout: Path, root: Path) -> LegacyProject:
    """Makes a project like a clone, with the recipes and their data, in one commit."""
    root.mkdir(parents=True)
    for name in CODE:
        source, place = checkout / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, place)
    for name in EXAMPLES:
        shutil.copyfile(checkout / "docs" / "examples" / name, root / name)
    (root / "mlruns").mkdir()
    (root / "recipes").mkdir()
    for name, text in RECIPES.items():
        (root / "recipes" / f"{name}.yaml").write_text(f"name: {name}{text}")
    head, ours, tail = re.split(r"((?:      [a-z-]+: \{kind: .*\}\n)+)", (checkout / "dvc.yaml").read_text())
    kept = ours.splitlines()[0].partition(":")[2]
    own = " {kind: signals.py, model: gated.py}"
    (root / "dvc.yaml").write_text(head + "".join(f"      {n}:{own if n == 'waves' else kept}\n" for n in RECIPES) + tail)
    write_sources(root / "sources")
    legacy = LegacyProject(root)
    legacy.git("init", "--quiet", "--initial-branch=main", "--template=")
    legacy.git("add", "--all")
    legacy.git("commit", "--quiet", "--message", f"A project with the code of {COMMIT}")
    return legacy


def release_all(legacy: LegacyProject) -> None:
    """Releases every recipe once, then `small` with another seed."""
    for name in RECIPES:
        legacy.run("run", name)
        print("released", name, flush=True)
    recipe = legacy.root / "recipes" / "small.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 7, device", "seed: 8, device"))
    legacy.git("commit", "--quiet", "--all", "--message", "Another seed for small")
    legacy.run("run", "small")


def ask(legacy: LegacyProject, tag: str, name: str) -> dict[str, object]:
    """Returns answers of one bento, started as its replicas were: by the code inside it."""
    bento = legacy.root / ".headrace" / "bentoml" / "bentos" / tag.replace(":", "/")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "PYTHON"))}
    variables = {"PYTHONPATH": str(bento / "src"), "BENTOML_HOME": str(legacy.root / ".headrace" / "bentoml")}
    variables |= {
        "BENTOML_DO_NOT_TRACK": "true",
        "HEADRACE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argv = [sys.executable, "-P", "-m", "bentos.serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(argv, env={**clean, **variables}, cwd="/", stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=2).read()
                break
            except OSError:
                time.sleep(0.1)
        body = json.dumps({"instances": INSTANCES[name]}).encode()
        request = urllib.request.Request(f"{url}/v1/models/{name}/predict", body, {"content-type": "application/json"})
        try:
            answer = json.loads(urllib.request.urlopen(request, timeout=30).read())
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{tag} refuses {INSTANCES[name]}: {error.read().decode()}") from None
        described = json.loads(urllib.request.urlopen(f"{url}/v1/models/{name}", timeout=30).read())
    finally:
        process.terminate()
        process.wait(30)
    described.pop("created", None)  # when the process started
    return {"instances": INSTANCES[name], "predictions": answer["predictions"], "described": described}


def facts_of(legacy: LegacyProject) -> dict[str, object]:
    """Returns names, hashes, commits and answers of every version."""
    found = {}
    for version in [f"{name}@1" for name in RECIPES] + ["small@2"]:
        name, _, number = version.partition("@")
        trace = legacy.json("trace", version)
        entry = next(e for e in legacy.json("history", name) if e["version"] == number and e["event"] == "released")
        tag = entry["facts"]["bento"]
        model = legacy.root / ".headrace" / "bentoml" / "models" / tag.replace(":", "/")
        contract = json.loads((model / "contract.json").read_text())
        found[version] = {
            "bento": tag,
            "content_sha256": entry["facts"].get("content_sha256"),
            "data_md5": entry["facts"].get("data_md5"),
            "git_commit": entry["facts"].get("git_commit"),
            "run_id": entry["facts"].get("run_id"),
            "recipe_sha256": entry["facts"].get("recipe_sha256"),
            "lock_sha256": entry["facts"].get("lock_sha256"),
            "served_by": contract["served_by"],
            "served_files": {
                p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(model.iterdir()) if p.name != "model.yaml"
            },
            "trace": trace,
            **ask(legacy, tag, name),
        }
    return {"made_by": COMMIT, "root_was": ROOT_WAS, "versions": found, "history": legacy.json("history")}


def release(checkout: Path, workdir: Path) -> None:
    """Releases all recipes, copies the files of the running services, then stops everything."""
    legacy = make_project(checkout, workdir / "project")
    try:
        release_all(legacy)
        for name in RUNNING:
            shutil.copytree(legacy.root / ".headrace" / name, workdir / "running" / name)
        (workdir / "running" / "status.json").write_text(legacy.run("status", "--json"))
    finally:
        legacy.run("down")


def main() -> None:
    checkout, workdir, archive = (Path(argument).resolve() for argument in sys.argv[1:4])
    if not (workdir / "project").exists():
        release(checkout, workdir)
    legacy = LegacyProject(workdir / "project")
    text = json.dumps(facts_of(legacy), indent=1).replace(str(legacy.root), ROOT_WAS)
    (workdir / "facts.json").write_text(text + "\n")
    shutil.rmtree(workdir / "kept", ignore_errors=True)
    trim(legacy.root, workdir / "kept")
    keep_running(legacy.root, workdir / "running", workdir / "kept" / ".running")
    pack(workdir / "kept", archive)
    print(archive, archive.stat().st_size)


if __name__ == "__main__":
    main()
