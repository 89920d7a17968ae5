"""Issues tokens and writes a folder of token keys as `headrace tokens` does, with a key of the test."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm


class TokenIssuer:
    """A folder of token keys, and tokens signed with them."""

    def __init__(self, folder: Path, kid: str = "k1") -> None:
        self.folder = folder
        self.kid = kid
        self.key = Ed25519PrivateKey.generate()
        folder.mkdir(parents=True, exist_ok=True)
        self._put("jwks.json", {"keys": [self.jwk()]})
        self._put("revoked.json", {"revoked": {}})

    def jwk(self) -> dict[str, Any]:
        return {**OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": self.kid, "alg": "EdDSA", "use": "sig"}

    def token(self, tenant: str = "acme", models: tuple[str, ...] = ("*",), **claims: Any) -> str:
        """Issues a token; a claim of None is left out."""
        now = int(time.time())
        payload = {"iss": "headrace", "sub": tenant, "jti": uuid.uuid4().hex, "iat": now, "exp": now + 600}
        payload |= {"models": list(models), **claims}
        kept = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(kept, self.key, "EdDSA", headers={"kid": self.kid})

    def header(self, tenant: str = "acme", models: tuple[str, ...] = ("*",), **claims: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(tenant, models, **claims)}"}

    def revoke(self, token: str) -> None:
        claims = jwt.decode(token, options={"verify_signature": False})
        self._put("revoked.json", {"revoked": {claims["jti"]: claims["exp"]}})

    def _put(self, name: str, value: Any) -> None:
        beside = self.folder / f".{name}.part"
        beside.write_text(json.dumps(value))
        beside.replace(self.folder / name)
