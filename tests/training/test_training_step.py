"""Optimizers, decay, L1, clipping and accumulation against answers worked out beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training.loop import Trainer, TrainingRun
from headrace.training.optimizers import ScheduledOptimizer, make_optimizers, parameters_of
from headrace.training.rows import Split
from tests.training.toys import image_model, image_rows, largest_difference, table_model, table_rows, train, weights


def gradients(model: ServedModel, rows: Split) -> dict[str, Tensor]:
    model.train()
    model.loss(model.raw(*rows.inputs), rows.target).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def first_step(config: TrainConfig, model: ServedModel, rows: Split) -> None:
    config = config.model_copy(update={"epochs": 1, "batch_size": len(rows)})
    trainer = Trainer(model, rows, rows, config, TrainingRun(Path("unused.pt"), "run"))
    trainer.optimizer.set_learning_rate()
    trainer.training_step((rows.inputs, rows.target))


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_the_first_step_is_the_one_worked_out_by_hand(optimizer: Any) -> None:
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.01, schedule="constant")
    model, rows = table_model(), table_rows(7)
    before, grown = weights(model), gradients(model, rows)
    first_step(config, model, rows)
    for name, parameter in model.named_parameters():
        w, g = before[name], grown[name]
        decay = 0.01 if w.ndim == 2 else 0.0  # biases do not decay
        decayed = g + decay * w
        if optimizer == "sgd":  # Nesterov's first step: g + 0.9 g
            wanted = w - 0.1 * 1.9 * decayed
        elif optimizer == "rmsprop":  # the mean square of one gradient has 1 - 0.99 of it
            wanted = w - 0.1 * decayed / ((0.01 * decayed**2).sqrt() + 1e-8)
        elif optimizer == "adam":  # bias-corrected moments of one gradient: its sign, but for epsilon
            wanted = w - 0.1 * decayed / (decayed.abs() + 1e-8)
        else:  # decay beside the gradient
            wanted = w - 0.1 * decay * w - 0.1 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_muon_steps_equally_far_in_every_direction_of_a_hidden_matrix() -> None:
    """The gradient U S V' becomes nearly U V', with the length of AdamW's step (0.2 for each weight)."""
    config = TrainConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0, schedule="constant")
    model = table_model()
    hidden = dict(model.named_parameters())["network.layers.3.weight"]
    left, right = (torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(i))).Q for i in (1, 2))
    before = hidden.detach().clone()
    hidden.grad = left @ torch.linspace(1, 0.2, 8).diag() @ right
    optimizer = ScheduledOptimizer(model, config, steps=1)
    optimizer.set_learning_rate()
    optimizer.step()
    stretched = left.T @ (before - hidden.detach()) @ right.T / (0.1 * 0.2 * 8**0.5)
    assert 0.6 < stretched.diagonal().min() <= stretched.diagonal().max() < 1.25
    assert (stretched - stretched.diagonal().diag()).abs().max() < 0.05


def test_muon_leaves_what_is_no_hidden_matrix_to_adamw() -> None:
    config = TrainConfig(optimizer="muon", learning_rate=0.1, schedule="constant")
    model, plain, rows = table_model(), table_model(), table_rows(50)
    first_step(config, model, rows)
    first_step(config.model_copy(update={"optimizer": "adamw"}), plain, rows)
    same = {name for name, _ in model.named_parameters() if torch.equal(model.state_dict()[name], plain.state_dict()[name])}
    assert same == {"network.layers.0.bias", "network.layers.3.bias", "network.layers.6.weight", "network.layers.6.bias"}


def test_weights_decay_and_biases_norms_and_embeddings_do_not() -> None:
    class Parts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 4)
            self.norm = torch.nn.LayerNorm(4)
            self.filter = torch.nn.Conv1d(4, 4, 3)
            self.recurrent = torch.nn.GRU(4, 4)
            self.hidden = torch.nn.Linear(4, 4)
            self.output = torch.nn.Linear(4, 5, bias=False)
            self.frozen = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    parts = Parts()
    names = {id(parameter): name for name, parameter in parts.named_parameters()}
    found = parameters_of(parts)
    assert [names[id(p)] for p in found.matrices] == ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "hidden.weight"]
    assert [names[id(p)] for p in found.weights] == ["filter.weight", "output.weight"]
    rest = "embedding.weight norm.weight norm.bias filter.bias recurrent.bias_ih_l0 recurrent.bias_hh_l0 hidden.bias"
    assert [names[id(p)] for p in found.rest] == rest.split()
    (optimizer,) = make_optimizers(parts, TrainConfig(weight_decay=0.3))
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if decay == 0.3} == {names[id(p)] for p in found.decayed}
    assert {name for name, decay in decays.items() if decay == 0.0} == set(rest.split())


