"""The engine's Adam and AdamW step as torch's own do, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from headrace.recipe.training import TrainConfig
from headrace.training.fused_adam import FusedAdam
from headrace.training.optimizers import ScheduledOptimizer
from tests.training.toys import image_model, table_model


def weights_of(seed: int = 0) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((5, 3), (7,), (2, 2, 3, 3), ())]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "weight_decay": 0.0}]


def give_gradients(parameters: list[nn.Parameter], step: int, without: int | None = None) -> None:
    random = torch.Generator().manual_seed(100 + step)
    for i, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=random)
        parameter.grad = None if i == without else gradient


def both(decoupled: bool) -> tuple[list[nn.Parameter], FusedAdam, list[nn.Parameter], Optimizer]:
    mine, theirs = weights_of(), weights_of()
    ours = FusedAdam(groups(mine), lr=0.01, fused=True, decoupled_weight_decay=decoupled)
    return mine, ours, theirs, (AdamW if decoupled else Adam)(groups(theirs), lr=0.01, fused=True)


def move(optimizer: Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def assert_equal(mine: list[Tensor] | list[nn.Parameter], theirs: list[Tensor] | list[nn.Parameter]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("decoupled", [True, False], ids=["adamw", "adam"])
@pytest.mark.parametrize("without", [None, 1], ids=["all gradients", "one gradient missing now and then"])
def test_it_steps_as_torch_does_bit_for_bit(decoupled: bool, without: int | None) -> None:
    mine, ours, theirs, peer = both(decoupled)
    for step in range(8):
        for parameters, optimizer in ((mine, ours), (theirs, peer)):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            give_gradients(parameters, step, without if step % 3 == 1 else None)
            move(optimizer)
            assert all(parameter.grad is None for parameter in parameters)
        assert_equal(mine, theirs)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert_equal([ours.state[p][name] for p in mine], [peer.state[p][name] for p in theirs])
    assert ours._lists is not None


def test_its_state_goes_into_torchs_own_and_back_again_in_the_middle_of_a_run() -> None:
    mine, ours, theirs, peer = both(decoupled=True)
    for step in range(4):
        give_gradients(mine, step)
        move(ours)
    with torch.no_grad():
        for source, place in zip(mine, theirs, strict=True):
            place.copy_(source)
    peer.load_state_dict(copy.deepcopy(ours.state_dict()))
    for step in range(4, 6):
        for parameters, optimizer in ((mine, ours), (theirs, peer)):
            give_gradients(parameters, step)
            move(optimizer)
    assert_equal(mine, theirs)
    ours.load_state_dict(copy.deepcopy(peer.state_dict()))
    for parameters, optimizer in ((mine, ours), (theirs, peer)):
        give_gradients(parameters, 6)
        move(optimizer)
    assert_equal(mine, theirs)


def test_a_model_that_never_uses_a_parameter_is_trained_all_the_same() -> None:
    model = table_model()
    model.unused = nn.Parameter(torch.ones(3))
    optimizer = ScheduledOptimizer(model, TrainConfig(), steps=5)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        model.loss(model.raw(torch.ones(4, 2)), torch.tensor([0, 1, 0, 1])).backward()  # type: ignore[no-untyped-call]
        optimizer.set_learning_rate()
        optimizer.step()
        optimizer.zero_grad()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert torch.equal(model.unused, torch.ones(3)) and sum(changed) == len(changed) - 1


def test_weights_of_mixed_precision_are_left_to_torch() -> None:
    parameters = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, dtype=torch.float64))]
    optimizer = FusedAdam(parameters, lr=0.1, fused=True)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        move(optimizer)
    assert optimizer._lists is None
    assert torch.allclose(parameters[0].double(), parameters[1]) and float(parameters[0][0].detach()) < 1


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_recipes_get_it(name: str) -> None:
    optimizer = ScheduledOptimizer(image_model(), TrainConfig.model_validate({"optimizer": name}), steps=5)
    (adam,) = optimizer.optimizers
    assert isinstance(adam, FusedAdam)
    assert all(group["decoupled_weight_decay"] == (name == "adamw") for group in adam.param_groups)
