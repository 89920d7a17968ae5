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
import lzma
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

COMMIT = "4271f0e"
ROOT_WAS = "/headrace-before-the-move"
"""Stands in the fixture for the folder that the project lay in. As long as it need not be: nothing counts its bytes."""
FIRST_PORT = 31_100
CODE = (
    *("headrace", "flows", "tasks", "bentos", "deploy/serving"),
    *(".dvc/config", ".dvcignore", ".gitignore", "pyproject.toml", "prefect.yaml", "requirements.lock"),
)
"""All that a clone needs to train and to release."""
EXAMPLES = ("gated.py", "signals.py", "served_signals.py")
"""A user's own model, kind and served class, as the documentation of that commit has them."""
WHO = ("-c", "user.name=headrace", "-c", "user.email=headrace@example.com", "-c", "commit.gpgsign=false")
WHEN = "2026-01-01T00:00:00+0000"

RECIPES = {
    # -- a table, released twice
    "small": """
task: classification
data:
  source: sources/small.csv
  target: kind
  split: {test: 0.3, validation: 0.2, seed: 7}
expect:
  - {type: expect_column_values_to_be_between, column: length, min_value: -50, max_value: 50}
model: {name: mlp, hidden: [16]}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02, seed: 7, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0.5"}}
serve: {replicas: 1}
""",
    # -- nodes of a graph: bentos.graph:NodeModel
    "clubs": """
task: node-classification
data:
  source: sources/clubs.csv
  target: club
  graph: {node: name, edges: sources/friends.txt, pack: likes}
  split: {per_class: {train: 4, validation: 12, test: 20}, seed: 7}
expect: []
model: {name: gcn, hidden: [8], dropout: 0.2}
train: {epochs: 5, batch_size: 64, optimizer: adam, learning_rate: 0.05, schedule: constant, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- whole graphs: bentos.graphs:GraphModel
    "shapes": """
task: graph-classification
data:
  source: sources/shapes.jsonl
  target: shape
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gcn, hidden: [8], dropout: 0.0, pooling: max}
train: {epochs: 5, batch_size: 16, optimizer: adam, learning_rate: 0.02, schedule: constant, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- texts: bentos.text:TextModel
    "moods": """
task: text-classification
data:
  source: sources/moods.csv
  target: mood
  text: {column: body, tokens: words, vocabulary: 64, length: 9}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: recurrent, cell: gru, embedding: 6, hidden: 5}
train: {epochs: 3, batch_size: 16, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- generation: bentos.generation:GenerationModel
    "rhymes": """
task: text-generation
data:
  source: sources/rhymes.csv
  target: text
  text: {column: text, tokens: characters, length: 24, lowercase: false}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gpt, width: 16, heads: 2, layers: 1, dropout: 0.0}
train: {epochs: 3, batch_size: 8, learning_rate: 0.01, device: cpu, compile: "off"}
gate: {require: {bits_per_character: "< 100"}}
serve: {replicas: 1}
""",
    # -- summaries: bentos.summaries:SummaryModel
    "lines": """
task: summarisation
data:
  source: sources/lines.csv
  target: summary
  text: {column: body, vocabulary: 300, length: 12}
  split: {test: 0.2, validation: 0.1, seed: 7}
expect: []
model: {name: seq2seq, width: 8, heads: 2, encoder_layers: 1, decoder_layers: 1, beams: 2, dropout: 0.0}
train: {epochs: 6, batch_size: 16, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {rouge_l: ">= 0"}}
serve: {replicas: 1}
""",
    # -- a custom task type, model and served class: served_signals:SignalModel derives from bentos.model:ServedModel
    "waves": """
task: signals:SignalClassification
data:
  source: sources/waves.csv
  target: kind
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: "gated:GatedMLP", width: 8}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
}
INSTANCES: dict[str, list[dict[str, object]]] = {
    "small": [{"length": 30.0, "width": 1.0, "colour": "red"}, {"length": -4.5, "width": 0.1, "colour": "green"}],
    "clubs": [{"node": "m3"}, {"node": "m10"}],
    "shapes": [{"nodes": [[0.1, 2], [0.2, 2], [0.3, 2]], "edges": [[0, 1], [1, 2], [2, 0]]}],
    "moods": [{"text": "the seat was lovely"}, {"text": "my bag was late"}],
    "rhymes": [{"prompt": "the mill ", "max_tokens": 12, "temperature": 0.0}, {"prompt": "water", "max_tokens": 12, "seed": 7}],
    "lines": [{"text": "with an optional table of the median in rows"}],
    "waves": [{"signal": "0.1,0.95"}, {"signal": "0.1,-0.8"}],
}


# -- data: made with Python's own random numbers, which are the same everywhere


