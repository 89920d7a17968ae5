"""Compares generating several texts together with one after another: `python -m benchmarks.text`.

The peer is a plain loop: the same graph, session and sampling, one text at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.report import hardware, section, wrap
from bentos.models.onnx_model import open_session
from bentos.scheduling.streams import Streams
from headrace.runtime.generation import GenerationRequest, SamplingParams, TextGenerator

STREAMS = (1, 4, 16)
PROMPT = 32
"""Tokens of each prompt."""
ROUNDS = 15
"""The median round counts; the two modes take turns."""


@dataclass(frozen=True)
class Timing:
    """Timing of one mode."""

    seconds: float
    first: float
    """Longest wait of a text for its first token, in seconds."""
    gap: float
    """99th percentile of the seconds between two tokens of a text."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Measures, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens: a check of the code, not a result")
    parser.add_argument("--out", type=Path, help="file for the report (default: docs/benchmarks/text.md, or none with --quick)")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else Path("docs/benchmarks/text.md"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        language = export_language_model(Path(folder), quick=options.quick)
        tokens = 8 if options.quick else 200
        rows = [compare(language, streams, tokens, 1 if options.quick else ROUNDS) for streams in STREAMS]
    text = report(rows, tokens, (time.perf_counter() - started) / 60)
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")
    return text


def export_language_model(folder: Path, quick: bool) -> TextGenerator:
    """Exports a model as large as that of recipes/shakespeare-gpt.yaml that never ends a text.

    Its weights are random, because the time of a step does not depend on them.
    """
    import torch

    from headrace.models.language_export import export_step
    from headrace.models.schema import Schema, Shape
    from headrace.recipe.models import GPTConfig
    from headrace.runtime.tokenizer import END, Encoder
    from headrace.task_types.lookup import task_type_of
    from headrace.task_types.vocabulary import learn_vocabulary

    torch.manual_seed(0)
    learnt: Any = SimpleNamespace(column="text", tokens="pieces", vocabulary=1024, length=256, lowercase=False, replace={})
    tokenizer = learn_vocabulary([path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("*.md"))], learnt)
    shape = Shape(vocabulary=Encoder(tokenizer).vocabulary, length=32 if quick else 256)
    config = (
        GPTConfig(name="gpt", width=32, heads=2, layers=1) if quick else GPTConfig(name="gpt", width=152, heads=4, layers=4)
    )
    model = task_type_of("text-generation").module(config, Schema(shape=shape, tokenizer=tokenizer)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    with torch.no_grad():
        model.network.out.bias[END] = -1e9  # type: ignore[union-attr,operator]
    export_step(model, shape, folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return TextGenerator(folder, open_session(folder / "model.onnx", 1))


def compare(language: TextGenerator, streams: int, tokens: int, rounds: int) -> tuple[int, Timing, Timing]:
    """Times `streams` texts, one after another and together."""
    rng = np.random.default_rng(streams)
    vocabulary, most = language.encoder.vocabulary, min(PROMPT, language.layout.length)
    texts = [
        GenerationRequest(
            language,
            rng.integers(4, vocabulary, most).tolist(),
            SamplingParams(max_tokens=tokens, temperature=0.8, seed=i),
        )
        for i in range(streams)
    ]
    modes: tuple[Callable[[list[GenerationRequest]], Timing], ...] = (one_after_another, together)
    found: list[list[Timing]] = [[], []]
    for _ in range(rounds):
        for mode, measured in zip(modes, found, strict=True):
            measured.append(mode(texts))
    loop, joined = (sorted(measured, key=lambda one: one.seconds)[rounds // 2] for measured in found)
    return streams, loop, joined


def one_after_another(texts: list[GenerationRequest]) -> Timing:
    """Generates the texts in a plain loop."""
    start = time.perf_counter()
    seen = []
    for text in texts:
        seen.append([time.perf_counter() for _ in text.generator.generate(text.prompt, text.sampling)])
    return _measured(start, seen)


def together(texts: list[GenerationRequest]) -> Timing:
    """Generates the texts as a replica does, without HTTP."""
    seen: list[list[float]] = [[] for _ in texts]

    async def read(streams: Streams, index: int) -> None:
        async for _ in streams.events([texts[index]]):
            seen[index].append(time.perf_counter())

    async def all_of_them() -> None:
        await asyncio.gather(*(read(streams, index) for index in range(len(texts))))

    with ThreadPoolExecutor(1) as thread:
        streams = Streams(thread, record_usage=lambda *_, **__: None, observe_text=lambda *_: None)
        start = time.perf_counter()
        asyncio.run(all_of_them())
    return _measured(start, seen)


def _measured(start: float, seen: list[list[float]]) -> Timing:
    gaps = np.concatenate([np.diff(times) for times in seen])
    return Timing(max(map(max, seen)) - start, max(times[0] for times in seen) - start, float(np.quantile(gaps, 0.99)))


def report(rows: list[tuple[int, Timing, Timing]], tokens: int, minutes: float) -> str:
    import onnxruntime

    table = [
        (
            f"{streams}",
            f"{streams * tokens / loop.seconds:,.0f}",
            f"{streams * tokens / joined.seconds:,.0f}",
            f"{loop.seconds / joined.seconds:.2f}",
            f"{1000 * loop.first:,.0f}",
            f"{1000 * joined.first:,.0f}",
            f"{1000 * joined.gap:.1f}",
        )
        for streams, loop, joined in rows
    ]
    prose = f"""
    Each stream has a prompt of {PROMPT} tokens and generates {tokens} tokens at temperature 0.8. *Loop* generates one text
    after another; *together* is what a replica does, without HTTP. Both run the same graph on one thread of ONNX Runtime in one
    process, in turns; the table shows the median of {ROUNDS} rounds. *First* is the longest wait of a stream for its first
    token, *gap* the 99th percentile of the time between two tokens of a stream."""
    header = ("streams", "loop, tokens/s", "together, tokens/s", "ratio", "loop: first, ms", "together: first, ms", "gap, ms")
    machine = f"{hardware()}, onnxruntime {onnxruntime.__version__}"
    head = f"# Text generation\n\nWritten by `python -m benchmarks.text` in {minutes:.1f} minutes on {machine}."
    size = "Model: gpt, width 152, 4 heads, 4 layers, vocabulary 1,024, context length 256 (as recipes/shakespeare-gpt.yaml)."
    return f"{wrap(head)}\n\n{wrap(size)}\n\n{section('Tokens per second', prose, header, table)}\n"


if __name__ == "__main__":
    main()
