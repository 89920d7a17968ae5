"""From raw batches to splits and a schema: what the `prepare` stage does."""

from __future__ import annotations

from headrace.config import Recipe
from headrace.files import write_json, write_with
from headrace.kinds.registry import kind_of
from headrace.project import Project


def prepare(recipe: Recipe, project: Project) -> None:
    """Writes `prepared/{train,validation,test}.parquet`, `schema.json` and `rows.json`.

    Raises:
        DataError: a split is empty, a column holds nothing, or there is one class only.
    """
    from headrace.data.splits import split
    from headrace.data.tables import read_batches

    out = project.artifacts(recipe.name) / "prepared"
    splits = split(read_batches(project, recipe), recipe)
    schema = kind_of(recipe.task).learn(splits, recipe)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, frame in parts.items():
        write_with(out / f"{name}.parquet", lambda beside, frame=frame: frame.to_parquet(beside, index=False))  # type: ignore[misc]
    write_with(out / "schema.json", schema.write)
    write_json(out / "rows.json", {name: len(frame) for name, frame in parts.items()})
