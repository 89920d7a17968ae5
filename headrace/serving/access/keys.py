"""The key pair that signs tokens: made on first use, the private half for this user alone, the public one for the guard."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError
from headrace.files import read_json, write_json, write_secret
from headrace.project import Project
from headrace.runtime.token_verifier import ALGORITHM

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Jwk = dict[str, str]


def current(project: Project) -> tuple[str, Ed25519PrivateKey]:
    """Id and private key that sign now. The caller holds the lock on tokens.

    Raises:
        HeadraceError: the key's file is damaged.
    """
    if not (project.keys / "signing.pem").exists():
        make(project)
    key = _load(project)
    jwk = _jwk(key)
    if jwk["kid"] not in {known["kid"] for known in public_keys(project)}:
        _write_public(project, [*public_keys(project), jwk])
    return jwk["kid"], key


def make(project: Project) -> str:
    """A new key that signs from now on; returns its id. Those before stay in the guard."""
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


def publish(project: Project, needed: Collection[str]) -> None:
    """Leaves the key that signs and those in `needed` in the guard, and no others."""
    kid, _ = current(project)
    wanted = [jwk for jwk in public_keys(project) if jwk["kid"] in {kid, *needed}]
    if wanted != public_keys(project):
        _write_public(project, wanted)


def public_keys(project: Project) -> list[Jwk]:
    """The guard's key set (RFC 7517), oldest first."""
    keys: list[Jwk] = (read_json(project.guard / "jwks.json") or {}).get("keys", [])
    return keys


def open_token_keys(project: Project) -> None:
    """The guard's folder; containers of another user read it, so it is open to read, and holds nothing secret."""
    project.guard.mkdir(parents=True, exist_ok=True)
    project.guard.chmod(0o755)


def _write_public(project: Project, keys: list[Jwk]) -> None:
    open_token_keys(project)
    write_json(project.guard / "jwks.json", {"keys": keys})


def _load(project: Project) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = project.keys / "signing.pem"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        hint = f"restore it from a backup, or remove it: rm {path}   (then a new key signs, and tokens in force stay so)"
        raise HeadraceError("no Ed25519 key in PEM", where=str(path), hint=hint)
    return key


def _jwk(key: Ed25519PrivateKey) -> Jwk:
    """The public half (RFC 8037), named by its thumbprint (RFC 7638)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))}
    thumbprint = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**members, "kid": _base64(thumbprint), "alg": ALGORITHM, "use": "sig"}


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
