"""Downloads the source archive (sdist) of a package version as a plain file, from the indexes that pip is configured with.

pip itself runs the build backend of an sdist, which is code of the package, even if it only has to download it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from headrace.data.sources.addresses import redacted
from headrace.data.sources.remote import from_http, is_loopback_host
from headrace.errors import SourceError, SourceUnreachable

ENDINGS = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz")
PAGE_SECONDS = 60.0
HTML = "application/vnd.pypi.simple.v1+html, text/html;q=0.5"


@dataclass(frozen=True)
class PipConfiguration:
    """What pip is configured with, in its files and its environment variables."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]
    """Pages and folders with archives (`find-links`)."""
    trusted: frozenset[str]
    """Hosts that may be asked without TLS, or with a certificate that cannot be verified."""
    certificates: str | None
    proxy: str | None

    def tls(self, host: str) -> ssl.SSLContext | bool:
        """The `verify` argument of httpx for a host."""
        if host in self.trusted:
            return False
        return ssl.create_default_context(cafile=self.certificates) if self.certificates else True


def download(name: str, version: str, pip: Sequence[str], folder: Path, progress: Callable[[int, int | None], None]) -> bool:
    """Downloads the sdist of `name` in `version` into `folder`, and returns whether an index has one.

    Raises:
        SourceError: it cannot be downloaded, or its hash is not the one in the index.
    """
    configuration = pip_configuration(pip)
    found = {name_of(url): url for url in reversed(list(_links(configuration, name))) if _is_sdist(url, name, version)}
    for ending in ENDINGS:
        for file, url in found.items():
            if file.endswith(ending):
                _download(url, folder / file, configuration, progress)
                return True
    return False


def pip_configuration(pip: Sequence[str]) -> PipConfiguration:
    """Asks pip for its configuration.

    Args:
        pip: the command of pip.
    """
    values: dict[str, str] = {}
    lines = _output([*pip, "config", "list"]).splitlines()
    for section in ("global", "download", ":env:"):  # as pip: the later ones take precedence
        for line in lines:
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                with suppress(ValueError, SyntaxError):
                    values[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    has_index = values.get("no-index", "0").lower() in ("0", "false", "no", "off", "")
    indexes = [values.get("index-url") or _default_index(pip), *values.get("extra-index-url", "").split()] if has_index else []
    return PipConfiguration(
        tuple(indexes),
        tuple(values.get("find-links", "").split()),
        frozenset(host.partition(":")[0] for host in values.get("trusted-host", "").split()),
        values.get("cert"),
        values.get("proxy"),
    )


def name_of(url: str) -> str:
    """The file name at the end of an address."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


def _default_index(pip: Sequence[str]) -> str:
    found = re.search(r"--index-url <url>.*?\(default\s+(\S+?)\)", _output([*pip, "download", "--help"]), re.DOTALL)
    return found[1] if found else ""


def _output(command: Sequence[str]) -> str:
    # pip breaks lines at the width of the terminal
    environment = {**os.environ, "COLUMNS": "500", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    return done.stdout


def _links(configuration: PipConfiguration, name: str) -> Iterator[str]:
    """Addresses of all archives of a package, with the hash in the fragment where the index gives one."""
    for place in configuration.links:
        path = Path(_path(place) or place).expanduser()
        if path.is_dir():
            yield from (file.resolve().as_uri() for file in sorted(path.iterdir()))
        elif path.is_file():
            yield from _anchors(path.read_text(errors="replace"), path.resolve().as_uri())
        elif "://" in place:
            yield from _page(place, configuration)
    for index in configuration.indexes:
        page = f"{index.rstrip('/')}/{_normalized(name)}/"
        if (folder := _path(page)) is None:
            yield from _page(page, configuration)
        elif Path(folder, "index.html").is_file():
            yield from _anchors(Path(folder, "index.html").read_text(errors="replace"), page)


def _page(url: str, configuration: PipConfiguration) -> list[str]:
    """The links of a page of an index; none where the index does not know the package."""
    import httpx

    host = urlsplit(url).hostname or ""
    if not _is_secure(url, configuration):
        return []  # as pip does
    try:
        with httpx.Client(
            verify=configuration.tls(host), proxy=configuration.proxy, follow_redirects=True, timeout=PAGE_SECONDS
        ) as client:
            reply = client.get(url, headers={"accept": HTML})
            if reply.status_code in (401, 403, 404):
                return []
            reply.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceUnreachable(
            f"the package index {redacted(url)} cannot be read: {error or type(error).__name__}",
            where="data.source",
            hint="check the network and pip's configuration (pip config list), then run the same command",
        ) from None
    if not all(_is_secure(str(one.url), configuration) for one in (*reply.history, reply)):
        return []
    return _anchors(reply.text, str(reply.url))


def _is_secure(url: str, configuration: PipConfiguration) -> bool:
    host = urlsplit(url).hostname or ""
    return url.startswith("https:") or host in configuration.trusted or is_loopback_host(host)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.addresses += [value for name, value in attrs if name == "href" and value]


def _anchors(page: str, url: str) -> list[str]:
    parser = _Anchors()
    parser.feed(page)
    return [urljoin(url, address) for address in parser.addresses]


def _is_sdist(url: str, name: str, version: str) -> bool:
    file = name_of(url)
    stem = next((file.removesuffix(ending) for ending in ENDINGS if file.endswith(ending)), "")
    places = [place for place, character in enumerate(stem) if character == "-"]
    return any((_normalized(stem[:p]), _plain(stem[p + 1 :])) == (_normalized(name), _plain(version)) for p in places)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _plain(version: str) -> str:
    """A version without trailing zeros: 1.0 and 1.0.0 are equal."""
    return re.sub(r"(\.0)+$", "", version.lower().replace("_", "-"))


def _path(url: str) -> str | None:
    """The path of a `file:` address, else None."""
    return url2pathname(urlsplit(url).path) if url.startswith("file:") else None


def _download(url: str, to: Path, configuration: PipConfiguration, progress: Callable[[int, int | None], None]) -> None:
    address, fragment = urldefrag(url)
    path = _path(address)
    if path is not None:
        shutil.copyfile(path, to)
    elif _is_secure(address, configuration):
        host = urlsplit(address).hostname or ""
        trusted = host in configuration.trusted
        from_http(address, None, to, progress, verify=configuration.tls(host), proxy=configuration.proxy, allow_plain=trusted)
    else:
        raise SourceError(
            f"{redacted(address)} is not encrypted", where="data.source", hint="use an index whose files are at https://"
        )
    found = re.fullmatch(r"(sha256|sha384|sha512)=([0-9a-f]+)", fragment)
    if found is not None:
        with to.open("rb") as file:
            digest = hashlib.file_digest(file, found[1]).hexdigest()
        if digest != found[2]:
            raise SourceError(
                f"{to.name} has {found[1]} {digest}, and the package index says {found[2]}",
                where="data.source",
                hint="run the command again; if it fails again, the index or what is between it and this machine is damaged",
            )
