"""Backfills that were interrupted or killed: the same command continues, and the result has the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from headrace.backfill import run
from headrace.backfill.plan import Chunk, Work
from headrace.backfill.pool import Pool
from headrace.errors import Busy, DataError, DiskFull, HeadraceError, RegistryError, UsageError
from tests.backfill.released import ROWS, Released
from tests.exhaustive import exhaustive
from tests.projects import table

HEADRACE = Path(sys.executable).with_name("headrace")


def interrupted(model: Released, data: Path, out: Path, after: int = 3, **options: object) -> int:
    """Scores some chunks, and returns how many were done; as a killed process leaves it."""
    plan = model.prepare(data, out, **options)
    done: list[Chunk] = []

    def stop(chunk: Chunk) -> None:
        done.append(chunk)
        if len(done) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.score(plan, 2, model.project, stop, lambda line: None)
    return len(list(Work(out).manifests.glob("*.json")))


@pytest.mark.parametrize("ending", [".csv", exhaustive(".parquet"), exhaustive(".jsonl")])
def test_a_continued_result_has_the_bytes_of_an_undisturbed_one(
    model: Released, past: Path, tmp_path: Path, ending: str
) -> None:
    data = past
    if ending != ".csv":
        data = tmp_path / f"past{ending}"
        frame = table(ROWS, seed=8)
        frame.to_parquet(data) if ending == ".parquet" else frame.to_json(data, orient="records", lines=True)
    calm, out = tmp_path / f"calm{ending}", tmp_path / f"scored{ending}"
    model.backfill(data, calm)
    done = interrupted(model, data, out)
    assert 3 <= done < 11 and not out.exists()
    plan = model.prepare(data, out, chunk_rows=500)
    assert plan.chunk_rows == 100, "as it began"
    known: list[int] = []
    run.score(plan, 1, model.project, lambda chunk: known.append(chunk.index), lambda line: None)
    assert sorted(known) == list(range(11)), "each once"
    record = run.finish(plan, model.project)
    assert out.read_bytes() == calm.read_bytes() and record["rows"] == ROWS
    assert model.backfill(data, out) == record, "nothing is left to do"


def test_an_interrupted_and_a_killed_command_continue(model: Released, past: Path, tmp_path: Path) -> None:
    calm, out = tmp_path / "calm.csv", tmp_path / "scored.csv"
    model.backfill(past, calm)
    command = [HEADRACE, "backfill", model.version.model, "--data", past, "--out", out, "--workers", "2", "--chunk-rows", "100"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*map(str, command)],
            cwd=model.project.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def until(process: subprocess.Popen[str], manifests: int) -> None:
        while process.poll() is None and len(list(Work(out).manifests.glob("*.json"))) < manifests:
            time.sleep(0.005)

    process = start()
    until(process, 2)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed
    assert "of 1,030 rows are done" in printed and f"to continue: headrace backfill {model.version.model}" in printed
    assert not any(worker.is_running() for worker in workers)

    process = start()
    until(process, 5)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=30)
    assert not any(worker.is_running() for worker in workers), "they end with their parent"

    process = start()
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 3 and "1 of 1,030 rows were refused" in printed, printed
    assert out.read_bytes() == calm.read_bytes()


def test_a_killed_worker_is_replaced(model: Released, past: Path, tmp_path: Path) -> None:
    plan = model.prepare(past, tmp_path / "scored.csv")
    killed: list[psutil.Process] = []
    done: list[int] = []
    reported: list[str] = []

    def kill_once(chunk: Chunk) -> None:
        done.append(chunk.index)
        if not killed:
            killed.extend(psutil.Process().children()[-1:])
            killed[0].kill()

    run.score(plan, 1, model.project, kill_once, reported.append)
    assert reported == ["a worker process was killed by SIGKILL; it is started again"]
    assert sorted(done) == list(range(11)) and run.finish(plan, model.project)["rows"] == ROWS


DYING = """
import os
from bentos.models.onnx_model import OnnxModel


class Dying(OnnxModel):
    def to_feeds(self, instances):
        if any(row["length"] == 49.0 for row in instances):
            os.kill(os.getpid(), 9)
        return super().to_feeds(instances)