def write_sources(folder: Path) -> None:
    folder.mkdir()
    _table(folder / "small.csv", "length,width,colour,kind", _small())
    _table(folder / "moods.csv", "body,mood", _moods())
    _table(folder / "rhymes.csv", "title,text", _rhymes())
    _table(folder / "lines.csv", "name,body,summary", _lines())
    _table(folder / "waves.csv", "signal,kind", _waves())
    _clubs(folder)
    (folder / "shapes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _shapes()))


def _table(path: Path, head: str, rows: list[tuple[object, ...]]) -> None:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def _small() -> list[tuple[object, ...]]:
    draw, rows = random.Random(1), []
    for _ in range(300):
        length, width, colour = round(draw.gauss(0, 10), 3), round(draw.gauss(0, 1), 4), draw.choice(["red", "green", "blue"])
        big = (length / 10 + width + (colour == "red") > 0.3) != (draw.random() < 0.1)
        rows.append((max(-50.0, min(50.0, length)), width, colour, "big" if big else "small"))
    return rows


def _clubs(folder: Path, members: int = 80, likes: int = 6) -> None:
    draw, club = random.Random(2), [i % 2 for i in range(80)]
    rows = [[int(draw.random() < 0.25 + 0.3 * (like % 2 == club[i])) for like in range(likes)] for i in range(members)]
    head = ",".join(["name", *(f"like_{i}" for i in range(likes)), "club"])
    _table(folder / "clubs.csv", head, [(f"m{i}", *row, ("chess", "tennis")[club[i]]) for i, row in enumerate(rows)])
    pairs = [(i, draw.randrange(1, members)) for i in range(1, members) for _ in range(4)]
    near = [(i, j) for i, j in pairs if i != j and (club[i] == club[j] or draw.random() < 0.05)]
    (folder / "friends.txt").write_text("".join(f"m{i} m{j}\n" for i, j in near))


def _shapes() -> list[dict[str, object]]:
    draw, rows = random.Random(3), []
    for row in range(80):
        size = draw.randrange(4, 9)
        edges = [[i, (i + 1) % size] for i in range(size)] if row % 2 else [[0, i] for i in range(1, size)]
        degree = [sum(i in edge for edge in edges) for i in range(size)]
        nodes = [[round(draw.gauss(0, 1), 3), count] for count in degree]
        rows.append({"nodes": nodes, "edges": edges, "shape": "ring" if row % 2 else "star"})
    return rows


def _moods() -> list[tuple[object, ...]]:
    draw, rows = random.Random(4), []
    for _ in range(160):
        mood = draw.choice(["bad", "good"])
        words = [draw.choice(["the", "plane", "seat", "was", "a", "bag", "my"]) for _ in range(draw.randrange(12))]
        telling = {"good": ["fine", "lovely", "great"], "bad": ["awful", "broken", "late"]}[mood]
        words.insert(draw.randrange(len(words) + 1), draw.choice(telling))
        rows.append((" ".join(words), mood))
    return rows


def _rhymes() -> list[tuple[object, ...]]:
    draw = random.Random(5)
    verses = [" ".join(draw.choice(["the", "mill", "turns", "water", "runs"]) for _ in range(6)) for _ in range(40)]
    return [(f"No. {i}", f"{verse}; and so on.") for i, verse in enumerate(verses)]


def _waves() -> list[tuple[object, ...]]:
    starts = [(i, i % 7 / 10) for i in range(200)]
    return [(f'"{start},{start + (0.9 if i % 2 else -0.9):.1f}"', ("down", "up")[i % 2]) for i, start in starts]


def _lines() -> list[tuple[object, ...]]:
    draw, rows = random.Random(6), []
    for _ in range(100):
        noun = draw.choice(["mean", "sum", "rank", "median", "count", "name", "shape", "index"])
        words = [
            draw.choice(["of", "rows", "in", "axis", "with", "an", "optional", "table", "by"])
            for _ in range(draw.randrange(2, 8))
        ]
        words.insert(draw.randrange(len(words) + 1), noun)
        rows.append(("f", " ".join(words), f"Compute the {noun}."))
    return rows


# -- the project


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
    """A clone as git would make it, with the recipes and their data, in one commit."""
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
    """Every recipe once, then `small` with another seed."""
    for name in RECIPES:
        legacy.run("run", name)
        print("released", name, flush=True)
    recipe = legacy.root / "recipes" / "small.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 7, device", "seed: 8, device"))
    legacy.git("commit", "--quiet", "--all", "--message", "Another seed for small")
    legacy.run("run", "small")


# -- what the test is to find again


def ask(legacy: LegacyProject, tag: str, name: str) -> dict[str, object]:
    """Answers of one bento, started as its replicas were: by the code inside it."""
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
    """Names, hashes, commits and answers of every version."""
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


# -- what goes into the archive


RUNNING = ("door", "replicas", "supervisor/programs")
"""Of `.headrace` while all is served: what a newer Headrace finds that comes to a legacy that runs."""
KEPT = ("bentoml/bentos", "bentoml/models", "keys", "guard", "door/models.json", "usage")
"""Of `.headrace`: what a rollback, a replica or the gateway reads. All else is made again when it is missing."""


