"""Trains recipes in full and writes their metrics into the README: `python -m benchmarks.recipes [NAME...]`.

Each recipe runs through its DVC stages, from ingest to the evaluation on the fixed test rows; a stage whose inputs are
unchanged is skipped, and `--force` trains again. The results are in docs/benchmarks/recipes.json, and the README's table is
generated from that file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import hardware, markdown
from headrace.files import read_json, write_json, write_text
from headrace.project import Project, find_project
from headrace.recipe.recipe import Recipe, load_recipe, recipe_names

BEGIN, END = "<!-- results of `make recipes` -->", "<!-- end of results -->"
STAGES = ("validate", "prepare", "train", "export", "evaluate")
Results = dict[str, dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.recipes", description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes (default: all)")
    parser.add_argument("--force", action="store_true", help="train again even if nothing changed")
    options = parser.parse_args(arguments)
    project = find_project()
    page = project.root / "docs" / "benchmarks" / "recipes.json"
    results: Results = read_json(page) or {}
    for name in options.names or recipe_names(project):
        results[name] = measure(load_recipe(name, project), project, options.force)
        write_json(page, {known: results[known] for known in sorted(results) if known in recipe_names(project)})
        write_readme(project)
        print(f"{name}: {results[name]['metrics']}", flush=True)
    return 0


def measure(recipe: Recipe, project: Project, force: bool) -> dict[str, Any]:
    """Trains one recipe by its stages and returns its results."""
    from headrace import console
    from headrace.data.ingest import ingest
    from headrace.importing.base import bring_base
    from headrace.pipeline.dvc import reproduce

    bring_base(recipe, project, console.report)
    ingest(recipe, project, console.report)
    if force:
        (project.artifacts(recipe.name) / "train" / "model.pt").unlink(missing_ok=True)
    for stage in STAGES:
        console.step(stage, recipe.name)
        reproduce(stage, recipe, project)
    return {**facts(recipe, project), "hardware": hardware()}


def facts(recipe: Recipe, project: Project) -> dict[str, Any]:
    """Returns the results from the files that the stages wrote."""
    artifacts = project.artifacts(recipe.name)
    summary = read_json(artifacts / "train" / "summary.json") or {}
    rows = read_json(artifacts / "prepared" / "rows.json") or {}
    return {
        "recipe_sha256": digest(recipe),
        "task": recipe.task,
        "model": recipe.model.name,
        "parameters": summary.get("parameters"),
        "epochs": summary.get("epochs"),
        "device": summary.get("device"),
        "test_rows": rows.get("test"),
        "required": dict(recipe.gate.require),
        "metrics": read_json(artifacts / "evaluation" / "metrics.json"),
    }


def digest(recipe: Recipe) -> str:
    """Returns a hash of the fields that affect a result: task, data, model and training.

    Fields with default values are left out, so that a new field does not make every result stale.
    """
    decides = recipe.model_dump(
        mode="json", include={"task", "data", "model", "train"}, serialize_as_any=True, exclude_defaults=True
    )
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def table(results: Results) -> str:
    """Returns the results as a Markdown table with one row per recipe."""
    rows = [
        (
            f"[`{name}`](recipes/{name}.yaml)",
            found["task"],
            f"{found['model']}, {found['parameters']:,}",
            "; ".join(f"{metric} **{found['metrics'][metric]:.4g}**" for metric in found["required"]),
            "; ".join(f"{metric} {bound}" for metric, bound in found["required"].items()),
            str(found["epochs"]),
        )
        for name, found in sorted(results.items())
    ]
    return markdown(("recipe", "task", "model, parameters", "reached on the test rows", "gate", "epochs"), rows)


def write_readme(project: Project) -> None:
    """Replaces the table between its marks in the README."""
    results: Results = read_json(project.root / "docs" / "benchmarks" / "recipes.json") or {}
    path = project.root / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(path, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def readme_table(path: Path) -> str:
    """Returns the text between the marks."""
    return path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    sys.exit(main())
