"""Errors of a training, and their messages."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from headrace.errors import TrainingError
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training import losses
from headrace.training.device import choose_precision
from headrace.training.errors import memory_errors, nondeterminism
from headrace.training.loop import TrainingRun, fit
from headrace.training.rows import Split
from tests.training.toys import table_model, table_rows, train


def raised(config: TrainConfig, error: BaseException) -> TrainingError:
    with pytest.raises(TrainingError) as caught, memory_errors(config):
        raise error
    return caught.value


def too_much() -> RuntimeError:
    """Returns the error that torch raises when the CPU's memory is exhausted."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("size", [128, 7])
def test_a_full_memory_names_the_fields_that_keep_the_steps(size: int) -> None:
    for error in (too_much(), MemoryError()):
        found = raised(TrainConfig(batch_size=size, gradient_accumulation_steps=3), error)
        assert found.message == f"this machine is out of memory with train.batch_size {size}"
        assert f"train.batch_size: {size // 2}" in str(found.hint) and "train.gradient_accumulation_steps: 6" in str(found.hint)


def test_a_full_gpu_is_named() -> None:
    assert "the GPU is out of memory" in raised(TrainConfig(), torch.cuda.OutOfMemoryError("CUDA out of memory")).message


def test_a_batch_of_one_row_cannot_be_halved() -> None:
    assert "smaller model" in str(raised(TrainConfig(batch_size=1), MemoryError()).hint)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(TrainConfig()):
        raise RuntimeError("shapes differ")


def spoilt_from(batch: int, model: ServedModel) -> None:
    """Makes the loss of that batch NaN, counted from 1."""
    plain, seen = model.loss, [0]

    def loss(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen[0] += model.training
        return plain(raw, target) * (math.nan if model.training and seen[0] == batch else 1.0)

    model.loss = loss  # type: ignore[method-assign]


@pytest.mark.parametrize("read_every", [1, 3, 1000])
@pytest.mark.parametrize(("batch", "place"), [(1, "epoch 1, batch 1"), (12, "epoch 2, batch 5"), (14, "epoch 2, batch 7")])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(
    batch: int, place: str, read_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "READ_EVERY", read_every)
    model = table_model()
    spoilt_from(batch, model)
    with pytest.raises(TrainingError) as caught:
        train(model, table_rows(50), TrainConfig(epochs=3, batch_size=8, learning_rate=0.125, compile="off"), tmp_path)
    assert caught.value.message == f"the loss became nan in {place}"
    hint = str(caught.value.hint)
    assert "train.learning_rate (now 0.125)" in hint and "set train.max_grad_norm" in hint


def test_where_gradients_are_clipped_the_clip_is_to_be_lowered(tmp_path: Path) -> None:
    model = table_model()
    spoilt_from(1, model)
    with pytest.raises(TrainingError) as caught:
        train(model, table_rows(50), TrainConfig(epochs=1, max_grad_norm=5.0, compile="off"), tmp_path)
    assert "lower train.max_grad_norm" in str(caught.value.hint)


def test_infinite_validation_rows_are_reported(tmp_path: Path) -> None:
    model, rows = table_model(), table_rows(20)
    bad = Split((torch.full((5, 2), math.inf),), torch.zeros(5, dtype=torch.int64))
    model.preprocess = torch.nn.Identity()
    model.network.forward = lambda x: x * 1.0  # type: ignore[method-assign]
    model.raw = lambda x: x + sum(p.sum() * 0 for p in model.parameters())  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="in epoch 1, on the validation rows"):
        fit(model, rows, bad, TrainConfig(epochs=1), TrainingRun(tmp_path / "c.pt", "run"))


def test_kernels_that_vary_are_named_once_and_other_warnings_pass() -> None:
    said = "scatter_add_cuda_kernel does not have a deterministic implementation, but you set 'warn_only'"
    with pytest.warns(UserWarning, match="something else") as others, nondeterminism() as found:
        for _ in range(3):
            warnings.warn(said, UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert found == {"scatter_add_cuda_kernel"}
    assert len(others) == 1


def test_torchs_own_warning_is_understood() -> None:
    """A kernel that has no deterministic version on the CPU either."""
    torch.set_deterministic_debug_mode("warn")
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    with nondeterminism() as found:
        torch.nn.functional.max_unpool2d(*torch.nn.functional.max_pool2d(x, 2, return_indices=True), 2).sum().backward()
    assert found == {"max_unpooling2d_forward_out"}


def test_precision_on_the_cpu_is_full_unless_half_is_asked_for() -> None:
    found = [choose_precision(wanted, torch.device("cpu")) for wanted in ("auto", "float32", "bfloat16")]
    assert found == [torch.float32, torch.float32, torch.bfloat16]
