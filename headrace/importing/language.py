"""Builds what is served from a language model in GGUF: the file itself, and a contract. llama.cpp serves it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from headrace.files import write_json, write_with
from headrace.importing.errors import ImportRefused
from headrace.importing.wanted import Built, Wanted
from headrace.recipe.models import ImportedConfig
from headrace.runtime.contract import Contract
from headrace.runtime.generation import generation_inputs
from headrace.runtime.gguf_file import InvalidGGUF, read_gguf
from headrace.tracking.artifact import CONTRACT, IMPORT_FACTS, LANGUAGE_MODEL

TASK = "text-generation"
OTHERS = ("labels", "inputs", "shapes", "output", "activation", "targets")
"""Fields of other imported models."""
SERVED_BY = "bentos.models.language_model:LanguageModel"
SAMPLE = {"prompt": "Hello", "max_tokens": 4, "temperature": 0.0}
"""With it a new replica is tested: short, since a large model takes long for each token."""


def build_language(source: Path, shown: str, wanted: Wanted, out: Path) -> Built:
    """Writes `model.gguf`, `contract.json` and `import.json` to the folder `out`, once llama.cpp has answered a sample.

    Args:
        source: the model's file.
        shown: its address, for errors.

    Raises:
        ImportRefused: the file is damaged, of another task, too large for this machine, or llama.cpp cannot load it.
    """
    _check_recipe(wanted, shown)
    try:
        found = read_gguf(source)
    except InvalidGGUF as error:
        raise ImportRefused(
            f"{shown} is not a complete GGUF file: {error}", where="model.source", hint="copy or download the file again"
        ) from None
    contract = language_contract(wanted.name, wanted.context or found.context, wanted.threads, wanted.context, wanted.parallel)
    if wanted.config.sample is not None:
        contract = contract.model_copy(update={"sample": wanted.config.sample})
    out.mkdir(parents=True, exist_ok=True)
    write_with(out / LANGUAGE_MODEL, lambda beside: link_or_copy(source, beside))
    write_with(out / CONTRACT, contract.write)
    facts = {
        "format": "GGUF",
        "bytes": found.size_bytes,
        "task": TASK,
        "architecture": found.architecture,
        "context": found.context,
        "chats": found.chat_template is not None,
        "licence": found.licence,
        "memory": _answer_sample(out, shown),
    }
    write_json(out / IMPORT_FACTS, facts)
    return Built(contract, facts)


def language_contract(
    name: str, length: int, threads: int = 1, context: int | None = None, parallel: int | None = None
) -> Contract:
    """Returns the contract of the model `name`.

    Args:
        length: tokens of a prompt and its answer together.
        context: `serve.context` of the recipe.
        parallel: `serve.parallel` of the recipe.
    """
    return Contract(
        model=name,
        task=TASK,
        inputs=generation_inputs(length),
        output="text",
        target="text",
        sample=dict(SAMPLE),
        served_by=SERVED_BY,
        threads=threads,
        context=context,
        parallel=parallel,
    )


def link_or_copy(source: Path, to: Path) -> None:
    """Makes the same file under another name, which takes no space, or copies it to another disk."""
    try:
        os.link(source.resolve(), to)
    except OSError:
        shutil.copyfile(source, to)


def _check_recipe(wanted: Wanted, shown: str) -> None:
    if wanted.task not in (None, TASK):
        raise ImportRefused(
            f"{shown} is a language model, and the task is {wanted.task}",
            where="task",
            hint=f"write `task: {TASK}`",
        )
    default = ImportedConfig(source=wanted.config.source)
    for name in OTHERS:
        if getattr(wanted.config, name) != getattr(default, name):
            raise ImportRefused(f"{name} does not apply to a language model", where=f"model.{name}", hint="remove it")


def _answer_sample(out: Path, shown: str) -> int:
    """Starts llama.cpp as a replica does, and returns the bytes of memory that it needs.

    Raises:
        ImportRefused: it is not installed, the memory is too small, or it cannot load the model.
    """
    from bentos.models.language_model import LanguageModel
    from bentos.models.served_model import NotServable

    try:
        model = LanguageModel(out)
    except NotServable as error:
        (out / LANGUAGE_MODEL).unlink(missing_ok=True)
        raise ImportRefused(
            f"{shown}: {error}",
            where="model.source",
            hint="correct what it says; https://github.com/ggml-org/llama.cpp lists the models that llama.cpp knows",
        ) from None
    try:
        return model.runtime.needed_bytes
    finally:
        model.close()
