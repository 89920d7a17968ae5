"""Which ends of worker processes lead to a restart: real processes under torch's agent, without a training."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from headrace.errors import RegistryError, TrainingError
from headrace.training.launch import Agent, OneMachine, deaths, logs, quiet_torch, signal_handlers_kept
from headrace.training.worker import exit_code
from headrace.training.worker_exit import FAILED, INTERRUPTED, PEER_LOST, error_file, log_file

GLOO = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5012")
UNTIL_SIGTERM = f"trap 'exit {INTERRUPTED}' TERM; touch waits; for _ in $(seq 500); do sleep 0.02; done"
WAITED_FOR = "while [ ! -e waits ]; do sleep 0.02; done"


def run(folder: Path, first: str, second: str) -> tuple[RunResult, list[str]]:
    """Lets the agent run two shell scripts; any restart succeeds. Returns how they ended, and what the agent reported."""
    script = folder / "script"
    script.write_text(
        f"cd {folder}\n[ $TORCHELASTIC_RESTART_COUNT -gt 0 ] && exit 0\nif [ $RANK = 1 ]; then {second}; else {first}; fi\n"
    )
    spec = WorkerSpec(
        role="test",
        local_world_size=2,
        rdzv_handler=OneMachine("test"),
        entrypoint="sh",
        args=(str(script),),
        max_restarts=3,
        monitor_interval=0.1,
    )
    said: list[str] = []
    with quiet_torch(), signal_handlers_kept():
        return Agent(spec, logs(2, folder), folder, said.append).run(), said


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(UNTIL_SIGTERM, f"{WAITED_FOR}; kill -KILL $$", id="the agent ends the other"),
        pytest.param(f"exit {PEER_LOST}", "kill -KILL $$", id="the other sees the loss"),
        pytest.param(f"exit {FAILED}", "kill -KILL $$", id="the other fails with another error"),
        pytest.param(f"touch waits; exit {FAILED}", f"{WAITED_FOR}; kill -SEGV $$", id="a crash"),
        pytest.param(UNTIL_SIGTERM, f"{WAITED_FOR}; kill -TERM $$; exit 9", id="SIGTERM before it is handled"),
        pytest.param(UNTIL_SIGTERM, f"{WAITED_FOR}; exit {PEER_LOST}", id="a process of another machine"),
    ],
)
def test_all_are_restarted_when_one_is_lost(first: str, second: str, tmp_path: Path) -> None:
    log_file(tmp_path, 0).write_text("an error that followed from the loss")
    result, said = run(tmp_path, first, second)
    assert not result.is_failed(), result.failures
    (line,) = said
    assert line.endswith("all processes resume from the last checkpoint")
    assert not log_file(tmp_path, 0).exists()
    if "KILL" in second:
        assert line.startswith("process 2 of 2 was killed by SIGKILL:")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(f"{WAITED_FOR}; exit {FAILED}", UNTIL_SIGTERM, id="the agent ends the other"),
        pytest.param(f"exit {FAILED}", f"exit {PEER_LOST}", id="the other sees a loss"),
        pytest.param(f"{WAITED_FOR}; exit {FAILED}", "touch waits; exec sleep 20", id="the other dies by SIGTERM"),
        pytest.param(f"exit {FAILED}", f"exit {FAILED}", id="both fail"),
    ],
)
def test_nothing_is_restarted_when_one_has_failed(first: str, second: str, tmp_path: Path) -> None:
    result, said = run(tmp_path, first, second)
    assert result.is_failed() and not said
    assert result.failures[0].exitcode == FAILED


def test_an_error_that_the_user_can_fix_ends_the_training(tmp_path: Path) -> None:
    error_file(tmp_path).write_text("{}")
    result, said = run(tmp_path, f"exit {FAILED}", "kill -KILL $$")
    assert result.is_failed() and not said


def raised_while_handling(first: BaseException, *later: BaseException) -> BaseException:
    """The last error, each raised while the one before was handled, as by a clean-up that fails as well."""
    for error in later:
        error.__context__, error.__suppress_context__ = first, True
        first = error
    return first


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([GLOO], PEER_LOST),
        ([RuntimeError("Gloo connectFullMesh failed with [/gloo/transport/tcp/pair.cc:144] no error")], PEER_LOST),
        ([RuntimeError("[..gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv")], PEER_LOST),
        ([RuntimeError("NCCL communicator was aborted on rank 0")], PEER_LOST),
        ([RuntimeError("Broken pipe")], PEER_LOST),
        ([GLOO, RuntimeError("the process group cannot be destroyed")], PEER_LOST),
        ([GLOO, RegistryError("MLflow's database failed: database is locked")], PEER_LOST),
        ([GLOO, OSError(28, "No space left on device"), ValueError("closed")], PEER_LOST),
        ([GLOO, KeyboardInterrupt()], INTERRUPTED),
        ([KeyboardInterrupt(), RegistryError("MLflow's database failed: database is locked")], INTERRUPTED),
        ([TrainingError("gloo needs a network interface")], FAILED),
        ([RegistryError("MLflow's database failed: database is locked")], FAILED),
        ([RuntimeError("mat1 and mat2 shapes cannot be multiplied")], FAILED),
        ([ValueError("gloo")], FAILED),
        ([MemoryError()], FAILED),
    ],
    ids=lambda value: " then ".join(type(one).__name__ for one in value) if isinstance(value, list) else "",
)
def test_what_happened_first_decides_how_a_worker_ends(errors: list[BaseException], code: int) -> None:
    assert exit_code(raised_while_handling(*errors)) == code


def test_errors_of_torchs_stores_are_a_loss() -> None:
    import torch.distributed as dist

    assert exit_code(dist.DistStoreError("wait timeout after 300000ms")) == PEER_LOST
    assert exit_code(dist.DistNetworkError("The client socket has failed to connect")) == PEER_LOST


def test_deaths_name_the_signal_that_was_first(tmp_path: Path) -> None:
    def result(*codes: int) -> RunResult:
        failures = {rank: ProcessFailure(rank, 1, code, str(tmp_path / "none")) for rank, code in enumerate(codes) if code}
        return RunResult(None, {}, failures)  # type: ignore[arg-type]

    killed, ended = -signal.SIGKILL, -signal.SIGTERM
    assert deaths(result(ended, killed), 2) == "process 2 of 2 was killed by SIGKILL"
    assert deaths(result(INTERRUPTED, killed, killed), 3) == (
        "process 2 of 3 was killed by SIGKILL, process 3 of 3 was killed by SIGKILL"
    )
    assert deaths(result(0, INTERRUPTED), 2) == "process 2 of 2 was killed by SIGTERM"
    assert deaths(result(PEER_LOST), 2) == "a process on another machine was lost"
