"""Where a search keeps what it knows, `.headrace/searches/NAME/`, and what makes two searches the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.console import Report
from headrace.errors import Busy
from headrace.files import read_cached_json, remove_partial_files, write_json, write_text
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.search import Space, objective_of
from headrace.release.lock import held_lock

PREPARED = ("schema.json", "train.parquet", "validation.parquet", "rows.json")
"""Files of the stage `prepare` that trials read. Test rows are not among them."""
LAST = "last.json"


@dataclass(frozen=True)
class Place:
    """The folder of one search."""

    root: Path

    @property
    def storage(self) -> Path:
        """Optuna's database with all trials."""
        return self.root / "study.db"

    @property
    def recipe(self) -> Path:
        """The recipe as it was when the search began."""
        return self.root / "recipe.yaml"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def truth(self) -> Path:
        """What the validation rows really are, `(rows,)`."""
        return self.root / "truth.npy"

    def answers(self, trial: int) -> Path:
        """A trial's answers for the validation rows, or what each row contributes to its loss; rows first."""
        return self.root / "trials" / f"{trial}.npy"

    def checkpoint(self, trial: int) -> Path:
        return self.root / "trials" / f"{trial}.pt"

    def log(self, worker: int) -> Path:
        """What a worker process has printed."""
        return self.root / f"worker-{worker}.log"


def most_epochs(recipe: Recipe) -> int:
    """Returns the largest number of epochs of a training, or of rounds of boosted trees."""
    return int(getattr(recipe.model, "rounds", recipe.train.epochs))


def searches(recipe: str, project: Project) -> Path:
    """The folder of all searches of a recipe."""
    return project.state / "searches" / recipe


def forget_rows(place: Place) -> None:
    """Removes the rows of a search that is over: they would keep the space of data that has been replaced."""
    shutil.rmtree(place.prepared, ignore_errors=True)


@contextmanager
def search_lock(recipe: str, project: Project) -> Iterator[None]:
    """Holds the right to search for `recipe`. The operating system frees it when the process that holds it is killed.

    Raises:
        Busy: another process does.
    """

    def busy(holder: dict[str, Any]) -> Busy:
        return Busy(
            f"process {holder.get('pid', '?')} searches for {recipe} since {holder.get('since', '?')}",
            hint="wait until it is done, or stop it; then the same command continues its search",
        )

    with held_lock(project.locks / f"search-{recipe}.lock", busy):
        yield


def open_place(recipe: Recipe, space: Space, project: Project, report: Report, *, restart: bool = False) -> Place:
    """Returns the folder of the search for this recipe, space and data: that of the same search before, or a new one.

    Args:
        restart: whether an earlier search is removed.
    """
    prepared, parent = project.artifacts(recipe.name) / "prepared", searches(recipe.name, project)
    parts = _parts(recipe, space, prepared)
    whole = _fingerprint(recipe, space, parts, prepared, project)
    place = Place(parent / whole[:12])
    if restart:
        shutil.rmtree(place.root, ignore_errors=True)
    elif not place.recipe.exists():
        _report_changes(read_cached_json(parent / LAST), parts, parent, report)
    remove_partial_files(parent)
    _link(prepared, place.prepared)
    if not place.recipe.exists():
        write_text(place.recipe, (project.recipes / f"{recipe.name}.yaml").read_text(encoding="utf-8"))
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    write_json(parent / LAST, {"folder": place.root.name, "began": began, "parts": parts})
    return place


def _report_changes(last: dict[str, Any] | None, parts: dict[str, str], parent: Path, report: Report) -> None:
    if not last or not (parent / last["folder"]).exists():
        return
    changed = [name for name, digest in parts.items() if last["parts"].get(name) != digest] or ["the code"]
    verb = "has" if len(changed) == 1 and not changed[0].startswith("the values") else "have"
    report(f"{' and '.join(changed)} {verb} changed since the search of {last['began']}: a new search begins")
    report(f"the earlier one is kept in {parent / last['folder']}")


def _parts(recipe: Recipe, space: Space, prepared: Path) -> dict[str, str]:
    """What a search depends on, by its name in messages."""
    rows = hashlib.sha256()
    for name in PREPARED[:3]:
        with (prepared / name).open("rb") as part:
            while block := part.read(2**20):
                rows.update(block)
    others = {
        section: {
            name: value for name, value in _flat(section, getattr(recipe, section).model_dump()) if not _is_in(space, name)
        }
        for section in ("model", "train")
    }
    return {
        "the data": rows.hexdigest(),
        "the space": _digest(sorted((name, repr(entry)) for name, entry in space.items())),
        "the metric": _digest(objective_of(recipe)),
        "the values of other fields": _digest(others),
    }


def _fingerprint(recipe: Recipe, space: Space, parts: dict[str, str], prepared: Path, project: Project) -> str:
    from headrace.training.results import fingerprint_of
    from headrace.training.start import start_digest

    # The values of searched fields are left out, so that the search stays the same when its winner is written to the recipe.
    held = recipe
    for section in ("model", "train"):
        fixed = {name.split(".")[1]: None for name in space if name.startswith(f"{section}.")}
        held = held.model_copy(update={section: getattr(held, section).model_copy(update=fixed)})
    start = start_digest(project, recipe.name) if recipe.train.start == "champion" else b""
    return _digest((fingerprint_of(held, prepared, project.root, start), parts))


def _is_in(space: Space, name: str) -> bool:
    return any(name == searched or name.startswith(f"{searched}.") for searched in space)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, child in value.items():
        yield from _flat(f"{prefix}.{name}", child)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _link(prepared: Path, to: Path) -> None:
    """Links the files: a later `prepare` replaces its own, and these stay. A copy where the disk has no links."""
    to.mkdir(parents=True, exist_ok=True)
    for name in PREPARED:
        beside = to / f".{name}.{os.getpid()}.part"
        beside.unlink(missing_ok=True)
        try:
            os.link(prepared / name, beside)
        except OSError:
            shutil.copyfile(prepared / name, beside)
        beside.replace(to / name)
