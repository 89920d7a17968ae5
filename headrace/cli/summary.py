"""Terminal output of releases and of the commands `status`, `history`, `trace` and `reproduce`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from headrace import console
from headrace.files import read_cached_json
from headrace.project import Project
from headrace.release.journal import Entry
from headrace.serving.access.tls import authority
from headrace.serving.gateway.gateway import address
from headrace.settings import runs_as

if TYPE_CHECKING:
    from headrace.release.reproduce import Reproduction


def print_summary(facts: dict[str, Any], project: Project, unchanged: bool = False) -> None:
    """Prints a release with its evidence and addresses, and a `curl` command that calls the model."""
    out, model, version = console.out(), facts["model"], facts["version"]
    out.print()
    if unchanged:
        out.print(f"[bold green]unchanged[/bold green] since the release of {facts['at']}; {model}@{version} serves")
    else:
        out.print(f"[bold green]released[/bold green] [bold]{model}@{version}[/bold] serves behind the gateway")
    for name, value in _rows(facts, project):
        out.print(f"  [cyan]{name:<12}[/cyan] {escape(value)}")
    out.print()
    out.print(escape(curl(model, project)), soft_wrap=True)


def curl(model: str, project: Project) -> str:
    """Returns a command for bash or zsh that gets the sample of the contract and sends it to the model.

    The token is in no argument, which every user of the machine could read: `<(...)` passes the path of a pipe.
    """
    base = f"{address(project.settings)}/v1/models/{model}"
    # In a list: a bare instance with a field called `instances` would be taken for one.
    sample = "import json,sys; print(json.dumps({'instances': [json.load(sys.stdin)['contract']['sample']]}))"
    call = "curl -s"
    if project.settings.tls == "self_signed":
        call += f" --cacert {shlex.quote(str(authority(project)))}"
    if project.settings.access == "tokens":
        call += f' -H @<(echo "authorization: Bearer $({console.command_name()} tokens show)")'
    return f"{call} {base} | python3 -c \"{sample}\" | {call} {base}/predict -H 'content-type: application/json' -d @-"


def _rows(facts: dict[str, Any], project: Project) -> list[tuple[str, str]]:
    verdict = facts["verdict"]
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in facts["metrics"].items() if value is not None)
    if facts.get("test_rows"):  # releases of earlier versions of Headrace have none
        metrics += f"  on {facts['test_rows']:,} rows"
    rows = [
        *(_origin_rows(facts["imported"]) if facts.get("imported") else _training_rows(facts)),
        ("test", metrics),
        *(("gate" if i == 0 else "", reason) for i, reason in enumerate(verdict["reasons"])),
        ("approved", f"{who(facts['approval'])}, {facts['approval']['at']}" if facts.get("approval") else ""),
        ("version", f"{facts['model']}@{facts['version']}  run {facts['run_id']}"),
        ("uncommitted", f"{facts['uncommitted']}; the version keeps a copy" if facts.get("uncommitted") else ""),
        ("bento", facts["bento"]),
        ("image", f"{facts['image']}  {facts['image_bytes'] / 1e6:.0f} MB" if facts.get("image") else ""),
        ("replicas", f"{facts['replicas']} as {runs_as(facts['runner'])}"),
        ("service", f"{address(project.settings, facts['model'])}/predict"),
        ("MLflow", project.settings.mlflow_address),
        ("Prefect", project.settings.prefect_address),
        ("Data Docs", "" if facts.get("imported") else data_docs(facts["model"], project)),
    ]
    return [row for row in rows if row[1]]


def _training_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    training = facts["training"]
    unit = training.get("unit", "epoch") + ("" if training["epochs"] == 1 else "s")
    return [
        ("data", f"{facts['data_md5']}  {int(facts['data_rows']):,} rows"),
        ("expectations", f"{facts['validation'].removesuffix(' expectations')} passed"),
        (
            "training",
            f"{training['epochs']} {unit} on {training['device']}, best {training['best_epoch']}; "
            f"{training['parameters']:,} parameters{_trained(training)}",
        ),
    ]


def _trained(training: dict[str, Any]) -> str:
    """How many of the parameters were trained, where some belong to an encoder that stays as it was."""
    trained = training.get("trainable_parameters", training["parameters"])
    return f", {trained:,} of them trained" if trained < training["parameters"] else ""


def _origin_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Where an imported model comes from."""
    revision = f" at {found['revision']}" if found.get("revision") else ""
    return [
        ("imported", f"{found['source']}{revision}"),
        ("sha256", found["sha256"]),
        ("licence", found.get("licence") or "not known"),
        ("format", f"{found.get('library') or found['format']}, {found['bytes'] / 1e6:,.1f} MB"),
    ]


