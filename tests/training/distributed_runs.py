"""Small trainings shared out among processes of this machine, and the same ones done by one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from headrace.models.schema import PretrainedBase, Schema, Shape
from headrace.models.served import ServedModel
from headrace.recipe.models import AttentionConfig, GPTConfig, ModelConfig, PretrainedConfig, RecurrentConfig, Seq2SeqConfig
from headrace.recipe.training import TrainConfig
from headrace.runtime.tokenizer import END, PAD
from headrace.task_types.lookup import task_type_of
from headrace.training import checkpoint
from headrace.training.checkpoint import Progress
from headrace.training.device import seed_everything
from headrace.training.loop import SINGLE, TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from headrace.training.rows import Split
from headrace.training.single_process import SingleProcess
from tests.paths import ROOT
from tests.training.toys import Callbacks, image_model, image_rows, table_model, table_rows

ROWS, LENGTH = 37, 6
BERT = {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH + 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
Job = dict[str, Any]
"""`model` and `train` (the recipe's section), and what else `run` takes."""
TEXTS: dict[str, tuple[str, ModelConfig]] = {
    "attention": ("text-classification", AttentionConfig(width=8, heads=2, dropout=0.0)),
    "recurrent": ("text-classification", RecurrentConfig(embedding=4, hidden=5, dropout=0.0)),
    "lora": ("text-classification", PretrainedConfig(source="model.safetensors", tune="lora", rank=2, dropout=0.0)),
    "gpt": ("text-generation", GPTConfig(width=8, heads=2, layers=2, dropout=0.0)),
    "seq2seq": ("summarisation", Seq2SeqConfig(width=8, heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0)),
}


def make(job: Job) -> tuple[ServedModel, Split, Split]:
    """A model and its rows: 37 to train, so that batches of 8 leave 5 over, and 11 to validate."""
    name, seed = job["model"], job["train"].get("seed", 7)
    if name == "table":
        return table_model(seed, dropout=job.get("dropout", 0.0)), table_rows(ROWS), table_rows(11, seed=2)
    if name == "images":
        return image_model(seed, batch_norm=job.get("batch_norm", False)), image_rows(ROWS), image_rows(11, seed=2)
    task, config = TEXTS[name]
    seed_everything(seed)
    base = PretrainedBase(config=BERT, start=2, end=3, sha256="0" * 64) if name == "lora" else None
    shape = Shape(vocabulary=12, length=LENGTH, answer_length=LENGTH, outputs=2, base=base)
    schema = Schema(shape=shape, labels=["no", "yes"])
    return task_type_of(task).module(config, schema), texts(task, ROWS, 1), texts(task, 11, 2)


def texts(task: str, rows: int, seed: int) -> Split:
    """Rows of 2 to 6 tokens; a row's target is its class, the token that follows each one, or the row itself."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 12, (rows, LENGTH), generator=random)
    ends = torch.randint(2, LENGTH + 1, (rows, 1), generator=random)
    tokens[torch.arange(LENGTH) >= ends] = PAD
    if task == "text-classification":
        return Split((tokens,), (tokens[:, 0] > 7).long())
    following = torch.cat([tokens[:, 1:], torch.full((rows, 1), PAD)], dim=1)
    following = torch.where((following == PAD) & (tokens != PAD), END, following)
    if task == "text-generation":
        return Split((tokens,), following)
    return Split((tokens, tokens), torch.where(following == PAD, -100, following))


def run(job: Job, folder: Path, process_group: SingleProcess = SINGLE) -> tuple[dict[str, torch.Tensor], Progress]:
    """The best epoch's weights, and how the training went; with a `place` of its own for checkpoints one
    is written after every step, and `die_in` an epoch and a batch makes the training stop there."""
    config = TrainConfig.model_validate({"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"} | job["train"])

    def on_step(epoch: int, step: int) -> None:
        if job.get("die_in") == [epoch, step]:
            raise Stopped

    model, rows, validation = make(job)
    process_group.setup("run", config.seed)
    set_loss_weights(model, config, rows.target, [0, 1])
    with patch.multiple(checkpoint, EVERY_SECONDS=0.0 if "place" in job else 60.0, MAX_TIME_SHARE=float("inf")):
        run = TrainingRun(folder / "c.pt", "run", Callbacks(on_step=on_step), process_group)
        progress = fit(model, rows, validation, config, run)
    return progress.best_weights, progress


class Stopped(Exception):
    """In place of a kill."""


PROGRAM = """
import json, os, sys, torch
from pathlib import Path
import torch.distributed as dist
from headrace.training import parallel
from headrace.training.parallel import ProcessGroup
from tests.training import distributed_runs
torch.set_num_threads(1)
folder, size, jobs = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
parallel.BROADCAST_EVERY = 1
children = []
for rank in range(size):
    child = os.fork()  # imports once for all
    if child == 0:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), size), rank=rank, world_size=size)
        for number, job in enumerate(jobs):
            process_group = ProcessGroup(job["strategy"], torch.device("cpu"))
            try:
                weights, progress = distributed_runs.run(job, folder / job.get("place", str(number)), process_group)
            except distributed_runs.Stopped:
                continue
            if rank == 0:
                torch.save({"weights": weights, "history": progress.history}, folder / f"{number}.pt")
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)
    children.append(child)
for _ in children:
    if os.wait()[1]:
        sys.exit(1)
"""


def shared(folder: Path, *jobs: Job, size: int = 2) -> list[dict[str, Any]]:
    """The weights and the history of each job that was not stopped, done by `size` processes; jobs run one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(size), json.dumps(jobs)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as started:
        try:
            _, said = started.communicate(timeout=300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # a process that waits for one that failed
    assert started.returncode == 0, said
    return [torch.load(folder / f"{number}.pt") for number, job in enumerate(jobs) if "die_in" not in job]
