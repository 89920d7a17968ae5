"""Every source with its real client: pip and npm against files and a registry on loopback, S3 against moto's server."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.data.sources import packages, sdists
from headrace.data.sources.fetch import fetch, fetch_all
from headrace.errors import SourceError
from headrace.project import Project
from headrace.scaffold.tables import Reading, locate
from headrace.settings import Settings
from tests.web_servers import npm_package, serving

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def redirecting(target: str) -> Iterator[str]:
    """An HTTP server on loopback that answers with a redirect to `target`; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", target)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_path_is_relative_to_the_project_and_used_in_place(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CONTENT)
    assert fetch("t.csv", SHA256, tmp_path / "cache", tmp_path) == tmp_path / "t.csv"
    assert fetch(f"file://{tmp_path}/t.csv", None, tmp_path / "cache", Path("/")) == tmp_path / "t.csv"
    assert not (tmp_path / "cache").exists()


def test_a_missing_path_suggests_a_close_match(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(CONTENT)
    with pytest.raises(SourceError, match=r"did you mean 'train\.csv'"):
        fetch("trian.csv", None, tmp_path / "cache", tmp_path)


def test_a_changed_sha256_is_reported_with_both_values_and_the_field(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CONTENT)
    with pytest.raises(SourceError) as caught:
        fetch("t.csv", "0" * 64, tmp_path / "cache", tmp_path)
    assert SHA256 in str(caught.value) and "0" * 64 in str(caught.value) and caught.value.where == "data.sha256"


def test_an_unknown_scheme_suggests_a_close_match(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="did you mean 'pypi'"):
        fetch("pypy://x==1/t.csv", None, tmp_path, tmp_path)


def test_http_is_fetched_once_when_its_sha256_is_known(tmp_path: Path) -> None:
    with serving({"/t.csv": CONTENT}) as (address, asked):
        seen: list[tuple[int, int | None]] = []
        first = fetch(f"{address}/t.csv", SHA256, tmp_path, tmp_path, lambda done, total: seen.append((done, total)))
        second = fetch(f"{address}/t.csv", SHA256, tmp_path, tmp_path)
    assert first == second and first.read_bytes() == CONTENT and first.name.endswith("t.csv")
    assert asked == ["/t.csv"] and seen[-1] == (len(CONTENT), len(CONTENT))


def test_http_without_sha256_is_fetched_each_time(tmp_path: Path) -> None:
    with serving({"/t.csv": CONTENT}) as (address, asked):
        for _ in range(2):
            fetch(f"{address}/t.csv", None, tmp_path, tmp_path)
    assert len(asked) == 2


def test_a_refused_download_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with serving({"/t.csv": b"something else"}) as (address, _), pytest.raises(SourceError, match="sha256"):
        fetch(f"{address}/t.csv", SHA256, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_http_error_has_the_status(tmp_path: Path) -> None:
    with serving({}) as (address, _), pytest.raises(SourceError, match="404"):
        fetch(f"{address}/t.csv", None, tmp_path, tmp_path)


def test_passwords_and_signatures_are_not_in_messages(tmp_path: Path) -> None:
    with serving({}) as (address, _), pytest.raises(SourceError) as caught:
        fetch(f"{address.replace('://', '://me:hunter2@')}/t.csv?signature=abc", None, tmp_path, tmp_path)
    assert "404" in str(caught.value) and "hunter2" not in str(caught.value) and "abc" not in str(caught.value)


def test_an_unreachable_server_is_a_source_error(tmp_path: Path) -> None:
    with serving({}) as (address, _):
        pass
    with pytest.raises(SourceError, match="cannot be fetched"):
        fetch(f"{address}/t.csv", None, tmp_path, tmp_path)


def test_pip_fetches_a_member_of_a_wheel_with_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "tinydata-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinydata/t.csv", CONTENT)
        wheel.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        wheel.writestr("tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tinydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    path = fetch("pypi://tinydata==1.0/tinydata/t.csv", SHA256, tmp_path / "cache", tmp_path)
    assert path.read_bytes() == CONTENT
    shutil.rmtree(links)
    assert fetch("pypi://tinydata==1.0/tinydata/t.csv", SHA256, tmp_path / "cache", tmp_path) == path
    with pytest.raises(SourceError, match=r"tinydata==2\.0"):
        fetch("pypi://tinydata==2.0/tinydata/t.csv", None, tmp_path / "cache", tmp_path)


def sdist(ran: Path) -> bytes:
    """An archive whose build backend writes the file `ran`."""
    backend = f"open({str(ran)!r}, 'w').close()\n"
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: proof-pkg\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend,
        "setup.py": backend,
        "data.csv": CONTENT.decode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"proof_pkg-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def test_no_code_of_a_package_runs_whether_a_folder_or_an_index_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, links = tmp_path / "ran", tmp_path / "links"
    links.mkdir()
    (links / "proof_pkg-1.0.tar.gz").write_bytes(sdist(ran))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    uri = "pypi://Proof.Pkg==1.0/data.csv"
    assert fetch(uri, SHA256, tmp_path / "folder", tmp_path).read_bytes() == CONTENT
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    archive = sdist(ran)
    answers = {"/files/proof_pkg-1.0.tar.gz": archive}
    with serving(answers) as (address, asked):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        digest = hashlib.sha256(archive).hexdigest()
        page = '<a href="../../files/proof_pkg-1.0.tar.gz#sha256={}">proof_pkg-1.0.tar.gz</a>'
        answers["/simple/proof-pkg/"] = page.format(digest).encode()
        assert fetch(uri, SHA256, tmp_path / "index", tmp_path).read_bytes() == CONTENT
        assert "/files/proof_pkg-1.0.tar.gz" in asked
        answers["/simple/proof-pkg/"] = page.format("0" * 64).encode()
        with pytest.raises(SourceError, match=f"sha256 {digest}, and the package index says 0000"):
            fetch(uri, SHA256, tmp_path / "damaged", tmp_path)
    assert not ran.exists()


def test_pip_files_and_variables_configure_the_download_of_an_sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one.example/simple\ntrusted-host = plain.example:8080\n"
        "[download]\nextra-index-url =\n    https://two.example/simple\n    https://three.example/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    found = sdists.pip_configuration(packages.pip_command())
    assert found.indexes == tuple(f"https://{name}.example/simple" for name in ("one", "two", "three"))
    assert (found.trusted, found.links) == ({"plain.example"}, ())
    monkeypatch.setenv("PIP_INDEX_URL", "https://four.example/simple")
    assert sdists.pip_configuration(packages.pip_command()).indexes[0] == "https://four.example/simple"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_INDEX_URL")
    (default,) = sdists.pip_configuration(packages.pip_command()).indexes
    assert default.startswith("https://") and default.endswith("/simple")


def test_a_redirect_to_an_address_without_encryption_needs_a_sha256(tmp_path: Path) -> None:
    """0.0.0.0 reaches this machine, and is not one of the names of loopback that may be asked without encryption."""
    with serving({"/t.csv": CONTENT}) as (plain, asked):
        target = plain.replace("127.0.0.1", "0.0.0.0") + "/t.csv"
        with redirecting(target) as start:
            with pytest.raises(SourceError, match=r"redirects to http://0\.0\.0\.0.* is not encrypted") as caught:
                fetch(f"{start}/t.csv", None, tmp_path, tmp_path)
            assert asked == [] and "sha256" in str(caught.value.hint)
            assert fetch(f"{start}/t.csv", SHA256, tmp_path, tmp_path).read_bytes() == CONTENT


def test_a_download_above_the_limit_is_ended_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    with serving({"/t.csv": CONTENT}) as (address, _):
        with pytest.raises(SourceError, match="has 8 bytes, more than the limit of 7") as caught:
            fetch_all([(f"{address}/t.csv", None)], cache, tmp_path, None, 7)
        assert "max_source_bytes" in str(caught.value)
        assert fetch_all([(f"{address}/t.csv", None)], cache, tmp_path, None, 8)[0].read_bytes() == CONTENT
        project = Project(tmp_path, Settings(max_source_bytes=7))
        with pytest.raises(SourceError, match="has 8 bytes, more than the limit of 7"):
            locate(f"{address.upper()}/t.csv", project, Reading())
    wheel = wheel_of(tmp_path / "links", "py3-none-any", monkeypatch)
    uri = ("pypi://tinydata==1.0/tinydata/t.csv", None)
    with pytest.raises(SourceError, match=r"tinydata==1\.0 has at least"):
        fetch_all([uri], cache, tmp_path, None, wheel.stat().st_size - 1)
    assert len(list(cache.iterdir())) == 1, "the first download alone"


WHEEL = {"tinydata/a.py": b"A = 1\n", "tinydata/sub/b.py": b"B = 2\n", "tinydata/t.csv": CONTENT}


def wheel_of(links: Path, tags: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds without a network."""
    links.mkdir(exist_ok=True)
    about = {
        "METADATA": b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
        "WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n".encode(),
        "RECORD": b"",
    }
    path = links / f"tinydata-1.0-{tags}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**WHEEL, **{f"tinydata-1.0.dist-info/{n}": c for n, c in about.items()}}.items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


def test_files_of_one_package_are_downloaded_once_and_a_pattern_as_a_zip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_of(tmp_path / "links", "py3-none-any", monkeypatch)
    calls: list[str] = []
    once = packages.fetch_members
    monkeypatch.setattr(packages, "fetch_members", lambda p, wanted, tell: (calls.append(str(p)), once(p, wanted, tell)))
    python = "".join(f"{hashlib.sha256(WHEEL[n]).hexdigest()}  {n}\n" for n in ("tinydata/a.py", "tinydata/sub/b.py"))
    wanted = [
        ("pypi://tinydata==1.0/tinydata/t.csv", SHA256),
        ("pypi://tinydata==1.0/tinydata/*.py", hashlib.sha256(python.encode()).hexdigest()),
    ]
    table, packed = fetch_all(wanted, tmp_path / "cache", tmp_path)
    with zipfile.ZipFile(packed) as files:
        assert files.namelist() == ["tinydata/a.py", "tinydata/sub/b.py"]
    assert table.read_bytes() == CONTENT and calls == ["pypi://tinydata==1.0"]
    shutil.rmtree(tmp_path / "links")
    assert fetch_all(wanted, tmp_path / "cache", tmp_path) == [table, packed]


def test_no_file_of_a_package_is_kept_when_one_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_of(tmp_path / "links", "py3-none-any", monkeypatch)
    wanted = [("pypi://tinydata==1.0/tinydata/t.csv", SHA256), ("pypi://tinydata==1.0/tinydata/a.py", "0" * 64)]
    with pytest.raises(SourceError, match=r"a\.py has sha256"):
        fetch_all(wanted, tmp_path / "cache", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_of_another_interpreter_is_chosen_by_its_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = "cp36-cp36m-win_amd64"
    wheel_of(tmp_path / "links", tags, monkeypatch)
    uri = "pypi://tinydata==1.0/tinydata/t.csv"
    with pytest.raises(SourceError, match="cannot be fetched"):
        fetch(uri, None, tmp_path / "cache", tmp_path)
    assert fetch(f"{uri}?wheel={tags}", SHA256, tmp_path / "cache", tmp_path).read_bytes() == CONTENT
    with pytest.raises(SourceError, match="invalid tags of a wheel: 'py38'"):
        fetch(f"{uri}?wheel=py38", None, tmp_path / "cache", tmp_path)


def test_a_pattern_of_local_files_follows_them(tmp_path: Path) -> None:
    texts = tmp_path / "project" / "texts"
    texts.mkdir(parents=True)
    (texts / "b.txt").write_text("two")
    (texts / "a.txt").write_text("one")
    (texts / "a.md").write_text("no")
    root = tmp_path / "project"

    def found(uri: str) -> dict[str, bytes]:
        with zipfile.ZipFile(fetch(uri, None, tmp_path / "cache", root)) as files:
            return {name: files.read(name) for name in files.namelist()}

    assert found("texts/*.txt") == {"texts/a.txt": b"one", "texts/b.txt": b"two"}
    (texts / "c.txt").write_text("three")
    assert list(found(f"file://{texts}/*.txt")) == list(found("texts/*.txt")) == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]
    with pytest.raises(SourceError, match=r"no file matches texts/\*\.csv"):
        found("texts/*.csv")


def test_a_pattern_on_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a server cannot list files"):
        fetch("https://127.0.0.1:1/*.csv", None, tmp_path, tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_fetches_a_member_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with npm_package("tinydata", {"t.csv": CONTENT}, tmp_path / "npm", monkeypatch):
        path = fetch("npm://tinydata@1.0.0/package/t.csv", SHA256, tmp_path / "cache", tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket `lake` with `t.csv`, on moto's server: the real protocol on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        client.put_object(Bucket="lake", Key="in/t.csv", Body=CONTENT)
        yield
    finally:
        server.stop()


def test_s3_is_read_with_the_environments_credentials(tmp_path: Path, s3: None) -> None:
    assert fetch("s3://lake/in/t.csv", SHA256, tmp_path, tmp_path).read_bytes() == CONTENT
    assert fetch("S3://lake/in/t.csv", None, tmp_path, tmp_path).read_bytes() == CONTENT
    with pytest.raises(SourceError, match=r"s3://lake/in/t\.csv has 8 bytes, more than the limit of 7"):
        fetch_all([("s3://lake/in/t.csv", None)], tmp_path, tmp_path, None, 7)
    with pytest.raises(SourceError, match="does not exist"):
        fetch("s3://lake/in/gone.csv", None, tmp_path, tmp_path)