def _commit(facts: dict[str, Any]) -> str:
    """The commit in short, and what of the recipe and the code was not committed."""
    commit, dirty, _ = str(facts.get("git_commit")).partition("-dirty")
    if not dirty:
        return commit[:12]
    return f"{commit[:12]} and uncommitted {facts.get('uncommitted', 'code or recipes')}"


def data_docs(recipe: str, project: Project) -> str:
    """Returns the address of the Data Docs page of the last validation, which unlike the index needs no network."""
    found = read_cached_json(project.validation_report(recipe)) or {}
    return Path(found.get("docs") or project.data_docs / "index.html").as_uri()


def print_status(found: dict[str, Any]) -> None:
    """Prints a table of services and one of models, and what does not work, each with the command that resolves it."""
    print_table(("service", "state", "address"), [(s["name"], s["state"], s["address"]) for s in found["services"]])
    console.out().print()
    if found["models"]:
        columns = ("model", "version", "alias", "replicas", "ready", "address")
        rows = [(m["name"], m["version"], m["alias"], m["replicas"], m["ready"], m["address"]) for m in found["models"]]
        print_table(columns, rows)
        for model in found["models"]:
            if model["deleted_in_mlflow"]:
                print_deleted(f"{model['name']}@{model['version']}", model["deleted_in_mlflow"])
            if champion := model["champion_in_mlflow"]:
                print_misplaced(model["name"], champion)
            for pool in ("canary", "shadow"):
                if trial := model[pool]:
                    share = f"{trial['percent']:g} % of the requests" + (" copied" if pool == "shadow" else "")
                    console.out().print(f"{model['name']}@{trial['version']} runs as a {pool}: {share}")
            if model["predecessor"] not in (None, model["version"]):
                again = f"{model['name']}@{model['predecessor']} is restored unless the release completes"
                console.out().print(f"{model['name']}@{model['version']} is not released yet: {again}")
    else:
        console.out().print("no model is served; release one: headrace run digits")
    for one in found["candidates"]:
        console.out().print(f"{one['model']}@{one['version']} {_state(one)}: {escape(_next(one))}")
    for one in (*found["services"], *found["models"]):
        if one["problem"]:
            console.out().print(f"{one['name']}: {escape(one['problem'])}\n  hint: {escape(one['hint'])}")
    from headrace.services.events.overview import problems

    # Prefect's server is among the services: while it starts, its events wait.
    for line in problems([one for one in found["receivers"] if one["kind"] != "prefect"]):
        console.out().print(f"{escape(line)}\n  hint: headrace webhooks list")


def print_deleted(name: str, what: str) -> None:
    """Prints that a version in production was deleted from MLflow, or its run was, and what still works."""
    gone = f"{name} was deleted from MLflow" if what == "version" else f"the run of {name} was deleted from MLflow"
    model = name.partition("@")[0]
    console.out().print(
        f"{gone}; it keeps serving from its bento, the gate compares with that, and headrace run {model} makes the next version"
    )


def print_misplaced(model: str, champion: dict[str, str]) -> None:
    """Prints that somebody moved or deleted MLflow's alias `champion`, which changes nothing about what serves."""
    where = f"points to {model}@{champion['version']}" if champion["version"] else "is missing"
    serves = f"{model}@{champion['serves']} is in production, and that counts"
    console.out().print(f"MLflow's alias champion of {model} {where}; {serves}\n  hint: {champion['hint']} corrects the alias")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table without wrapping lines, so that addresses can be copied."""
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    console.out().print(
        "  ".join(f"[bold]{escape(name.ljust(width))}[/bold]" for name, width in zip(columns, widths, strict=True))
    )
    for row in texts:
        cells = (_coloured(text.ljust(width)) for text, width in zip(row, widths, strict=True))
        console.out().print("  ".join(cells))


def print_candidates(found: list[dict[str, Any]]) -> None:
    """Prints the versions that wait for approval or have been reviewed, each with the gate's reasons."""
    if not found:
        console.out().print("no version waits for approval")
    for one in found:
        serving = f"; {one['model']}@{one['in_production']} serves" if one["in_production"] else ""
        console.out().print(f"[bold]{one['model']}@{one['version']}[/bold]  {_state(one)}{serving}")
        for line in [*(one["verdict"] or {}).get("reasons", []), _next(one)]:
            console.out().print(f"    {escape(line)}")


def _state(candidate: dict[str, Any]) -> str:
    review = candidate["review"]
    many = f"; {len(candidate['approvals'])} of {candidate['approvers']} approvals" if candidate["approvers"] > 1 else ""
    if review:
        return f"is {candidate['state']} {escape(who(review))}{many}"
    until = f", until {candidate['expires']}" if candidate["expires"] else ""
    return f"waits for approval since {candidate['since']}{until}{many}"