def test_a_matrix_that_embeds_and_makes_the_outputs_counts_once_and_as_an_embedding() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = torch.nn.Linear(4, 4, bias=False)
            self.embedding = torch.nn.Embedding(5, 4)
            self.output = torch.nn.Linear(4, 5, bias=False)
            self.output.weight = self.embedding.weight

    tied = Tied()
    found = parameters_of(tied)
    assert [id(p) for p in found.rest] == [id(tied.embedding.weight)]
    assert len(found.decayed) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "muon"])
def test_momentum_is_the_recipes(optimizer: Any) -> None:
    made = make_optimizers(table_model(), TrainConfig(optimizer=optimizer, momentum=0.37))
    assert made[0].param_groups[0]["momentum"] == 0.37


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_momentum_where_there_is_none_to_set_is_a_mistake(optimizer: Any) -> None:
    with pytest.raises(ValidationError, match="sgd, rmsprop, muon"):
        TrainConfig(optimizer=optimizer, momentum=0.9)


def test_l1_adds_the_sign_of_each_weight() -> None:
    config = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, l1=0.03, learning_rate=0.5, schedule="constant")
    model, rows = table_model(), table_rows(9)
    before, grown = weights(model), gradients(model, rows)
    first_step(config, model, rows)
    for name, parameter in model.named_parameters():
        w, g = before[name], grown[name]
        wanted = w - 0.5 * (g + (0.03 * w.sign() if w.ndim == 2 else 0))
        torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize(("clip", "is_clipped"), [(0.01, True), (1e3, False)])
def test_gradients_longer_than_the_clip_are_shortened_to_it(clip: float, is_clipped: bool) -> None:
    fields: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    config = TrainConfig(learning_rate=0.5, max_grad_norm=clip, **fields)
    model, rows = table_model(), table_rows(9)
    before, grown = weights(model), gradients(model, rows)
    norm = torch.cat([g.flatten() for g in grown.values()]).norm()
    assert clip < norm if is_clipped else clip > norm
    first_step(config, model, rows)
    moved = torch.cat([(before[name] - value.detach()).flatten() for name, value in model.named_parameters()])
    assert float(moved.norm()) == pytest.approx(0.5 * (clip if is_clipped else float(norm)), rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("extra", [{}, {"class_weights": {"0": 3.0}}, {"max_grad_norm": 0.1}], ids=["", "weights", "clip"])
def test_two_half_batches_are_one_whole_batch(optimizer: Any, extra: dict[str, Any], tmp_path: Path) -> None:
    """Also where the last group has one batch only, and where its last batch is not full."""
    fields = {"epochs": 2, "optimizer": optimizer, "learning_rate": 0.05, **extra}
    rows, models = table_rows(77), [table_model(), table_model()]
    for model, (size, groups) in zip(models, [(16, 1), (8, 2)], strict=True):
        config = TrainConfig.model_validate({**fields, "batch_size": size, "gradient_accumulation_steps": groups})
        train(model, rows, config, tmp_path / str(size))
    assert largest_difference(weights(models[0]), weights(models[1])) < 2e-5


def test_steps_of_the_schedule_are_those_of_the_optimizer(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, batch_size=8, gradient_accumulation_steps=4, schedule="cosine", learning_rate=0.1)
    progress = train(table_model(), table_rows(77), config, tmp_path)  # 10 batches: 3 steps an epoch
    assert progress.history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-12)
    assert all(row["learning_rate"] > 0 for row in progress.history[:-1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_trains_and_keeps_whole_weights(precision: Any, tmp_path: Path) -> None:
    model, rows = image_model(), image_rows(64)
    progress = train(model, rows, TrainConfig(epochs=8, batch_size=16, learning_rate=0.05, precision=precision), tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert progress.history[-1]["train_loss"] < progress.history[0]["train_loss"] / 2


def test_half_precision_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    finals = []
    for precision in ("auto", "float32", "bfloat16"):
        config = TrainConfig.model_validate({"epochs": 1, "batch_size": 16, "precision": precision, "device": "cpu"})
        model = image_model()
        train(model, image_rows(64), config, tmp_path / precision)
        finals.append(weights(model))
    assert largest_difference(finals[0], finals[1]) == 0.0
    assert largest_difference(finals[1], finals[2]) > 0.0
