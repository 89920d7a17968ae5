"""The door's certificate: of the project's own authority, or given as files. Clients trust `authority.pem`."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import SettingsError
from headrace.files import write_secret, write_text
from headrace.project import Project
from headrace.settings import Settings

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 90
RENEW_DAYS = 30
"""Made anew when it lives no longer than this."""
CIPHERS = [
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES256-GCM-SHA384")
    for kind in ("ECDSA", "RSA")
]
"""For TLS 1.2: forward secrecy and authenticated encryption (RFC 9325, 4.2). TLS 1.3 has no others."""

LEAST_RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""P-256, P-384 and P-521 under OpenSSL's names."""


@dataclass(frozen=True)
class Certificate:
    """Files that Envoy reads; another certificate is another pair of files, so that the two always fit."""

    chain: Path
    key: Path


def prepare(project: Project, settings: Settings) -> Certificate:
    """The door's certificate, checked, and made or renewed where it is the project's own.

    Raises:
        SettingsError: a given file is missing, no PEM, expired, or the key is weak or not the certificate's.
    """
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tls.lock"):
        chain, key = _given(project, settings) if settings.tls == "files" else _own(project, settings)
        name = f"door-{hashlib.sha256(chain).hexdigest()[:12]}"
        found = Certificate(project.tls / f"{name}.pem", project.tls / f"{name}.key")
        if not (found.chain.exists() and found.key.exists()):
            write_secret(found.key, key.decode())
            write_text(found.chain, chain.decode())
        return found


def forget_others(project: Project, certificate: Certificate) -> None:
    """Removes the certificates before this one, once nothing points at them."""
    for path in project.tls.glob("door-*"):
        if path not in (certificate.chain, certificate.key):
            path.unlink(missing_ok=True)


def authority(project: Project) -> Path:
    """The certificate that clients trust, for `tls = "self_signed"`."""
    return project.tls / "authority.pem"


def trust(project: Project, settings: Settings) -> ssl.SSLContext | bool:
    """What this house's own calls to the door trust: the own authority, or just the given certificate, whatever its name."""
    if settings.tls == "off":
        return True
    if settings.tls == "self_signed":
        if not authority(project).exists():  # the door was never up
            return True
        return ssl.create_default_context(cafile=str(authority(project)))
    assert settings.tls_certificate is not None
    context = ssl.create_default_context(cafile=str(project.root / settings.tls_certificate))
    context.check_hostname = False  # the certificate itself is trusted, and its name need not be the address used here
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


# -- given files


def _given(project: Project, settings: Settings) -> tuple[bytes, bytes]:
    """Chain and key, as PEM.

    Raises:
        SettingsError: they are not there, or not what they should be.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    chain, key = (_read(project, settings, name) for name in ("tls_certificate", "tls_key"))
    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise _wrong("tls_certificate", "no certificate in PEM", "a file that begins with -----BEGIN CERTIFICATE") from None
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        why = "the key is encrypted" if isinstance(error, TypeError) else "no private key in PEM"
        raise _wrong("tls_key", why, "openssl pkey -in KEY -out PLAIN_KEY") from None
    if private.public_key() != leaf.public_key():
        raise _wrong("tls_key", "it is not the key of tls_certificate", "give the pair that belongs together")
    _require_strength(private)
    now = datetime.now(UTC)
    if leaf.not_valid_after_utc < now:
        raise _wrong("tls_certificate", f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d}", "renew it, then headrace up")
    if leaf.not_valid_before_utc > now:
        raise _wrong("tls_certificate", f"it begins on {leaf.not_valid_before_utc:%Y-%m-%d}", "look at this machine's clock")
    return chain, key


def _require_strength(key: PrivateKeyTypes) -> None:
    """
    Raises:
        SettingsError: Envoy would refuse such a key, and only its log would say so.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        said, serves = f"RSA of {key.key_size} bits", key.key_size >= LEAST_RSA_BITS
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        said, serves = f"of the curve {key.curve.name}", key.curve.name in CURVES
    else:
        said, serves = type(key).__name__, isinstance(key, ed25519.Ed25519PrivateKey)
    if not serves:
        hint = "a key of RSA with 2048 bits or more, P-256, P-384 or P-521"
        raise _wrong("tls_key", f"the key is {said}, which Envoy does not serve", hint)


def _read(project: Project, settings: Settings, name: str) -> bytes:
    path: Path = project.root / getattr(settings, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(name, f"{path} cannot be read ({error.strerror})", "correct the path, or the file's rights") from None


def _wrong(name: str, message: str, hint: str) -> SettingsError:
    return SettingsError(message, where=name, hint=hint)


# -- the project's own


def _own(project: Project, settings: Settings) -> tuple[bytes, bytes]:
    """Certificate and key, as PEM: those in use when they will do for a while, else new ones."""
    from cryptography import x509

    issuer, issuer_key = _authority(project)
    names = _names(settings)
    for path in sorted(project.tls.glob("door-*.pem")):
        found = x509.load_pem_x509_certificate(path.read_bytes())
        key = path.with_suffix(".key")
        if key.exists() and _lasts(found) and found.issuer == issuer.subject and _named(found) == names:
            try:
                found.verify_directly_issued_by(issuer)
            except Exception:  # noqa: S112 (of an earlier authority: any failure to verify means a new one)
                continue
            return path.read_bytes(), key.read_bytes()
    return _certificate(issuer, issuer_key, names)


def _authority(project: Project) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Certificate and key of the authority; made when it is not there or near its end."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key_path = project.tls / "authority.key"
    if authority(project).exists() and key_path.exists():
        found = x509.load_pem_x509_certificate(authority(project).read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == found.public_key() and _lasts(found):
            return found, key
    key = ec.generate_private_key(ec.SECP256R1())
    # Its name holds a part of its key: two authorities of one machine are then two to every client.
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
    subject = _name(f"Headrace authority {digest}")
    usage = {"digital_signature": False, "key_cert_sign": True, "crl_sign": True}
    made = (
        _builder(subject, subject, key, AUTHORITY_DAYS, usage)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_secret(key_path, _pem(key))
    write_text(authority(project), made.public_bytes(serialization.Encoding.PEM).decode())
    return made, key


def _certificate(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, names: frozenset[str]
) -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    usage = {"digital_signature": True, "key_cert_sign": False, "crl_sign": False}
    made = (
        _builder(_name("Headrace door"), issuer.subject, key, CERTIFICATE_DAYS, usage)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), _pem(key).encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, usage: dict[str, bool]
) -> x509.CertificateBuilder:
    from cryptography import x509

    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a client's clock may be a little late
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(**usage, **dict.fromkeys(rest, False)), critical=True)
    )


def _names(settings: Settings) -> frozenset[str]:
    """Under which clients may reach the door."""
    return frozenset({settings.host, "localhost", "127.0.0.1", "::1", socket.gethostname()} - {"0.0.0.0", "::"})  # noqa: S104


def _named(found: x509.Certificate) -> frozenset[str]:
    from cryptography import x509

    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(str(name.value) for name in names)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _lasts(found: x509.Certificate) -> bool:
    return found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