def _next(candidate: dict[str, Any]) -> str:
    model, name = candidate["model"], f"{candidate['model']}@{candidate['version']}"
    if candidate["state"] == "waiting":
        return f"headrace approve {name}; or: headrace reject {name} --why REASON; or in Prefect's form: headrace open prefect"
    return f"headrace run {model}" if candidate["state"] == "approved" else f"headrace approve {name} lifts the rejection"


def who(facts: dict[str, Any]) -> str:
    """Who decided and why, from the facts of a review: `by ada (reviewer): looks good`."""
    via = f", in {facts['via']}" if facts.get("via") else ""
    role, why = f" ({facts['role']}{via})" if facts.get("role") else "", f": {facts['why']}" if facts.get("why") else ""
    return f"by {facts['by']}{role}{why}"


def print_history(found: list[Entry], not_counted: dict[int, str]) -> None:
    """Prints the entries of the journal, newest last, each with the reasons for its decision.

    Args:
        not_counted: why reviews do not count, by their place in `found`.
    """
    if not found:
        console.out().print("the journal is empty; release a model: headrace run digits")
    for place, entry in enumerate(found):
        reasons = (entry.facts.get("verdict") or {}).get("reasons", [])
        colour = {"released": "green", "refused": "red", "rejected": "red", "rollout-failed": "red"}.get(entry.event, "yellow")
        console.out().print(f"{entry.at}  [bold]{entry.model}@{entry.version}[/bold]  [{colour}]{entry.event}[/{colour}]")
        if "run_id" in entry.facts:
            commit = _commit(entry.facts)
            console.out().print(f"    data {entry.facts.get('data_md5')}  git {commit}  run {entry.facts['run_id']}")
        ignored = [f"does not count: {not_counted[place]}"] if place in not_counted else []
        for line in [*reasons, *_details(entry), *ignored]:
            console.out().print(f"    {escape(line)}")


def _details(entry: Entry) -> list[str]:
    """Lines about the outcome of a roll-out."""
    facts = entry.facts
    if entry.event in ("approved", "rejected") and "by" in facts:
        return [f"{entry.event} {who(facts)}"]
    if entry.event == "expired":
        return [str(facts.get("why"))]
    if entry.event == "released" and "by" in facts:
        approvals = facts.get("approvals") or ([facts["approval"]] if "approval" in facts else [])
        approval = [f"approved {who(one)}" for one in approvals]
        forced = [f"forced: {facts['forced']}"] if facts.get("forced") else []
        return [*approval, f"released by {facts['by']}", *forced]
    if entry.event == "rolled-back":
        back = facts["rolled_back"]
        return [f"{entry.model}@{back['from']} was rolled back by {back['by']}" + (f": {back['why']}" if back["why"] else "")]
    if entry.event == "rebuilt":
        return [f"{facts['bento']} from {facts['source']}"]
    if entry.event == "rollout-abandoned":
        return [facts["reason"]]
    if entry.event in ("rollout-step", "rollout-failed") and "step" in facts:
        if not facts.get("judged", True):
            return [f"{facts['step']}: not judged: too few requests ({facts['requests']:,})"]
        numbers = f"{facts['requests']:,} requests, errors {facts['error_rate']:.2%}"
        return [f"{facts['step']}: {facts.get('reason', 'passed')}; {numbers}"]
    return []


def print_trace(chain: dict[str, Any]) -> None:
    """Prints the lineage of a version, with the command that restores each part."""
    aliases = f" ({', '.join(chain['aliases'])})" if chain["aliases"] else ""
    when = f"released {chain['released_at']}" if chain["released_at"] else "never released"
    console.out().print(f"[bold]{chain['model']}@{chain['version']}[/bold]{aliases}  {when}")
    for line in chain["missing"]:
        console.out().print(f"  [yellow]{escape(line)}[/yellow]")
    for link in chain["chain"]:
        console.out().print(f"  [cyan]{link['link']:<14}[/cyan] {escape(str(link['id']))}")
        if link["get_it"]:
            console.out().print(f"  {'':<14} [dim]{escape(link['get_it'])}[/dim]")


def print_reproduction(found: Reproduction) -> None:
    """Prints that the weights are identical, and what they were trained from."""
    console.out().print(
        f"[bold]{found.version}[/bold] trained again on {found.device}: [green]identical, byte for byte[/green]"
    )
    rows = {
        "code": found.code,
        "data": found.data_md5,
        "served files": f"sha256 {found.content_sha256_now}",
        "metrics": "  ".join(f"{name} {value:.4g}" for name, value in found.metrics_now.items() if value is not None),
    }
    for name, text in rows.items():
        console.out().print(f"  [cyan]{name:<14}[/cyan] {escape(text)}")


def _coloured(text: str) -> str:
    colours = {"ready": "green", "degraded": "red", "starting": "yellow", "stopped": "yellow", "failed": "red"}
    colour = colours.get(text.strip())
    return f"[{colour}]{text}[/{colour}]" if colour else escape(text)
