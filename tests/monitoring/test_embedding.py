"""What texts say and pictures show, in a few numbers: other topics of equal length and another style are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.monitoring.embedding import Embedding, learn_pictures, learn_text, picture_row, text_row
from headrace.monitoring.features import Values
from headrace.monitoring.profile import Profile, make_profile
from headrace.monitoring.sampled_rows import sampled_values
from headrace.monitoring.sequential import Alarm, AlarmSettings
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.thumbnail import from_text, thumbnail, to_text
from tests.monitoring.rows import contract, encoder

SERVED = AlarmSettings(tolerance=0.02, rows="correlated")
"""As `monitor` has it by default."""


def texts(rng: np.random.Generator, count: int, topic: int = 0) -> list[str]:
    """Texts of 24 words of five letters: half of the words are common to both topics, and most of the others are of one."""
    common = [f"the{i:02d}" for i in range(30)]
    of_topic = [f"ball{i % 10}" if i < 40 else f"luck{i % 10}" for i in range(80)]
    chances = np.repeat(np.array([0.1, 0.9] if topic else [0.9, 0.1]) / 40, 40)
    return [" ".join([*rng.choice(common, 12), *rng.choice(of_topic, 12, p=chances)]) for _ in range(count)]


def mixed(rng: np.random.Generator, count: int, share: float) -> list[str]:
    """Training: most texts are of topic 0, some of topic 1, so that topics are what rows differ in."""
    of_one = int(count * share)
    found = texts(rng, count - of_one) + texts(rng, of_one, topic=1)
    rng.shuffle(found)
    return found


def pictures(rng: np.random.Generator, count: int, grain: int) -> list[Any]:
    """Chessboards of fields of `grain` pixels, in one of two phases and with noise: the same brightness and contrast."""
    at = np.arange(32) // grain
    board = np.where((at[:, None] + at) % 2, 200.0, 50.0)
    phases = rng.integers(0, 2, count)
    noise = rng.normal(0, 12, (count, 32, 32, 3))
    return [
        np.clip(np.where(phase, 250 - board, board)[..., None] + one, 0, 255).astype(np.uint8)
        for phase, one in zip(phases, noise, strict=True)
    ]


def of_texts(**fields: Any) -> Contract:
    return contract(inputs=[InputField(name="notes", dtype="string")], sample={"notes": "a"}, **fields)


def of_pictures() -> Contract:
    return contract(inputs=[InputField(name="image", dtype="uint8", shape=(32, 32, 3))], sample={})


def sampled_texts(given: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"notes": given, "notes.characters": [len(text) for text in given]})


def sampled_pictures(given: list[Any]) -> pd.DataFrame:
    """As replicas keep them."""
    rows = [
        {"brightness": one.mean(), "contrast": one.std(), "width": 32, "height": 32, "thumbnail": to_text(thumbnail(one))}
        for one in given
    ]
    return pd.DataFrame([{f"image.{name}": value for name, value in row.items()} for row in rows])


def hours_until_alarm(
    profile: Profile, of: Contract, hour: Callable[[], pd.DataFrame], hours: int = 24
) -> tuple[int, list[str]]:
    """Returns the hour of the alarm, 0 for none, and its features."""
    alarm = Alarm(profile, SERVED)
    for number in range(1, hours + 1):
        rows = hour()
        values = sampled_values(rows, pd.DataFrame({"answer": [None] * len(rows)}), np.full(len(rows), np.nan), profile, of)
        if (raised := alarm.update(str(number), values).raised) is not None:
            return number, raised.features
    return 0, []


def test_another_mix_of_topics_with_texts_of_equal_length_is_found_and_the_same_mix_is_not() -> None:
    rng = np.random.default_rng(0)
    profile = make_profile(of_texts(), [pd.DataFrame({"notes": mixed(rng, 3_000, 0.2)})])
    assert [one.name for one in profile.features] == ["notes: length", *(f"notes: component {i}" for i in range(1, 5))]
    assert profile.feature("notes: length").atoms == [(143.0, 1.0)], "all have the same length"
    assert hours_until_alarm(profile, of_texts(), lambda: sampled_texts(mixed(rng, 50, 0.2))) == (0, [])
    hour, features = hours_until_alarm(profile, of_texts(), lambda: sampled_texts(mixed(rng, 50, 0.8)))
    assert 0 < hour <= 16 and features == ["notes: component 1"]


def test_another_style_of_pictures_is_found_and_the_same_style_is_not() -> None:
    rng = np.random.default_rng(0)
    profile = make_profile(of_pictures(), [pd.DataFrame({"image": pictures(rng, 2_000, 8)})])
    assert "image: reconstruction error" in {one.name for one in profile.features}
    assert hours_until_alarm(profile, of_pictures(), lambda: sampled_pictures(pictures(rng, 50, 8)), 12) == (0, [])
    hour, features = hours_until_alarm(profile, of_pictures(), lambda: sampled_pictures(pictures(rng, 50, 16)))
    assert 0 < hour <= 16 and not {"image: brightness", "image: contrast", "image: width"} & set(features)


def test_a_profile_with_embeddings_is_small_and_survives_json(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    profile = make_profile(of_texts(), [pd.DataFrame({"notes": mixed(rng, 500, 0.5)})])
    profile.write(tmp_path / "profile.json")
    read = Profile.read(tmp_path / "profile.json")
    assert read == profile and (tmp_path / "profile.json").stat().st_size < 60_000
    (before,), (after,) = profile.embeddings, read.embeddings
    rows = [text_row(text) for text in texts(rng, 3)]
    assert all(np.array_equal(before.values(rows)[name], values) for name, values in after.values(rows).items())


def test_samples_of_an_earlier_version_without_thumbnails_are_no_missing_pictures() -> None:
    rng = np.random.default_rng(0)
    profile = make_profile(of_pictures(), [pd.DataFrame({"image": pictures(rng, 500, 8)})])
    old = sampled_pictures(pictures(rng, 20, 8)).drop(columns="image.thumbnail")
    mixed_hour = pd.concat([old, sampled_pictures(pictures(rng, 5, 8))], ignore_index=True)

    def values(frame: pd.DataFrame) -> dict[str, Values]:
        return sampled_values(frame, pd.DataFrame(), np.full(len(frame), np.nan), profile, of_pictures())

    assert len(values(old)["image: component 1"]) == 0 and len(values(old)["image: brightness"]) == 20
    assert len(values(mixed_hour)["image: component 1"]) == 5


def test_unknown_tokens_are_profiled_on_rows_that_the_vocabulary_was_not_learned_from() -> None:
    train, test = pd.DataFrame({"notes": ["good film"] * 60}), pd.DataFrame({"notes": ["good film", "good dog"] * 10})
    profile = make_profile(of_texts(), [train], encoder=encoder(), held_out=[test])
    assert profile.feature("notes: unknown tokens").atoms == [(0.0, 0.5), (0.5, 0.5)]
    found = sampled_values(sampled_texts(["bad cat", "film"]), pd.DataFrame(), np.zeros(2), profile, of_texts(), encoder())
    assert found["notes: unknown tokens"].tolist() == [1.0, 0.0]
    assert "notes: unknown tokens" not in sampled_values(sampled_texts(["a"]), pd.DataFrame(), np.zeros(1), profile, of_texts())


def test_personal_fields_are_not_compared() -> None:
    frame = pd.DataFrame({"notes": mixed(np.random.default_rng(0), 500, 0.5)})
    profile = make_profile(of_texts(), [frame])  # of a version whose profile still has them
    assert sampled_values(pd.DataFrame(), pd.DataFrame(), np.zeros(0), profile, of_texts(personal=["notes"])) == {}


@pytest.mark.parametrize("text", [None, 5, "", "  \n"])
def test_a_missing_or_empty_text_has_no_place(text: Any) -> None:
    learned = learn_text("notes", [text_row(one) for one in texts(np.random.default_rng(0), 200)])
    assert learned is not None
    assert np.isnan(learned.values([text_row(text)])["notes: component 1"]).all()


def test_words_of_any_writing_are_read_and_broken_characters_are_no_error() -> None:
    def buckets(text: str) -> int:
        row = text_row(text)
        assert row is not None
        return len(row)

    assert buckets("Good film, good!") == 5 and buckets("東京は") == 3 and buckets("\ud800 x") == 2
    assert buckets("word " * 1_000) == 200, "the beginning that samples keep"


def test_too_few_rows_or_pictures_of_several_sizes_give_no_embedding() -> None:
    rng = np.random.default_rng(0)
    assert learn_text("notes", [text_row(text) for text in texts(rng, 99)]) is None
    boards = [picture_row(one) for one in pictures(rng, 120, 8)]
    assert isinstance(learn_pictures("image", boards), Embedding)
    assert learn_pictures("image", [*boards, np.zeros(3, np.uint8)]) is None
    assert make_profile(of_texts(), [pd.DataFrame({"notes": texts(rng, 20)})]).embeddings == []


def test_a_thumbnail_has_the_means_of_blocks() -> None:
    picture = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((4, 5), np.uint8))
    assert thumbnail(picture).tolist() == list(range(64))
    assert thumbnail(np.full((5, 3, 3), 7, np.uint8)).tolist() == [7] * 45
    assert from_text(to_text(thumbnail(picture))) is not None
    assert from_text("not base64!") is None and from_text(None) is None and from_text(3) is None
    assert picture_row(None) is None and picture_row("text") is None and picture_row(np.zeros((0, 4))) is None
    other = learn_pictures("image", [picture_row(one) for one in pictures(np.random.default_rng(0), 120, 8)])
    assert other is not None and np.isnan(other.values([thumbnail(picture)])["image: component 1"]).all()
