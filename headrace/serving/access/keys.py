"""The key pair that signs tokens: made on first use; the private key for this user only, the public one for verifiers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError
from headrace.files import read_object, write_json, write_secret
from headrace.permissions import FOR_CONTAINERS
from headrace.project import Project
from headrace.runtime.token_verifier import ALGORITHM

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Jwk = dict[str, str]
TOKEN_KEY_FIELDS: dict[str, dict[str, type]] = {"jwks.json": {"keys": list}, "revoked.json": {"revoked": dict}}
"""Files that replicas read, with their fields."""


def signing_key(project: Project) -> tuple[str, Ed25519PrivateKey]:
    """Id and private key with which new tokens are signed; made if there is none. The caller holds the lock on tokens.

    Raises:
        HeadraceError: the key's file is damaged.
    """
    if not (project.keys / "signing.pem").exists():
        make_signing_key(project)
    key = _load(project)
    jwk = _jwk(key)
    if jwk["kid"] not in {known["kid"] for known in public_keys(project)}:
        _write_public(project, [*public_keys(project), jwk])
    return jwk["kid"], key


def make_signing_key(project: Project) -> str:
    """Makes a new key that signs from now on, and returns its id. The public keys of earlier ones stay published."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    jwk = _jwk(key)
    _write_public(project, [*public_keys(project), jwk])  # known before anything is signed with it
    write_secret(project.keys / "signing.pem", pem)
    return jwk["kid"]


def publish_only(project: Project, needed: Collection[str]) -> None:
    """Publishes the public keys with an id in `needed`, and that of the signing key, and removes all others."""
    kid, _ = signing_key(project)
    wanted = [jwk for jwk in public_keys(project) if jwk["kid"] in {kid, *needed}]
    if wanted != public_keys(project):
        _write_public(project, wanted)


def public_keys(project: Project) -> list[Jwk]:
    """The published key set (RFC 7517), oldest first."""
    keys: list[Jwk] = read_token_keys(project, "jwks.json").get("keys", [])
    return keys


def token_keys_folder(project: Project) -> Path:
    """The folder in which replicas find public keys and revoked ids.

    Where an earlier version made it as `guard`, it stays there, since its replicas may still run, and is linked.
    """
    earlier = project.state / "guard"
    if earlier.is_dir() and not project.token_keys.exists():
        with contextlib.suppress(FileExistsError):
            project.token_keys.symlink_to(earlier.name)
    return project.token_keys


def write_token_keys(project: Project, name: str, content: Any) -> None:
    """Writes a file that replicas read. The folder is readable for all, since containers run as another user."""
    folder = token_keys_folder(project)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    write_json(folder / name, content, FOR_CONTAINERS)


def read_token_keys(project: Project, name: str) -> dict[str, Any]:
    """A file that `write_token_keys` wrote; empty when there is none.

    Raises:
        DamagedFile: it cannot be read: as an empty file it would accept revoked tokens, or refuse valid ones.
    """
    path = token_keys_folder(project) / name
    hint = (
        f"restore it from a backup; or rm '{path}', then headrace up   (writes it from the signing key and the list of tokens)"
    )
    return read_object(path, hint, **TOKEN_KEY_FIELDS[name]) or {}


def _write_public(project: Project, keys: list[Jwk]) -> None:
    write_token_keys(project, "jwks.json", {"keys": keys})


def _load(project: Project) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = project.keys / "signing.pem"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        hint = f"restore it from a backup, or remove it: rm {path}   (a new key is made, and issued tokens stay valid)"
        raise HeadraceError("not an Ed25519 key in PEM format", where=str(path), hint=hint)
    return key


def _jwk(key: Ed25519PrivateKey) -> Jwk:
    """The public half (RFC 8037), named by its thumbprint (RFC 7638)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))}
    thumbprint = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**members, "kid": _base64(thumbprint), "alg": ALGORITHM, "use": "sig"}


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