"""


def test_rows_that_end_every_worker_are_named(model: Released, tmp_path: Path) -> None:
    frame = table(500, seed=3)
    frame.loc[321, "length"] = 49.0
    frame.to_csv(tmp_path / "past.csv", index=False)
    plan = model.prepare(tmp_path / "past.csv", tmp_path / "scored.csv")
    work = Work(tmp_path / "scored.csv")
    code = tmp_path / "code"
    code.mkdir()
    (code / "dying.py").write_text(DYING)
    contract = (work.model / "contract.json").read_text()
    (work.model / "contract.json").write_text(contract.replace("bentos.models.onnx_model:OnnxModel", "dying:Dying"))
    reported: list[str] = []
    work.remove_leftovers()
    with pytest.raises(
        HeadraceError, match="rows 300 to 399 ended 3 worker processes; the last one was killed by SIGKILL"
    ) as caught:
        Pool(plan, 1, code, lambda chunk: None, reported.append).score(list(plan.chunks()))
    assert caught.value.where == str(tmp_path / "past.csv") and len(reported) == 2


def test_a_file_that_changes_or_vanishes_in_between(model: Released, past: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "past.csv", tmp_path / "scored.csv"
    shutil.copy(past, data)
    interrupted(model, data, out)
    data.rename(tmp_path / "away.csv")
    with pytest.raises(DataError, match="the file is gone") as caught:
        model.score(Work(out).read_plan() or pytest.fail())
    assert "bring it back" in str(caught.value.hint)
    (tmp_path / "away.csv").rename(data)
    os.utime(data)  # the same bytes
    model.prepare(data, out)
    with data.open("a") as handle:
        handle.write("9999,1.0,1.0,red,big\n")
    with pytest.raises(DataError, match="the file has changed since the backfill began") as caught:
        model.prepare(data, out)
    assert "--restart" in str(caught.value.hint)
    assert model.backfill(data, out, restart=True)["rows"] == ROWS + 1


def test_another_backfill_onto_the_same_result(model: Released, past: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "scored.csv", tmp_path / "other.csv"
    shutil.copy(past, other)
    interrupted(model, past, out)
    with pytest.raises(
        UsageError, match=r"another backfill writes it: its data is .*past\.csv, and here .*other\.csv"
    ) as caught:
        model.prepare(other, out)
    assert "--restart" in str(caught.value.hint)
    with pytest.raises(UsageError, match="its --answers-only is False, and here True"):
        model.prepare(past, out, answers_only=True)
    busy = pytest.raises(Busy, match=f"process {os.getpid()}")
    with run.backfill_lock(out, model.project), busy, run.backfill_lock(out, model.project):
        pass
    model.backfill(past, out)
    with pytest.raises(UsageError, match="its data is"):
        model.prepare(other, out)
    stranger = tmp_path / "stranger.csv"
    stranger.write_text("mine\n")
    with pytest.raises(UsageError, match="the result exists, and no backfill has made it"):
        model.prepare(past, stranger)
    assert stranger.read_text() == "mine\n"
    assert model.backfill(past, stranger, restart=True)["rows"] == ROWS


def test_damaged_parts_and_files_of_the_version(model: Released, past: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.csv"
    plan = model.prepare(past, out)
    model.score(plan)
    work = Work(out)
    part = work.part(4, ".csv")
    part.write_bytes(part.read_bytes().replace(b"red", b"rad", 1))
    with pytest.raises(DataError, match="a part is not as it was written"):
        run.finish(plan, model.project)
    assert model.backfill(past, out)["rows"] == ROWS and b"rad" not in out.read_bytes()

    graph = model.version.folder / "model.onnx"
    before = graph.read_bytes()
    try:
        graph.write_bytes(before + b" ")
        with pytest.raises(RegistryError, match=r"model\.onnx of .* changed") as caught:
            model.prepare(past, tmp_path / "another.csv")
        assert f"headrace rebuild {model.version.name}" in str(caught.value.hint)
    finally:
        graph.write_bytes(before)


def test_a_killed_move_of_a_folder_is_completed(model: Released, past: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    plan = model.prepare(past, out, is_folder=True)
    model.score(plan)
    record = run.finish(plan, model.project)
    parts = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(parts) == 11
    work = Work(out)
    plan = model.prepare(past, out, is_folder=True, restart=True)
    model.score(plan)
    work.moving.touch()
    shutil.rmtree(out)
    work.parts.rename(out)  # and then the process was killed
    again = model.backfill(past, out, is_folder=True)
    assert again["sha256"] == record["sha256"] and {path.name: path.read_bytes() for path in out.iterdir()} == parts


def test_a_full_disk_is_reported_and_the_same_command_continues(model: Released, past: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("mounting a small file system needs root")
    out = tmp_path / "scored.csv"
    try:
        with pytest.raises(DiskFull, match="no space left"):
            model.backfill(past, out)
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
        assert model.backfill(past, out)["rows"] == ROWS
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
