"""Texts that one graph writes together are those that it writes alone, whoever joins and leaves meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

from bentos.models.generation import GenerationModel
from bentos.models.onnx_model import load
from bentos.scheduling import continuous, streams
from bentos.scheduling.continuous import ActiveText, ContinuousBatching
from headrace.models.causal import GPT
from headrace.models.language import LanguageNetwork
from headrace.runtime import generation
from headrace.runtime import text_batch as batch_module
from headrace.runtime.generation import GenerationRequest, SamplingParams, StepLayout, StepRunner
from headrace.runtime.text_batch import TextBatch
from headrace.runtime.tokenizer import END
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_model
from tests.exhaustive import exhaustive
from tests.task_types.verses import recipe_of, rhymes

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH = 8


class WithoutMask(LanguageNetwork):
    """A gpt as it was before its graph could leave anything out."""

    states, growing = GPT.states, GPT.growing

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def start(self, rows: int) -> tuple[Tensor, ...]:
        return self.gpt.start(rows)

    def step(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return self.gpt.step(tokens, *states)


@pytest.fixture(scope="module", params=["gpt", exhaustive("gpt of an older release"), "recurrent-language"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GenerationModel:
    """Random weights, so that every token matters; the older gpt's graph cannot leave anything out."""
    folder = tmp_path_factory.mktemp("model")
    recipe, frame = recipe_of(model=request.param.split()[0], length=LENGTH), rhymes(6)
    schema = fitted(frame, recipe)
    network = make_model(recipe, schema)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.4)
    kind = task_type_of(recipe.task)
    contract = kind.contract(schema, recipe, frame)
    if "older" in request.param:
        network.network = WithoutMask(network.network)
    kind.export(network, schema, recipe, contract, frame, folder)
    (folder / "tokenizer.json").write_text(schema.tokenizer or "")
    contract.write(folder / "contract.json")
    layout = json.loads((folder / "served_steps.json").read_text())
    if "older" in request.param:  # it never heard of the field
        assert not layout.pop("masked")
        (folder / "served_steps.json").write_text(json.dumps(layout))
    found = load(folder)
    assert isinstance(found, GenerationModel)
    return found


