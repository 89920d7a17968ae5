"""Approvals and rejections: what counts is an entry of the journal, signed for a reviewer's token, and for its files alone."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from headrace.errors import AwaitsApproval, RegistryError, Rejected, UsageError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, record, reviews
from headrace.release.decision import take_approved
from headrace.release.reviews import NotAllowed, NotWaiting, Review, Reviewer
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier
from headrace.serving.access import audit, keys, tokens
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.tracking.runs import client
from tests.release.candidates import (
    LENIENT,
    SERVING,
    approve,
    decide,
    events,
    finish,
    new_recipe,
    register,
    register_other_bytes,
    released,
    reviewer,
    with_gate,
)


def waiting(built: Project) -> tuple[Recipe, Version]:
    """A recipe whose first version waits for approval."""
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    assert decide(recipe, version, built).result == "awaiting-approval"
    return recipe, version


def why_it_waits(recipe: Recipe, version: Version, project: Project) -> str:
    decision = decide(recipe, version, project)
    assert decision.result == "awaiting-approval"
    with pytest.raises(AwaitsApproval) as caught:
        finish(recipe, decision, project)
    return caught.value.message


def test_a_person_approves_first(built: Project) -> None:
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    for _ in range(2):
        undecided = decide(recipe, version, built)
        assert undecided.result == "awaiting-approval" and undecided.stops
        with pytest.raises(AwaitsApproval, match="waits for approval; nothing serves yet") as caught:
            finish(recipe, undecided, built)
    assert f"headrace approve {version.name}" in str(caught.value.hint)
    assert record.last_final_release(recipe.name, built) is None
    found = approve(version, built, why="looks good")
    decision = decide(recipe, version, built)
    assert decision.result == "promote" and decision.review == found
    facts = finish(recipe, decision, built)
    assert facts["approval"] == {"by": "ada", "role": "reviewer", "at": found.when, "why": "looks good"}
    assert events(recipe, built) == [("awaiting-approval", "1"), ("approved", "1"), ("released", "1")]
    assert registry.tag(version, "approved_by", built) == "ada"
    assert not decide(recipe, version, built).stops, "the champion needs no second approval"
    with pytest.raises(UsageError, match="is the champion already"):
        approve(version, built)


def test_the_journal_and_the_audit_log_have_who_when_why_and_which_files(built: Project) -> None:
    _, version = waiting(built)
    ada = reviewer(built)
    reviews.review(version.name, "approved", ada, "plots", built)
    entry = journal.entries(built, version.model)[-1]
    assert (entry.event, entry.facts["by"], entry.facts["token"], entry.facts["why"]) == ("approved", "ada", ada.token, "plots")
    assert entry.facts["content_sha256"] == registry.evidence(version)["content_sha256"]
    act = audit.entries(built)[-1]
    facts = act.facts
    assert (act.act, facts["version"], facts["by"], facts["token"]) == ("approve", version.name, "ada", ada.token)


def test_a_tag_in_mlflow_approves_nothing_and_the_release_says_so(built: Project) -> None:
    recipe, version = waiting(built)
    client(built).set_model_version_tag(recipe.name, version.version, "approval", "approved")
    message = why_it_waits(recipe, version, built)
    assert f"the tag approval=approved of {version.name} in MLflow does not count" in message
    approve(version, built)
    assert decide(recipe, version, built).result == "promote"


def forged(version: Version, project: Project, **facts: Any) -> None:
    """An entry that somebody wrote who can write to the journal."""
    evidence = registry.evidence(version)
    journal.record(project, "approved", version.model, version.version, {"by": "eve", **evidence, **facts})


def test_an_unsigned_entry_approves_nothing(built: Project) -> None:
    recipe, version = waiting(built)
    forged(version, built)
    assert "the approval by eve at " in (message := why_it_waits(recipe, version, built))
    assert "does not count: it is not signed" in message


def test_a_signature_of_another_key_or_a_token_of_this_one_approves_nothing(built: Project, project: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    facts = journal.entries(built, recipe.name)[-1].facts
    claims = tokens.read_signed(built, facts["signature"], reviews.ISSUER)
    assert claims is not None
    other = new_candidate(recipe, built)
    elsewhere = tokens.sign(project, {**claims, "version": other.version})
    token, _ = tokens.issue(built, "eve", [], 3600, role="reviewer")
    for signature in (elsewhere, token, "nonsense", "a.b.c"):
        forged(other, built, signature=signature)
        assert "its signature is not valid in this project" in why_it_waits(recipe, other, built)


def new_candidate(recipe: Recipe, project: Project) -> Version:
    version = register_other_bytes(recipe, project)
    assert decide(recipe, version, project).result == "awaiting-approval"
    return version


@pytest.mark.parametrize("changed", ["version", "by", "content_sha256", "token", "outcome"])
def test_a_signature_counts_only_with_the_facts_that_were_signed(built: Project, changed: str) -> None:
    recipe, version = waiting(built)
    approve(version, built, "rejected" if changed == "outcome" else "approved", why="as tried")
    facts = journal.entries(built, recipe.name)[-1].facts
    other = new_candidate(recipe, built) if changed == "version" else version
    if changed not in ("version", "outcome"):
        facts = {**facts, changed: "other"}
    journal.record(built, "approved", other.model, other.version, facts)
    entries = journal.entries(built, recipe.name)
    assert reviews.why_not_counted(entries, built)[len(entries) - 1] == "the entry differs from what was signed"
    assert decide(recipe, other, built).result == {"version": "awaiting-approval", "outcome": "rejected"}.get(
        changed, "promote"
    )


def test_an_approval_does_not_count_for_other_files(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    graph = version.folder / "model.onnx"
    original = graph.read_bytes()
    graph.write_bytes(original + b"\0")
    assert "the files of the version have changed since" in why_it_waits(recipe, version, built)
    graph.write_bytes(original)
    assert decide(recipe, version, built).result == "promote"


def test_an_approval_by_a_token_that_was_revoked_before_does_not_count(built: Project) -> None:
    recipe, version = waiting(built)
    ada = reviewer(built)
    tokens.revoke(built, ada.token)
    reviews.review(version.name, "approved", ada, "", built)  # as a server that had not read the list again would
    assert "the token of ada had been revoked" in why_it_waits(recipe, version, built)
    approve(version, built, name="bob")
    assert decide(recipe, version, built).result == "promote"


def test_an_approval_stands_when_its_token_is_revoked_later(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, version = waiting(built)
    found = approve(version, built)
    later = time.time() + 5
    monkeypatch.setattr(time, "time", lambda: later)
    tokens.revoke(built, found.token)
    assert decide(recipe, version, built).result == "promote"


def test_a_signed_review_is_no_token(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    signature = journal.entries(built, recipe.name)[-1].facts["signature"]
    with pytest.raises(InvalidToken):
        TokenVerifier(built.token_keys).verify(signature)


@pytest.mark.parametrize("outcome", ["approved", "rejected"])
@pytest.mark.parametrize("role", ["viewer", None])
def test_neither_a_viewer_nor_a_tenant_reviews(built: Project, role: str | None, outcome: reviews.Outcome) -> None:
    recipe, version = waiting(built)
    person = reviewer(built, role="viewer").token if role else tokens.issue(built, "acme", ["*"], 3600)[1].jti
    with pytest.raises(NotAllowed, match="takes the role reviewer or operator") as caught:
        reviews.review(version.name, outcome, Reviewer("vic", role, person), "", built)
    assert f"has {'the role viewer' if role else 'no role'}" in caught.value.message
    assert events(recipe, built) == [("awaiting-approval", "1")]


def test_the_role_is_signed(built: Project) -> None:
    """A signature over another role, for which no command signs, does not count."""
    recipe, version = waiting(built)
    found = approve(version, built).model_copy(update={"role": "viewer", "at": time.time() + 1})
    forged(version, built, signature=tokens.sign(built, {"iss": reviews.ISSUER, **found.model_dump()}), **shown(found))
    entries = journal.entries(built, recipe.name)
    assert reviews.why_not_counted(entries, built) == {len(entries) - 1: "the role viewer may not review"}


def shown(found: Review) -> dict[str, str]:
    return {**found.facts(), "token": found.token}


def test_what_does_not_wait_cannot_be_reviewed(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", require={"accuracy": "> 1"})
    version = register(recipe, built)
    with pytest.raises(NotWaiting, match="its recipe does not ask for one, or no release got that far"):
        approve(version, built)
    assert decide(recipe, version, built).result == "refused"
    for outcome in reviews.ACTS:
        with pytest.raises(NotWaiting, match="does not wait for approval: the gate refused it"):
            approve(version, built, outcome, "why not")
    with pytest.raises(UsageError, match="has no version '7'"):
        reviews.review(f"{recipe.name}@7", "approved", reviewer(built), "", built)
    with pytest.raises(UsageError, match="no registered model 'nothing'"):
        reviews.review("nothing@1", "approved", reviewer(built), "", built)


def test_what_served_before_cannot_be_reviewed(built: Project) -> None:
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    first = released(recipe, built)
    finish(recipe, decide(recipe, register_other_bytes(recipe, built), built), built)
    with pytest.raises(NotWaiting, match="it was released already"):
        approve(first, built)
    with pytest.raises(NotWaiting, match="is the champion already") as caught:
        approve(registry.get(recipe.name, built), built, "rejected", "slow")
    assert "headrace rollback" in str(caught.value.hint)


def test_the_same_review_twice_is_an_error_that_names_the_first(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    with pytest.raises(NotWaiting, match=r"was approved already, by ada \(reviewer\) at ") as caught:
        approve(version, built, name="bob")
    assert f"headrace run {recipe.name}" in str(caught.value.hint)


def test_a_rejected_version_is_not_asked_about_again_until_it_is_approved_or_something_changes(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built, "rejected", "wrong colours")
    for force in (False, True):
        decision = decide(recipe, version, built, force)
        assert decision.result == "rejected" and decision.stops
        with pytest.raises(
            Rejected, match=r"was rejected by ada \(reviewer\) at .*: wrong colours; nothing serves yet"
        ) as error:
            finish(recipe, decision, built)
    assert f"headrace approve {version.name}" in str(error.value.hint)
    assert events(recipe, built) == [("awaiting-approval", "1"), ("rejected", "1")]
    assert decide(with_gate(recipe, approval="auto"), version, built).result == "rejected"
    other = new_candidate(recipe, built)
    assert other.version == "2"
    with pytest.raises(NotWaiting, match=f"it was superseded by {other.name}, which passed the gate at "):
        approve(version, built, name="bob")
    assert decide(recipe, version, built).result == "rejected", "the recipe was changed back"
    approve(version, built, name="bob")
    assert decide(recipe, version, built).result == "promote", "the later review is in force"


def test_a_rejected_version_does_not_come_back_under_another_number(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built, "rejected", "wrong colours")
    client(built).delete_model_version(recipe.name, version.version)
    again = register(recipe, built)
    assert again.version == "2"
    for _ in range(2):
        assert decide(recipe, again, built).result == "rejected"
    assert events(recipe, built)[-1] == ("awaiting-approval", "2")
    approve(again, built)
    assert decide(recipe, again, built).result == "promote"


def test_an_entry_that_is_repeated_does_not_undo_a_later_review(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    facts = journal.entries(built, recipe.name)[-1].facts
    approve(version, built, "rejected", "on second thought", name="bob")
    journal.record(built, "approved", recipe.name, version.version, facts)
    decision = decide(recipe, version, built)
    assert decision.result == "rejected" and decision.review is not None and decision.review.by == "bob"


def test_approval_does_not_overrule_the_gate(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    stricter = with_gate(recipe, require={"accuracy": "> 1"})
    assert decide(stricter, version, built).result == "refused"


def test_an_unsigned_approval_of_an_earlier_headrace_counts_only_for_what_was_released(built: Project) -> None:
    recipe, first = waiting(built)
    forged(first, built, by="ada")
    assert decide(recipe, first, built).result == "awaiting-approval"
    journal.record(built, "released", recipe.name, "1", {**SERVING, **registry.evidence(first)})
    second = new_candidate(with_gate(recipe, beat_champion=LENIENT), built)
    journal.record(built, "released", recipe.name, second.version, {**SERVING, **registry.evidence(second)})
    contract = built.artifacts(recipe.name) / "export" / "contract.json"
    contract.write_bytes((first.folder / "contract.json").read_bytes())
    again = decide(with_gate(recipe, beat_champion=LENIENT), first, built)
    assert again.result == "promote" and again.review is None


def test_a_key_that_is_published_no_more_verifies_no_approval(built: Project) -> None:
    """After a key leaked: docs/access.md says to remove it."""
    recipe, version = waiting(built)
    approve(version, built)
    before = keys.public_keys(built)
    try:
        keys.write_token_keys(built, "jwks.json", {"keys": []})
        assert "its signature is not valid in this project" in why_it_waits(recipe, version, built)
    finally:
        keys.write_token_keys(built, "jwks.json", {"keys": before})


def test_candidates_are_those_that_passed_the_gate_and_are_not_released(built: Project) -> None:
    def found(recipe: Recipe) -> list[tuple[str, str, str | None]]:
        listed = [one for one in reviews.candidates(built) if one.entry.model == recipe.name]
        return [(one.entry.version, one.state, one.in_production) for one in listed]

    recipe, version = waiting(built)
    assert found(recipe) == [("1", "waiting", None)]
    approve(version, built)
    assert found(recipe) == [("1", "approved", None)]
    (shown,) = (one.to_dict() for one in reviews.candidates(built) if one.entry.model == recipe.name)
    assert shown["verdict"]["passed"] and shown["review"]["by"] == "ada"
    finish(recipe, decide(recipe, version, built), built)
    assert found(recipe) == []
    lenient = with_gate(recipe, beat_champion=LENIENT)
    second = new_candidate(lenient, built)
    approve(second, built, "rejected", "slow")
    assert found(recipe) == [("2", "rejected", "1")]


def test_two_different_people_approve_where_the_recipe_asks_for_two(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", approvers=2)
    version = register(recipe, built)
    assert decide(recipe, version, built).result == "awaiting-approval"
    approve(version, built)
    with pytest.raises(NotWaiting, match=r"approved already, by ada .*; the same person counts once: 1 of 2 approvals"):
        approve(version, built)
    waits = decide(recipe, version, built)
    assert waits.result == "awaiting-approval" and waits.standing.progress == "1 of 2 approvals"
    with pytest.raises(AwaitsApproval, match=r"waits for approval \(1 of 2 approvals\)"):
        finish(recipe, waits, built)
    assert registry.tag(version, reviews.TAG, built) == "1 of 2 approvals"
    approve(version, built, name="bob")
    with pytest.raises(NotWaiting, match="was approved already, by bob"):
        approve(version, built, name="carl")
    facts = finish(recipe, decide(recipe, version, built), built)
    assert [one["by"] for one in facts["approvals"]] == ["ada", "bob"]
    assert events(recipe, built) == [(event, "1") for event in ("awaiting-approval", "approved", "approved", "released")]


def test_the_operator_is_one_person_under_any_name(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", approvers=2)
    version = register(recipe, built)
    decide(recipe, version, built)
    approve_as = partial(reviews.review, version.name, "approved", why="", project=built)
    operator = replace(reviewer(built, "root"), role="operator")
    approve_as(reviewer=operator)
    with pytest.raises(NotWaiting, match="the same person counts once"):
        approve_as(reviewer=replace(operator, name="operator"))
    approve_as(reviewer=reviewer(built, "root"))
    assert decide(recipe, version, built).result == "promote", "a reviewer of the same name is another person"


def test_one_rejection_rejects_and_takes_as_many_approvals_to_lift(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", approvers=2)
    version = register(recipe, built)
    decide(recipe, version, built)
    approve(version, built)
    approve(version, built, "rejected", "slow", name="bob")
    approve(version, built)
    assert decide(recipe, version, built).result == "rejected"
    approve(version, built, name="bob")
    assert decide(recipe, version, built).result == "promote"


def test_an_approval_by_one_person_is_not_enough_once_the_recipe_asks_for_two(built: Project) -> None:
    recipe, version = waiting(built)
    approve(version, built)
    stricter = with_gate(recipe, approvers=2)
    assert decide(stricter, version, built).result == "awaiting-approval"
    approve(version, built, name="bob")
    assert decide(stricter, version, built).result == "promote"


def later(monkeypatch: pytest.MonkeyPatch, **passed: float) -> None:
    now = time.time() + timedelta(**passed).total_seconds()
    monkeypatch.setattr(time, "time", lambda: now)


def test_a_candidate_whose_time_is_over_cannot_be_approved_and_the_next_run_asks_again(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = new_recipe(built, approval="manual", approvers=2, expires="7d")
    version = register(recipe, built)
    decide(recipe, version, built)
    approve(version, built)
    later(monkeypatch, days=8)
    assert [one for one in reviews.candidates(built) if one.entry.model == recipe.name] == []
    with pytest.raises(NotWaiting, match="does not wait for approval: it expired at ") as caught:
        approve(version, built, name="bob")
    assert caught.value.hint == f"headrace run {recipe.name} asks again"
    expired = journal.entries(built, recipe.name)[-1]
    assert (expired.event, expired.facts["by"]) == ("expired", "headrace")
    assert audit.entries(built)[-1].act == "expire"
    assert registry.tag(version, reviews.TAG, built) == "expired"
    assert reviews.expire_due(recipe.name, built) is None, "once"
    again = decide(recipe, version, built)
    assert again.result == "awaiting-approval" and again.standing.approvals == (), "what was approved before does not count"
    assert [event for event, _ in events(recipe, built)] == ["awaiting-approval", "approved", "expired", "awaiting-approval"]


@pytest.mark.parametrize("outcome", ["approved", "rejected"])
def test_what_was_decided_in_time_does_not_expire(
    built: Project, monkeypatch: pytest.MonkeyPatch, outcome: reviews.Outcome
) -> None:
    recipe, version = waiting(built)
    approve(version, built, outcome, "as tried")
    later(monkeypatch, days=30)
    assert reviews.expire_due(recipe.name, built) is None
    assert decide(recipe, version, built).result == {"approved": "promote", "rejected": "rejected"}[outcome]


def test_without_expiry_and_by_an_earlier_headrace_a_candidate_waits_for_ever(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = new_recipe(built, approval="manual", expires=None)
    version = register(recipe, built)
    decide(recipe, version, built)
    later(monkeypatch, days=4000)
    assert reviews.expire_due(recipe.name, built) is None
    facts = journal.entries(built, recipe.name)[-1].facts
    journal.record(built, "awaiting-approval", recipe.name, "1", {n: v for n, v in facts.items() if n != "terms"})
    later(monkeypatch, days=4000)
    assert reviews.expire_due(recipe.name, built) is None
    approve(version, built)


def test_an_entry_that_is_repeated_after_the_expiry_does_not_count(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = new_recipe(built, approval="manual", approvers=2)
    version = register(recipe, built)
    decide(recipe, version, built)
    approve(version, built)
    facts = journal.entries(built, recipe.name)[-1].facts
    later(monkeypatch, days=15)
    assert reviews.expire_due(recipe.name, built) is not None
    journal.record(built, "approved", recipe.name, "1", facts)
    assert decide(recipe, version, built).standing.approvals == ()


def test_an_approved_version_is_released_with_exactly_its_files(built: Project) -> None:
    recipe, version = waiting(built)
    with pytest.raises(NotWaiting, match="is not approved"):
        take_approved(recipe, "1", built)
    approve(version, built)
    taken = take_approved(recipe, "1", built)
    assert (taken.candidate.name, taken.result, taken.review and taken.review.by) == (version.name, "promote", "ada")
    graph = version.folder / "model.onnx"
    original = graph.read_bytes()
    graph.write_bytes(original + b"\0")
    with pytest.raises(RegistryError, match="changed"):
        take_approved(recipe, "1", built)
    graph.write_bytes(original)
    facts = finish(recipe, taken, built)
    assert facts["metrics"] and facts["approval"]["by"] == "ada"
    with pytest.raises(NotWaiting, match="is not approved"):
        take_approved(recipe, "1", built)
