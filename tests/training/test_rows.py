"""Rows in memory and rows in files come in the same order, whole, from any batch on; and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.training import memmap
from headrace.training import rows as training_rows
from headrace.training.memmap import ArrayFile, MappedRows, read_ahead
from headrace.training.rows import Rows, Split, cut, windows

ROWS = 1000


@pytest.fixture
def held() -> Split:
    rng = np.random.default_rng(0)
    numbers, codes = rng.normal(size=(ROWS, 3)).astype(np.float32), rng.integers(0, 5, (ROWS, 2))
    return Split((torch.from_numpy(numbers), torch.from_numpy(codes)), torch.arange(ROWS))


def in_files(split: Split, folder: Path) -> MappedRows:
    """The same rows, added to files in pieces."""
    arrays = []
    for tensor in (*split.inputs, split.target):
        file = ArrayFile(folder)
        for piece in np.array_split(tensor.numpy(), 7):
            file.append(piece)
        arrays.append(file.mapped())
    return MappedRows(arrays[:-1], arrays[-1], torch.device("cpu"))


def shuffled(rows: Rows, size: int, first: int = 0, seed: int = 3) -> list[torch.Tensor]:
    return [target for _, target in rows.batches(size, torch.Generator().manual_seed(seed), first)]


@pytest.mark.parametrize("window", [128, 320, 2**20])
@pytest.mark.parametrize("size", [1, 7, 64, 500, 1000, 3000])
def test_rows_in_files_come_as_those_in_memory(
    held: Split, tmp_path: Path, window: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_rows, "WINDOW_ROWS", window)
    filed = in_files(held, tmp_path)
    for shuffle in (None, 5):
        generators = [None if shuffle is None else torch.Generator().manual_seed(shuffle) for _ in range(2)]
        theirs, ours = (list(rows.batches(size, g)) for rows, g in zip((held, filed), generators, strict=True))
        assert len(ours) == len(theirs) == -(-ROWS // size)
        for (inputs, target), (wanted_inputs, wanted) in zip(ours, theirs, strict=True):
            assert torch.equal(target, wanted) and target.dtype == wanted.dtype
            assert all(map(torch.equal, inputs, wanted_inputs))


@pytest.mark.parametrize("window", [128, 2**20])
def test_an_epoch_goes_on_from_any_batch_as_if_it_had_never_stopped(
    held: Split, tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_rows, "WINDOW_ROWS", window)
    for rows in (held, in_files(held, tmp_path)):
        whole = shuffled(rows, 48)
        for first in (0, 1, 5, len(whole) - 1, len(whole)):
            rest = shuffled(rows, 48, first)
            assert len(rest) == len(whole) - first
            assert all(map(torch.equal, rest, whole[first:]))


def test_every_row_comes_once_and_every_batch_but_the_last_is_full(held: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows, "WINDOW_ROWS", 192)
    batches = shuffled(held, 48)
    assert [len(batch) for batch in batches] == [48] * 20 + [40]
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(ROWS))
    assert not torch.equal(torch.cat(batches), torch.cat(shuffled(held, 48, seed=4)))


def test_a_table_within_one_window_is_shuffled_as_a_whole(held: Split) -> None:
    wanted = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat(shuffled(held, 48)), wanted)


def test_a_batch_of_a_sorted_table_has_rows_from_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows, "WINDOW_ROWS", 6400)
    rows = 64_000
    table = Split((), torch.arange(rows))
    means = torch.tensor([batch.double().mean() for batch in shuffled(table, 256)])
    # of fully shuffled rows the means of batches would spread by rows/sqrt(12 * 256), about 1,155; in stored order by 18,475
    assert means.std() < 3 * rows / (12 * 256) ** 0.5


def test_windows_hold_as_many_rows_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(windows(1000, 128, torch.Generator().manual_seed(1)))
    assert max(window.rows for window in found) == 128
    assert sum(window.rows for window in found) == 1000
    assert training_rows.window_rows(10**9) == training_rows.BLOCKS
    assert training_rows.window_rows(4) == training_rows.WINDOW_ROWS


def test_pieces_of_any_lengths_are_cut_into_batches() -> None:
    pieces = [(torch.arange(a, b),) for a, b in ((0, 3), (3, 4), (4, 20), (20, 21))]
    for skip in (0, 2, 3, 4, 15, 21):
        batches = [batch for (batch,) in cut(iter(pieces), 5, skip)]
        assert torch.cat(batches).tolist() == list(range(skip, 21)) if batches else skip == 21
        assert all(len(batch) == 5 for batch in batches[:-1])


def test_the_thread_that_reads_ahead_ends_with_its_consumer(held: Split, tmp_path: Path) -> None:
    for leave_after in (1, None):
        batches = in_files(held, tmp_path).batches(10)
        for i, _ in enumerate(batches):
            if i == leave_after:
                break
        batches.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name == "headrace-read-ahead"]


def test_what_goes_wrong_while_reading_ahead_reaches_the_consumer() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    found = read_ahead(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_files_have_no_name_so_nothing_is_left_behind(held: Split, tmp_path: Path) -> None:
    filed = in_files(held, tmp_path)
    assert list(tmp_path.iterdir()) == [] and len(filed) == ROWS


def test_no_more_windows_are_read_than_one_that_waits_and_one_that_is_made(held: Split, tmp_path: Path) -> None:
    read = []
    found = read_ahead(read.append(i) or i for i in range(100))  # type: ignore[func-returns-value]
    assert next(found) == 0
    threading.Event().wait(5 * memmap.POLL_SECONDS)
    assert len(read) <= 3
    found.close()  # type: ignore[attr-defined]