LEFT = (
    *(".headrace", "artifacts", "mlruns", ".git", ".dvc/tmp", ".dvc/cache"),
    *("headrace", "flows", "tasks", "bentos", "deploy", "pyproject.toml", "prefect.yaml"),
)
"""Of the project: what is kept in part, and the code, in whose place an upgrade puts its own. Git has it."""


def trim(legacy: LegacyProject, place: Path) -> None:
    """A copy of the project without what can be made again."""
    root, state = legacy.root, legacy.root / ".headrace"
    left = {str(root / name) for name in LEFT}
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        root, place, ignore=lambda folder, names: {n for n in names if str(Path(folder, n)) in left} | ignore(folder, names)
    )
    for name in KEPT:
        if (state / name).is_dir():
            shutil.copytree(state / name, place / ".headrace" / name, ignore=ignore)
        elif (state / name).exists():
            (place / ".headrace" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(state / name, place / ".headrace" / name)
    _keep_data(root / ".dvc" / "cache" / "files" / "md5", place / ".dvc" / "cache" / "files" / "md5")
    _keep_registry(root, place)
    _keep_git(root, place)
    was = str(root)
    for path in [p for p in place.rglob("*") if p.is_file() and ".git" not in p.parts]:
        content = path.read_bytes()
        if was.encode() in content and path.suffix != ".db":
            path.chmod(0o644)
            path.write_bytes(content.replace(was.encode(), ROOT_WAS.encode()))
            print("has the folder's name in it:", path.relative_to(place), flush=True)


def _keep_data(cache: Path, place: Path) -> None:
    """Of DVC's cache the versions of `data/`; what the stages made is made again."""
    for tree in sorted(cache.glob("??/*.dir")):
        entries = json.loads(tree.read_text())
        if all(entry["relpath"].partition("/")[0] in RECIPES for entry in entries):
            for file in [tree, *(cache / e["md5"][:2] / e["md5"][2:] for e in entries)]:
                kept = place / file.relative_to(cache)
                kept.parent.mkdir(parents=True, exist_ok=True)
                if not kept.exists():
                    shutil.copyfile(file, kept)


def _keep_registry(root: Path, place: Path) -> None:
    """Journal, audit log, the registry's database in one file, and the models' files."""
    (place / "mlruns").mkdir()
    for path in (root / "mlruns").glob("*.jsonl"):
        shutil.copyfile(path, place / "mlruns" / path.name)
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as source, sqlite3.connect(place / "mlruns" / "mlflow.db") as kept:
        source.backup(kept)
    kept = sqlite3.connect(place / "mlruns" / "mlflow.db", isolation_level=None)
    tables = [name for (name,) in kept.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in kept.execute(f"PRAGMA table_info({table})").fetchall():
            if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                changed = kept.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?) > 0",
                    (str(root), ROOT_WAS, str(root)),
                ).rowcount
                if changed:
                    print(f"has the folder's name in it: mlflow.db {table}.{column}, {changed} rows", flush=True)
    kept.execute("PRAGMA journal_mode=DELETE")
    kept.execute("VACUUM")
    kept.close()
    shutil.copytree(root / "mlruns" / "artifacts", place / "mlruns" / "artifacts", ignore=shutil.ignore_patterns("*.png"))


def _keep_git(root: Path, place: Path) -> None:
    """Keeps one pack without compression: the archive compresses it together with the same text elsewhere."""
    shutil.copytree(root / ".git", place / ".git", ignore=shutil.ignore_patterns("logs", "hooks", "COMMIT_EDITMSG"))
    for command in (
        ["-c", "pack.compression=0", "repack", "-adfq", "--window=0", "--depth=0"],
        ["prune-packed", "-q"],
        ["reset", "-q"],
    ):
        subprocess.run(["git", "-C", str(place), *command], check=True)


def keep_running(legacy: LegacyProject, running: Path, place: Path) -> None:
    """The files of the legacy while it served, as examples of their form: without this machine's folders."""
    shutil.copytree(running, place)
    for path in [p for p in place.rglob("*") if p.is_file()]:
        text = path.read_text().replace(str(legacy.root), ROOT_WAS).replace(sys.prefix, "/environment")
        path.write_text(re.sub(r"/[\w/.-]*/headrace-\d+-[0-9a-f]{12}", "/headrace-runtime", text))


def pack(place: Path, archive: Path) -> None:
    """Equal times and owners, files in order; `.xz` with a window that holds it all."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 1_767_225_600
        return entry

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 * 2**20}]
    with (
        lzma.open(archive, "wb", filters=filters) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(place.rglob("*"), key=lambda p: (p.name, str(p))):  # files of one name lie side by side
            tar.add(path, path.relative_to(place), recursive=False, filter=plain)


def release(checkout: Path, workdir: Path) -> None:
    """All releases, and a copy of the files by which the legacy served them; then everything is stopped."""
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
    trim(legacy, workdir / "kept")
    keep_running(legacy, workdir / "running", workdir / "kept" / ".running")
    pack(workdir / "kept", archive)
    print(archive, archive.stat().st_size)


if __name__ == "__main__":
    main()
