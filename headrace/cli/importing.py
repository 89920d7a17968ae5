"""The command that brings a model that others trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.run import run
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.importing.wanted import Built
    from headrace.project import Project

TASKS = ("classification", "regression", "multilabel-classification", "text-generation")
LABELS_HELP = "Names of the classes in the order of the output, or a file with one a line."


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        [
            click.option("--task", type=click.Choice(TASKS), help="What it predicts, where the model does not say it."),
            click.option("--labels", metavar="A,B,…", help=LABELS_HELP),
            click.option("--targets", metavar="A,B,…", help="Names of the values of a regression."),
            click.option("--inputs", metavar="A,B,…", help="Names of the columns of its only input."),
            click.option("--shapes", multiple=True, metavar="INPUT=SIZES", help="Shape of a row, for example image=3,224,224."),
            click.option("--output", metavar="NAME", help="The output to serve."),
            click.option(
                "--activation", type=click.Choice(["none", "softmax", "sigmoid"]), help="What makes its output probabilities."
            ),
            click.option("--sample", metavar="JSON", help="A valid instance; by default one of zeros."),
            click.option("--licence", metavar="NAME", help="Its licence, where the source does not say it."),
            click.option("--sha256", metavar="HEX", help="sha256 that the model has to have."),
            click.option("--replicas", type=click.IntRange(1, 64), help="Number of replicas; by default 1."),
            click.option("--no-release", is_flag=True, help="Check it and write the recipe; do not release it."),
            json_option,
        ]
    ):
        command = option(command)
    return command


@click.command("import", short_help="Release a model that others trained.")
@click.argument("name")
@click.argument("source")
@_options
@click.pass_context
def import_model(context: click.Context, /, name: str, source: str, no_release: bool, as_json: bool, **options: Any) -> None:
    """Release the model at SOURCE as NAME: an ONNX file, a model of scikit-learn (skops), XGBoost or LightGBM, or a language
    model for llama.cpp (GGUF).

    SOURCE is a path, https://, s3://, pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, hf://ORG/REPOSITORY/FILE or
    mlflow:models:/NAME/VERSION. The model is fetched and checked, recipes/NAME.yaml is written with its sha256, and the recipe
    is released as any other. Where it exists and is of an import, its source is replaced: that releases a new version.
    """
    project = load_project()
    from headrace.importing.errors import ImportIncomplete

    given = {key: value for key, value in options.items() if value not in (None, ())}
    try:
        path, built = _write(name, source, given, project)
    except ImportIncomplete as error:
        command = _completed(name, source, given, error.options, no_release)
        raise ImportIncomplete(error.message, where=error.where, hint=command, options=error.options) from None
    _show(path, built, project, no_release, as_json)
    if not no_release:
        context.invoke(run, recipe=name, runner=None, force=False, as_json=as_json)


def _write(name: str, source: str, given: dict[str, Any], project: Project) -> tuple[Path, Built]:
    """Fetches and checks the model, and writes the recipe; nothing is left of a model that is refused."""
    from headrace import console
    from headrace.pipeline.import_recipe import import_recipe
    from headrace.release.lock import release_lock

    where = _from_project(source, project)
    console.step("import", where)
    task, replicas = given.get("task"), given.get("replicas")
    with release_lock(name, project):
        return import_recipe(name, where, _fields(given), task, replicas, project, console.report)


def _from_project(source: str, project: Project) -> str:
    """A path of the working folder as the recipe has it: relative to the project where it is inside, else absolute."""
    path = Path(source).expanduser()
    if "://" in source or source.startswith("mlflow:") or not path.exists():
        return source
    found, root = path.resolve(), project.root.resolve()
    return found.relative_to(root).as_posix() if found.is_relative_to(root) else str(found)


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """The options as fields of the section `model`."""
    fields: dict[str, Any] = {key: given[key] for key in ("output", "activation", "licence", "sha256") if key in given}
    fields |= {key: _names(given[key]) for key in ("targets", "inputs") if key in given}
    if "labels" in given:
        path = Path(given["labels"]).expanduser()
        is_file = "," not in given["labels"] and path.is_file()
        fields["labels"] = _lines(path) if is_file else _names(given["labels"])
    if "shapes" in given:
        fields["shapes"] = dict(_shape(text) for text in given["shapes"])
    if "sample" in given:
        try:
            fields["sample"] = json.loads(given["sample"])
        except ValueError as error:
            raise UsageError(f"--sample is not JSON: {error}", hint="write for example --sample '{\"length\": 1.5}'") from None
    return fields


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UsageError(f"--labels {path} is not a text in UTF-8", hint="give a file with one label a line") from None


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    try:
        return name, [int(size) for size in sizes.split(",")]
    except ValueError:
        raise UsageError(
            f"--shapes {text}: expected whole numbers", hint="write for example --shapes image=3,224,224"
        ) from None


def _completed(name: str, source: str, given: dict[str, Any], missing: dict[str, str], no_release: bool) -> str:
    """The command with the options that are missing."""
    words = ["headrace", "import", name, source]
    for key, value in given.items():
        if key in missing and key != "shapes":  # one that was given does not fit; shapes are given once for each input
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{key}", str(one)]
    for key, value in missing.items():
        words += [f"--{key}", value]
    return shlex.join([*words, *(["--no-release"] if no_release else [])])


def _show(path: Path, built: Built, project: Project, no_release: bool, as_json: bool) -> None:
    """Prints the recipe, and what is known of the model unless the release prints it too."""
    from headrace import console
    from headrace.importing.build import facts_shown

    recipe = path.relative_to(project.root).as_posix()
    if as_json and no_release:
        inputs = [field.model_dump(include={"name", "dtype", "shape"}) for field in built.contract.inputs]
        print_json({"recipe": recipe, **built.facts, "inputs": inputs, "labels": built.contract.labels})
        return
    for line in facts_shown(built.facts) if no_release else ():
        console.report(line)
    console.report(f"wrote {recipe}: {built.contract.task}, {_interface(built)}")


def _interface(built: Built) -> str:
    fields = [f"{one.name} ({one.dtype}{list(one.shape) if one.shape else ''})" for one in built.contract.inputs]
    shown = ", ".join(fields[:6]) + (f" and {len(fields) - 6} more" if len(fields) > 6 else "")
    contract = built.contract
    names = contract.labels or contract.targets or [contract.target]
    if contract.output == "text":
        return "chats and completions of OpenAI's API, and prompt → text"
    answers = ", ".join(map(str, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"{shown} → {answers}"
