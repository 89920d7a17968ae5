"""A damaged file of keys or tokens is an error: read as absent it would forget tokens, or accept revoked ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import DamagedFile
from headrace.project import Project
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier
from headrace.serving.access import keys, tokens

HOUR = 3600


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path)
    tokens.issue(found, "leaver", ["digits"], HOUR)
    tokens.revoke(found, "leaver")
    return found


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (lambda project: project.keys / "tokens.json", tokens.list_tokens),
        (lambda project: project.keys / "tokens.json", tokens.rates),
        (lambda project: project.keys / "tokens.json", lambda project: tokens.issue(project, "acme", ["digits"], HOUR)),
        (lambda project: keys.token_keys_folder(project) / "revoked.json", tokens.revoked_ids),
        (lambda project: keys.token_keys_folder(project) / "revoked.json", lambda project: tokens.revoke(project, "leaver")),
        (lambda project: keys.token_keys_folder(project) / "jwks.json", keys.public_keys),
    ],
)
def test_a_damaged_file_is_named_with_its_repair_and_left_as_it_is(
    path: Callable[[Project], Path], read: Callable[[Project], object], project: Project
) -> None:
    file = path(project)
    damaged = file.read_bytes()[:-3]
    file.write_bytes(damaged)
    with pytest.raises(DamagedFile, match="not valid JSON") as error:
        read(project)
    assert error.value.where == str(file)
    assert (error.value.hint or "").startswith("restore it from a backup; or rm ")
    assert file.read_bytes() == damaged


def test_a_removed_list_of_revoked_tokens_is_written_again_from_the_list_of_tokens(project: Project) -> None:
    before = tokens.revoked_ids(project)
    (keys.token_keys_folder(project) / "revoked.json").unlink()
    tokens.prepare_tokens(project)
    assert tokens.revoked_ids(project) == before != []


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"tokens": null}', '{"tokens": [{}]}', '{"tokens": ["a"]}'])
def test_a_list_of_tokens_with_another_content_is_never_read_as_empty(content: str, project: Project) -> None:
    (project.keys / "tokens.json").write_text(content)
    with pytest.raises(DamagedFile, match=r"tokens\.json: damaged file"):
        tokens.issue(project, "acme", ["digits"], HOUR)
    assert (project.keys / "tokens.json").read_text() == content


@pytest.mark.parametrize(("name", "content"), [("revoked.json", "{}"), ("revoked.json", "null"), ("jwks.json", '{"keys": {}}')])
def test_a_file_for_verifiers_with_another_content_is_never_read_as_empty(name: str, content: str, project: Project) -> None:
    (keys.token_keys_folder(project) / name).write_text(content)
    with pytest.raises(DamagedFile, match="damaged file"):
        tokens.prepare_tokens(project)
    assert (keys.token_keys_folder(project) / name).read_text() == content


def test_without_the_list_of_revoked_tokens_none_of_them_is_accepted(project: Project) -> None:
    revoked, _ = tokens.issue(project, "revoked", ["digits"], HOUR)
    valid, _ = tokens.issue(project, "acme", ["digits"], HOUR)
    (jti,) = (facts.jti for facts in tokens.revoke(project, "revoked"))
    (keys.token_keys_folder(project) / "revoked.json").unlink()
    for token in (revoked, valid):
        with pytest.raises(InvalidToken):
            TokenVerifier(project.token_keys).verify(token)
    assert jti in tokens.revoked_ids(project), "the gateway refuses it too"
    tokens.operator_token(project)  # as the API server asks for it
    assert TokenVerifier(project.token_keys).verify(valid).tenant == "acme"
    with pytest.raises(InvalidToken):
        TokenVerifier(project.token_keys).verify(revoked)
