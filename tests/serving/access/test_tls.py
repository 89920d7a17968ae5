"""The gateway's certificate: the project's authority, provided files and what can be wrong with them, real handshakes."""

from __future__ import annotations

import http.client
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from headrace.errors import SettingsError
from headrace.project import Project
from headrace.serving.access import tls
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.replicas import supervisor
from headrace.settings import Settings
from tests.ports import lease


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
SELF_SIGNED = Settings(tls="self_signed")


def write_pair(
    folder: Path, begins: int = -1, ends: int = 1, name: str = "models.example.com", key: Key | None = None
) -> tuple[Path, Path]:
    """A self-signed certificate that is valid between two days from now, and its key, by default of P-256."""
    key, now = key or ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    chain, private = folder / f"{name}{ends}.pem", folder / f"{name}{ends}.key"
    chain.write_bytes(certificate.public_bytes(encoding))
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return chain, private


def of_files(chain: Path, key: Path) -> Settings:
    return Settings(tls="files", tls_certificate=chain, tls_key=key)


def test_an_issued_certificate_is_kept_until_it_nears_its_end_or_the_host_changes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tls.prepare_certificate(project.using(SELF_SIGNED))
    assert tls.prepare_certificate(project.using(SELF_SIGNED)) == first
    other = tls.prepare_certificate(project.using(Settings(tls="self_signed", host="10.1.2.3")))
    assert other != first
    tls.remove_other_certificates(project, other)
    assert not first.chain.exists()
    authority = tls.authority(project).read_bytes()
    monkeypatch.setattr(tls, "RENEW_DAYS", tls.CERTIFICATE_DAYS + 1)
    assert tls.prepare_certificate(project.using(SELF_SIGNED)) not in (first, other)
    assert tls.authority(project).read_bytes() == authority, "clients keep their copy of the authority"


def test_private_keys_are_readable_by_this_user_only(project: Project) -> None:
    found = tls.prepare_certificate(project.using(SELF_SIGNED))
    for path in (found.key, project.tls / "authority.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(project.tls.stat().st_mode) == 0o700


def test_errors_about_provided_files_name_the_setting_and_give_a_hint(project: Project, tmp_path: Path) -> None:
    good, other, old, late = (
        write_pair(tmp_path, name=name, begins=begins, ends=ends)
        for name, begins, ends in [("good", -1, 9), ("other", -1, 9), ("old", -9, -1), ("late", 2, 9)]
    )
    weak = write_pair(tmp_path, name="weak", key=rsa.generate_private_key(65537, 1024))
    rare = write_pair(tmp_path, name="rare", key=ec.generate_private_key(ec.SECP256K1()))
    text = tmp_path / "text.pem"
    text.write_text("hello")
    expected = [
        ((tmp_path / "no.pem", good[1]), "tls_certificate", "cannot be read"),
        ((good[0], tmp_path / "no.key"), "tls_key", "cannot be read"),
        ((text, good[1]), "tls_certificate", "not a certificate"),
        ((good[0], text), "tls_key", "not a private key"),
        ((good[0], other[1]), "tls_key", "does not match tls_certificate"),
        (old, "tls_certificate", "expired on"),
        (late, "tls_certificate", "is not valid before"),
        (weak, "tls_key", "RSA, 1024 bits"),
        (rare, "tls_key", "curve secp256k1"),
    ]
    for files, where, message in expected:
        with pytest.raises(SettingsError, match=message) as caught:
            tls.prepare_certificate(project.using(of_files(*files)))
        assert (caught.value.where, bool(caught.value.hint)) == (where, True)
    found = tls.prepare_certificate(project.using(of_files(*good)))
    assert found.chain.read_bytes() == good[0].read_bytes()


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), *map(ec.generate_private_key, (ec.SECP384R1(), ec.SECP521R1()))]
)
def test_provided_keys_of_each_supported_type_work(running: tuple[Project, Settings], tmp_path: Path, key: Key) -> None:
    project, settings = running
    chain, private = write_pair(tmp_path, name="localhost", key=key)
    provided = settings.model_copy(update={"tls": "files", "tls_certificate": chain, "tls_key": private})
    envoy_process.start(project.using(provided))
    wait_until_shown(provided, ssl.create_default_context(cafile=str(chain)))
    envoy_process.start(project.using(settings))
    wait_until_shown(settings, trusting(project))


def test_an_invalid_certificate_leaves_the_gateway_as_it_was(running: tuple[Project, Settings], tmp_path: Path) -> None:
    project, settings = running
    chain, private = write_pair(tmp_path, ends=-1, begins=-2)
    provided = settings.model_copy(update={"tls": "files", "tls_certificate": chain, "tls_key": private})
    with pytest.raises(SettingsError, match="expired"):
        envoy_process.start(project.using(provided))
    gateway.reload_tokens(project.using(provided))  # as after a token is issued
    # as the watchdog does every few hours, with the settings that Envoy was started with
    gateway.renew_credentials(project.using(provided))
    wait_until_shown(settings, trusting(project))


# -- a real Envoy


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Settings]]:
    root = tmp_path_factory.mktemp("tls")
    (root / "recipes").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(gateway_port=ports[0], gateway_admin_port=ports[1], tls="self_signed", access="open")
        try:
            envoy_process.start(project.using(settings))
            yield project, settings
        finally:
            supervisor.shutdown(project, stop_seconds=2.0)


def handshake(settings: Settings, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", settings.gateway_port), timeout=10)
    return context.wrap_socket(raw, server_hostname=name)


def trusting(project: Project) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(tls.authority(project)))


def wait_until_shown(settings: Settings, context: ssl.SSLContext) -> None:
    """Waits until the gateway has a certificate that `context` trusts."""
    deadline = time.monotonic() + 10
    while True:
        try:
            handshake(settings, context).close()
            return
        except ssl.SSLCertVerificationError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_clients_that_trust_the_authority_connect_by_each_of_the_names(running: tuple[Project, Settings]) -> None:
    project, settings = running
    for name in ("127.0.0.1", "localhost"):
        url = f"https://{name}:{settings.gateway_port}/readyz"
        assert httpx.get(url, verify=trusting(project)).json() == {"ready": True}
    assert gateway.address(settings) == f"https://127.0.0.1:{settings.gateway_port}"
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{gateway.address(settings)}/readyz")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_supported_with_forward_secrecy(running: tuple[Project, Settings], version: ssl.TLSVersion) -> None:
    context = trusting(running[0])
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with handshake(running[1], context) as connection:
        cipher = connection.cipher()
        assert cipher is not None
        assert "GCM" in cipher[0] or "POLY1305" in cipher[0].upper()
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_old_versions_weak_ciphers_and_plain_text_are_refused(running: tuple[Project, Settings]) -> None:
    project, settings = running
    old = trusting(project)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        handshake(settings, old)
    weak = trusting(project)
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0")
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        handshake(settings, weak)
    plain = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=10)
    plain.request("GET", "/readyz")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()


def test_another_certificate_is_used_at_once_and_drops_no_connection(running: tuple[Project, Settings], tmp_path: Path) -> None:
    project, settings = running
    chain, key = write_pair(tmp_path)
    provided = settings.model_copy(update={"tls": "files", "tls_certificate": chain, "tls_key": key})
    with httpx.Client(base_url=gateway.address(settings), verify=trusting(project)) as kept:
        assert kept.get("/readyz").status_code == 200
        envoy_process.start(project.using(provided))
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"{gateway.address(provided)}/readyz", verify=tls.trust(project.using(provided)))
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert kept.get("/readyz").status_code == 200
