"""The gateway's TLS certificate: issued by an authority of the project, or provided as files. Clients trust `authority.pem`."""

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
"""A certificate that expires sooner than this is replaced."""
CIPHERS = [
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES256-GCM-SHA384")
    for kind in ("ECDSA", "RSA")
]
"""For TLS 1.2: forward secrecy and authenticated encryption (RFC 9325, 4.2). TLS 1.3 has no others."""

MIN_RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""P-256, P-384 and P-521 under OpenSSL's names."""


@dataclass(frozen=True)
class Certificate:
    """Two PEM files that Envoy reads. Each certificate has its own pair, so that chain and key always match."""

    chain: Path
    key: Path


def prepare_certificate(project: Project) -> Certificate:
    """Returns the gateway's certificate: the provided one, checked, or one that is issued and renewed here.

    Raises:
        SettingsError: a provided file is missing, not PEM or expired, or the key is weak or does not match.
    """
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tls.lock"):
        chain, key = _provided(project) if project.settings.tls == "files" else _issued(project)
        name = f"gateway-{hashlib.sha256(chain).hexdigest()[:12]}"
        found = Certificate(project.tls / f"{name}.pem", project.tls / f"{name}.key")
        if not (found.chain.exists() and found.key.exists()):
            write_secret(found.key, key.decode())
            write_text(found.chain, chain.decode())
        return found


def remove_other_certificates(project: Project, certificate: Certificate) -> None:
    """Removes earlier certificates of the gateway, once nothing refers to them."""
    for path in project.tls.iterdir():
        if path not in (certificate.chain, certificate.key) and not path.name.startswith("authority."):
            path.unlink(missing_ok=True)


def authority(project: Project) -> Path:
    """The certificate that clients trust, for `tls = "self_signed"`."""
    return project.tls / "authority.pem"


def trust(project: Project) -> ssl.SSLContext | bool:
    """The `verify` argument of httpx for calls to the gateway: trusts the project's authority, or the provided certificate."""
    if project.settings.tls == "off":
        return True
    if project.settings.tls == "self_signed":
        if not authority(project).exists():  # the gateway has never been up
            return True
        return ssl.create_default_context(cafile=str(authority(project)))
    assert project.settings.tls_certificate is not None
    context = ssl.create_default_context(cafile=str(project.root / project.settings.tls_certificate))
    context.check_hostname = False  # the certificate itself is trusted, whatever name it is for
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


# -- provided files


def _provided(project: Project) -> tuple[bytes, bytes]:
    """Chain and key, as PEM.

    Raises:
        SettingsError: a file is missing or invalid.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    chain, key = (_read(project, name) for name in ("tls_certificate", "tls_key"))
    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise _wrong(
            "tls_certificate", "not a certificate in PEM format", "a file that begins with -----BEGIN CERTIFICATE"
        ) from None
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        why = "the key is encrypted" if isinstance(error, TypeError) else "not a private key in PEM format"
        raise _wrong("tls_key", why, "openssl pkey -in KEY -out PLAIN_KEY") from None
    if private.public_key() != leaf.public_key():
        raise _wrong("tls_key", "it does not match tls_certificate", "set tls_certificate and tls_key to a matching pair")
    _require_strength(private)
    now = datetime.now(UTC)
    if leaf.not_valid_after_utc < now:
        raise _wrong("tls_certificate", f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d}", "renew it, then headrace up")
    if leaf.not_valid_before_utc > now:
        raise _wrong(
            "tls_certificate", f"it is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}", "check this machine's clock"
        )
    return chain, key


def _require_strength(key: PrivateKeyTypes) -> None:
    """
    Raises:
        SettingsError: Envoy would reject this key, with a message in its log only.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        found, is_supported = f"RSA, {key.key_size} bits", key.key_size >= MIN_RSA_BITS
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found, is_supported = f"curve {key.curve.name}", key.curve.name in CURVES
    else:
        found, is_supported = type(key).__name__, isinstance(key, ed25519.Ed25519PrivateKey)
    if not is_supported:
        hint = "use an RSA key of 2048 bits or more, or P-256, P-384 or P-521"
        raise _wrong("tls_key", f"Envoy does not support this key ({found})", hint)


def _read(project: Project, name: str) -> bytes:
    path: Path = project.root / getattr(project.settings, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(name, f"{path} cannot be read ({error.strerror})", "correct the path or the file's permissions") from None


def _wrong(name: str, message: str, hint: str) -> SettingsError:
    return SettingsError(message, where=name, hint=hint)


# -- issued by the project's authority


def _issued(project: Project) -> tuple[bytes, bytes]:
    """Certificate and key, as PEM: those in use if they stay valid for a while, otherwise new ones."""
    from cryptography import x509

    issuer, issuer_key = _authority(project)
    names = _names(project.settings)
    for path in sorted(project.tls.glob("gateway-*.pem")):
        found = x509.load_pem_x509_certificate(path.read_bytes())
        key = path.with_suffix(".key")
        if key.exists() and _is_long_valid(found) and found.issuer == issuer.subject and _names_in(found) == names:
            try:
                found.verify_directly_issued_by(issuer)
            except Exception:  # noqa: S112 (issued by an earlier authority: any failure to verify means a new certificate)
                continue
            return path.read_bytes(), key.read_bytes()
    return _certificate(issuer, issuer_key, names)


def _authority(project: Project) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Certificate and key of the authority; made when it is missing or near its end."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key_path = project.tls / "authority.key"
    if authority(project).exists() and key_path.exists():
        found = x509.load_pem_x509_certificate(authority(project).read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == found.public_key() and _is_long_valid(found):
            return found, key
    key = ec.generate_private_key(ec.SECP256R1())
    # The name has a part of the key's digest, so that clients can tell two authorities of one machine apart.
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
        _builder(_name("Headrace gateway"), issuer.subject, key, CERTIFICATE_DAYS, usage)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative_name(name) for name in sorted(names)]), critical=False)
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
    """Host names and addresses by which clients reach the gateway."""
    return frozenset({settings.host, "localhost", "127.0.0.1", "::1", socket.gethostname()} - {"0.0.0.0", "::"})  # noqa: S104


def _names_in(found: x509.Certificate) -> frozenset[str]:
    from cryptography import x509

    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(str(name.value) for name in names)


def _alternative_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_long_valid(found: x509.Certificate) -> bool:
    return found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
