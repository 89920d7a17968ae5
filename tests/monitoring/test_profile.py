"""Reference profiles: what they contain, how large they are, and that parts give what the whole gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headrace.errors import DamagedFile, DataError, NewerFile
from headrace.monitoring.profile import Profile, ProfileBuilder, make_profile, summarise
from headrace.monitoring.sequential import digest_of
from tests.monitoring.rows import contract, outputs, profile, rows


def test_a_profile_has_each_field_and_the_answers() -> None:
    found = profile()
    assert [one.name for one in found.features] == ["distance", "hour", "carrier", "(answer)", "(confidence)"]
    distance, hour, carrier = found.features[:3]
    frame = rows(1, 2_000)
    assert distance.minimum == pytest.approx(frame["distance"].min()) and len(distance.bins) == 64
    assert hour.minimum == 0 and hour.maximum == 23
    assert len(hour.atoms) == 24 and hour.bins == []
    assert carrier.levels == ["AA", "BB", "CC"] and carrier.known == ["AA", "BB", "CC"]
    assert carrier.level_shares == pytest.approx([(frame["carrier"] == level).mean() for level in carrier.levels])


@pytest.mark.parametrize("name", ["distance", "hour", "carrier", "(answer)", "(confidence)"])
def test_shares_add_up_to_one(name: str) -> None:
    frame = rows(1, 3_000)
    frame.loc[:500, ["distance", "carrier"]] = None
    one = make_profile(contract(), [frame], [outputs(2, 3_000)]).feature(name)
    shares = [share for _, share in one.atoms]
    assert sum(shares) + sum(one.bins) + sum(one.level_shares) + one.other + one.missing == pytest.approx(1)


def test_parts_give_the_counts_of_the_whole_in_bounded_memory() -> None:
    frame = rows(1, 5_000)
    builder = ProfileBuilder(contract(), sample_rows=1_000)
    for start in range(0, 5_000, 70):
        builder.add(frame[start : start + 70])
    parts, whole = builder.finish(), make_profile(contract(), [frame])
    for name in ("distance", "hour", "carrier"):
        one, other = parts.feature(name), whole.feature(name)
        assert (one.rows, one.missing, one.minimum, one.maximum) == (other.rows, other.missing, other.minimum, other.maximum)
        assert one.level_shares == other.level_shares
    assert parts.feature("distance").ranks.rows == 1_000
    assert np.abs(np.array(parts.feature("distance").edges[::8]) - whole.feature("distance").edges[::8])[1:-1].max() < 0.25


def test_a_profile_of_many_fields_has_tens_of_kilobytes_and_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    found = profile(training_rows=20_000)
    found.write(path)
    assert Profile.read(path) == found
    assert path.stat().st_size / len(found.features) < 4_000
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    path.write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(NewerFile):
        Profile.read(path)
    path.write_text("[]")
    with pytest.raises(DamagedFile, match="not a profile"):
        Profile.read(path)
    with pytest.raises(DamagedFile, match="does not exist"):
        Profile.read(tmp_path / "none.json")


def test_frequent_numbers_are_atoms_and_the_others_are_in_bins() -> None:
    numbers = np.concatenate([np.zeros(600), np.arange(1, 401)])
    atoms, edges, bins = summarise(numbers, share=0.5)
    assert atoms == [(0.0, pytest.approx(0.3))]
    assert edges[0] == 1 and 400 < edges[-1] < 400.001
    assert sum(bins) == pytest.approx(0.2)


def test_rare_columns_do_not_break_a_profile() -> None:
    frame = pd.DataFrame({"distance": [np.nan] * 30, "hour": [7] * 30, "carrier": [None] * 30})
    found = make_profile(contract(), [frame])
    assert found.feature("distance").missing == 1 and found.feature("distance").minimum is None
    assert found.feature("hour").atoms == [(7.0, 1.0)]
    assert found.feature("carrier").levels == []
    one_row = make_profile(contract(), [rows(1, 1)])
    assert one_row.feature("distance").bins == [] and one_row.feature("distance").atoms


def test_infinite_numbers_are_no_limits() -> None:
    frame = rows(1, 100)
    frame.loc[0, "distance"] = np.inf
    found = make_profile(contract(), [frame]).feature("distance")
    assert found.maximum is not None and np.isfinite(found.maximum)
    json.loads(found.model_dump_json())


def test_many_categories_are_bounded() -> None:
    frame = rows(1, 3_000)
    frame["carrier"] = [f"level {i}" for i in range(3_000)]
    found = make_profile(contract(), [frame]).feature("carrier")
    assert len(found.levels) == 200 and found.other == pytest.approx(2_800 / 3_000)


def test_without_rows_there_is_no_profile_and_a_wrong_name_gets_the_near_miss() -> None:
    with pytest.raises(DataError, match="at least one row"):
        make_profile(contract(), [])
    with pytest.raises(DataError, match="did you mean 'distance'"):
        profile().feature("distanse")


def test_a_profile_of_a_version_of_headrace_without_embeddings_is_read_and_its_alarm_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    assert "embeddings" not in json.loads(path.read_text()), "what has none is written as before"
    assert digest_of(Profile.read(path)) == digest_of(profile())