@pytest.mark.parametrize("growth", [0, 2, 32])
def test_batched_logits_equal_those_of_each_text_alone(
    model: GenerationModel, growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts come and go for longer than the model's context, so that the oldest tokens are forgotten on the way."""
    monkeypatch.setattr(batch_module, "GROWTH", growth)
    language, rng = model.generator, np.random.default_rng(0)
    batch = TextBatch(language.session, language.layout)
    vocabulary = language.encoder.vocabulary
    alone: dict[int, StepRunner] = {}
    for turn in range(3 * LENGTH):
        if turn % 3 == 0:
            prompt = rng.integers(4, vocabulary, 1 + turn % LENGTH).tolist()
            name, logits = batch.read(prompt)
            alone[name] = language.steps()
            assert logits == pytest.approx(alone[name](np.array([prompt]))[0, -1], abs=1e-4)
        if turn % 5 == 4:
            alone.pop(int(rng.choice(list(alone))))
        tokens = {name: int(rng.integers(4, vocabulary)) for name in alone}
        found = batch.step(tokens)
        assert found.keys() == tokens.keys()
        for name, logits in found.items():
            assert logits == pytest.approx(alone[name](np.array([[tokens[name]]]))[0, 0], abs=1e-4)
    assert len(alone) > 3


def test_logits_are_not_overwritten_by_the_next_step(model: GenerationModel) -> None:
    batch = TextBatch(model.generator.session, model.generator.layout)
    name, _ = batch.read([5])
    found = batch.step({name: 6})[name]
    before = found.tolist()
    batch.step({name: 7})
    assert found.tolist() == before


def test_rows_run_together_if_the_graph_allows(model: GenerationModel) -> None:
    language = model.generator
    runs: list[int] = []
    batch = TextBatch(Watched(language.session, lambda rows, _: runs.append(rows)), language.layout)
    names = [batch.read([5] * length)[0] for length in (1, 2, 3)]
    before = len(runs)
    for _ in range(LENGTH + 2):
        batch.step(dict.fromkeys(names, 6))
    grows_alone = not language.layout.masked and language.layout.states[0].grows is not None
    assert runs[before] == (1 if grows_alone else 3)
    assert runs[-1] == 3, "once all are as long as the context they run together in any graph"


class Watched:
    """A session that calls `before` with the rows and length of the tokens of each run."""

    def __init__(self, session: Any, before: Callable[[int, int], None]) -> None:
        self._session = session
        self._before = before

    def run(self, names: list[str] | None, feeds: dict[str, NDArray[Any]]) -> list[Any]:
        self._before(*feeds["tokens"].shape)
        found: list[Any] = self._session.run(names, feeds)
        return found

    def run_with_iobinding(self, binding: Any) -> None:
        rows, length, _ = binding.get_outputs()[0].shape()  # of the logits
        self._before(rows, length)
        self._session.run_with_iobinding(binding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def written(language: Any, asked: list[tuple[str, SamplingParams]]) -> list[str]:
    """Each alone, one after another."""
    return ["".join(piece.text for piece in language.generate(language.prompt(prompt), writing)) for prompt, writing in asked]


def write_together(language: Any, asked: list[tuple[str, SamplingParams]], apart: float = 0.0) -> list[str]:
    """All at once, or each `apart` seconds after the one before."""

    async def one(streams: streams.Streams, number: int, prompt: str, writing: SamplingParams) -> str:
        await asyncio.sleep(number * apart)
        text = GenerationRequest(language, language.prompt(prompt), writing)
        return "".join([event["text"] async for _, event in streams.events([text])])

    async def all_of_them() -> list[str]:
        with ThreadPoolExecutor(1) as thread:
            room = streams.Streams(thread, lambda *_, **__: None, lambda *_: None)
            return await asyncio.gather(*(one(room, i, *asked[i]) for i in range(len(asked))))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
def test_a_text_is_the_same_alone_and_in_a_batch(model: GenerationModel, temperature: float) -> None:
    """More texts than there is room for, of all lengths; the seed decides, not the company."""
    asked = [
        ("the mill"[: 1 + i % 8], SamplingParams(max_tokens=5 + 3 * i % 40, temperature=temperature, seed=i))
        for i in range(continuous.MAX_BATCH_TEXTS + 6)
    ]
    alone = written(model.generator, asked)
    assert write_together(model.generator, asked) == alone
    assert write_together(model.generator, asked, apart=0.002) == alone
    assert temperature == 0 or len(set(alone)) > len(alone) // 2


def test_a_step_serves_all_texts_and_prompts_are_read_between_steps(
    model: GenerationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "PROMPT_TOKENS", 8)
    runs: list[tuple[int, int]] = []

    def note(rows: int, length: int) -> None:
        runs.append((rows, length))
        time.sleep(0.001)  # or the first text ends before the others are asked for

    monkeypatch.setattr(model.generator, "session", Watched(model.generator.session, note))
    asked = [("the mill"[:4], SamplingParams(max_tokens=30, temperature=0, stop="\0")) for _ in range(6)]
    write_together(model.generator, asked)
    if model.generator.layout.masked:
        read = [i for i, shape in enumerate(runs) if shape == (1, 4)]
        assert len(read) == 6 and all(shape[1] in (1, 4) for shape in runs)
        three = [read[i + 2] - read[i] for i in range(4)]
        assert min(three) > 2, "two prompts of four tokens at most, then a step of the others"
        assert (6, 1) in runs and len(runs) < 6 + 60


class Jobs(ThreadPoolExecutor):
    """One thread that counts its jobs."""

    def __init__(self) -> None:
        super().__init__(1)
        self.count = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return super().submit(*args, **kwargs)


@pytest.mark.parametrize(("turn_seconds", "wanted"), [(0.0, 20), (60.0, 2)])
def test_steps_share_a_job_until_its_time_is_used(
    model: GenerationModel, turn_seconds: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that read a prompt takes one step: it has a first token to tell."""
    monkeypatch.setattr(continuous, "TURN_SECONDS", turn_seconds)
    monkeypatch.setattr(generation, "NEVER_SAMPLED", [*generation.NEVER_SAMPLED, END])
    text = GenerationRequest(model.generator, [5], SamplingParams(max_tokens=21))

    async def write() -> int:
        with Jobs() as thread:
            room = streams.Streams(thread, lambda *_, **__: None, lambda *_: None)
            assert len([event async for event in room.events([text])]) == 21
        return thread.count

    assert asyncio.run(write()) == wanted


def test_a_new_text_waits_for_one_step_only(model: GenerationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has a first token long before the other text ends."""
    monkeypatch.setattr(continuous, "TURN_SECONDS", 60.0)
    monkeypatch.setattr(generation, "NEVER_SAMPLED", [*generation.NEVER_SAMPLED, END])
    steps = [0]

    def pace(rows: int, length: int) -> None:
        steps[0] += 1
        time.sleep(0.005)

    monkeypatch.setattr(model.generator, "session", Watched(model.generator.session, pace))

    async def come() -> tuple[int, int]:
        with ThreadPoolExecutor(1) as thread:
            room = streams.Streams(thread, lambda *_, **__: None, lambda *_: None)
            first, second = (
                room.events([GenerationRequest(model.generator, [5], SamplingParams(max_tokens=80))]) for _ in range(2)
            )
            await anext(first)
            before = steps[0]
            await asyncio.sleep(0.05)  # amid the next turn, which nothing else would end
            came = steps[0]
            await anext(second)
            joined = steps[0] - came
            await first.aclose()
            await second.aclose()
            return before, joined

    before, joined = asyncio.run(come())
    assert before < 10 and joined < 10


def test_an_abandoned_text_is_dropped_and_the_others_continue(model: GenerationModel) -> None:
    async def leave() -> tuple[int, str]:
        with ThreadPoolExecutor(1) as thread:
            room = streams.Streams(thread, lambda *_, **__: None, lambda *_: None)
            endless = GenerationRequest(model.generator, [5], SamplingParams(max_tokens=10_000, temperature=5, seed=3))
            events = room.events([endless])
            for _ in range(3):
                await anext(events)
            other = GenerationRequest(model.generator, [5], SamplingParams(max_tokens=20, temperature=0))
            await events.aclose()
            text = "".join([event["text"] async for _, event in room.events([other])])
            assert room._batching is not None
            while room._batching._is_running:
                await asyncio.sleep(0)
            return len(room._batching._active), text

    left, text = asyncio.run(leave())
    assert left == 0
    assert (
        text
        == written(model.generator, [(model.generator.encoder.decode([5]), SamplingParams(max_tokens=20, temperature=0))])[0]
    )


def test_a_step_that_fails_fails_its_texts_and_no_later_ones(model: GenerationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    is_broken = [True]
    hot = [SamplingParams(max_tokens=3, temperature=5, seed=seed) for seed in range(20)]
    writing = next(one for one in hot if len(list(model.generator.generate([5, 6], one))) == 3)

    def break_down(rows: int, length: int) -> None:
        if is_broken[0] and length == 1:
            raise RuntimeError("no memory")

    monkeypatch.setattr(model.generator, "session", Watched(model.generator.session, break_down))

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batch, found = ContinuousBatching(model.generator, thread), asyncio.Queue[Any]()
            put: Callable[[Any], None] = found.put_nowait
            for _ in range(2):
                batch.add(ActiveText(GenerationRequest(model.generator, [5, 6], writing), put))
            events = [await found.get() for _ in range(4)]
            is_broken[0] = False
            batch.add(ActiveText(GenerationRequest(model.generator, [5, 6], writing), put))
            return [*events, *[await found.get() for _ in range(3)]]

    events = asyncio.run(asyncio.wait_for(ask(), 30))
    assert [isinstance(event, RuntimeError) for event in events[:4]].count(True) == 2
    assert [event.get("finish_reason") for event in events[4:]][:2] == [None, None] and events[-1]["finish_reason"]


def test_an_older_model_layout_is_read_as_one_without_a_mask() -> None:
    assert not StepLayout.model_validate_json('{"length": 4, "states": []}').masked


def test_among_waiting_texts_the_tenant_with_the_fewest_is_next(model: GenerationModel) -> None:
    asked = GenerationRequest(model.generator, [5, 6], SamplingParams())

    async def order() -> list[str]:
        with ThreadPoolExecutor(1) as thread:
            batch = ContinuousBatching(model.generator, thread)
            batch._waiting.extend(ActiveText(asked, lambda _: None, tenant) for tenant in "aaaabbc")
            batch._active = {number: ActiveText(asked, lambda _: None, "a") for number in range(2)}
            found = []
            while batch._waiting:
                text = batch._next_waiting()
                batch._active[len(batch._active)] = text
                found.append(text.tenant)
            return found

    assert asyncio.run(order()) == list("bcbaaaa")
