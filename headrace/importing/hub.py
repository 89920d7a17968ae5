"""Fetches models from the Hugging Face hub, or from a server that speaks its protocol (HF_ENDPOINT), with its own client.

Weights are data: no code of a repository is downloaded or run, whatever its card says. A download that broke is resumed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import SourceError, SourceUnreachable, first_line, near_miss
from headrace.importing.formats import OF_MODELS, SUPPORTED
from headrace.importing.outputs import Labels

PREFERRED = ("model.onnx", "onnx/model.onnx", "model.skops")
"""Files that are taken where the address names none."""
TIMEOUT_SECONDS = 30.0
CONFIG = "config.json"
TRANSPORTS = ("httpx", "httpx2")
"""Packages whose errors the hub's client lets through, depending on its version."""
FORM = "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]"


@dataclass(frozen=True)
class Repository:
    """A revision of a repository of models."""

    name: str
    file: str | None
    revision: str | None


def parse(uri: str) -> Repository:
    """
    Raises:
        SourceError: the address is malformed.
    """
    known = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:/([^@?#]+))?(?:@([\w./-]+))?", uri)
    if known is None or ".." in uri:
        raise SourceError(f"{uri} is not the address of a model", where="model.source", hint=f"write {FORM}")
    return Repository(known[1], known[2], known[3])


class Hub:
    """A client of one repository. Downloads are kept in `cache`, where a broken one is resumed."""

    def __init__(self, uri: str, cache: Path) -> None:
        """
        Raises:
            SourceError: the address is malformed, or the repository, its revision or its file does not exist.
            SourceUnreachable: the server does not answer.
        """
        from huggingface_hub import HfApi

        self.uri, self._wanted = uri, parse(uri)
        endpoint = os.environ.get("HF_ENDPOINT") or None
        self._token: str | bool = os.environ.get("HF_TOKEN") or False
        self._endpoint = endpoint
        self._api = HfApi(endpoint=endpoint, token=self._token)
        name, revision = self._wanted.name, self._wanted.revision
        info: Any = self._call(lambda: self._api.model_info(name, revision=revision, timeout=TIMEOUT_SECONDS))
        self.revision = str(info.sha)
        self.names = sorted(str(one.rfilename) for one in info.siblings or [])
        self.licence = _licence(info)
        self._place = cache / name.replace("/", "--") / self.revision

    def model(self) -> Path:
        """Downloads the model, and returns its path.

        Raises:
            SourceError: the address names no file, and it is not clear which one is meant.
        """
        return self.download(self._wanted.file or self._choose())

    def path_of(self, file: Path) -> str:
        """The path of a downloaded file in the repository."""
        return file.resolve().relative_to(self._place.resolve()).as_posix()

    def labels(self) -> Labels | None:
        """The labels of the configuration beside the model, as `transformers` writes them."""
        import json

        if CONFIG not in self.names:
            return None
        try:
            found = json.loads(self.download(CONFIG).read_text(encoding="utf-8")).get("id2label")
            return [str(found[key]) for key in sorted(found, key=int)] if isinstance(found, dict) and len(found) > 1 else None
        except (ValueError, AttributeError):
            return None

    def download(self, name: str) -> Path:
        """Downloads one file of the revision; one that is there is not downloaded again.

        Raises:
            SourceError, SourceUnreachable: as for the constructor.
        """
        from huggingface_hub import hf_hub_download

        if name not in self.names:
            raise SourceError(
                f"{self._wanted.name} has no file {name!r}; {near_miss(name, self.names)}",
                where="model.source",
                hint=f"write {FORM}",
            )
        repository, revision, place = self._wanted.name, self.revision, self._place
        found: Any = self._call(
            lambda: hf_hub_download(
                repository,
                name,
                revision=revision,
                local_dir=place,
                endpoint=self._endpoint,
                token=self._token,
                etag_timeout=TIMEOUT_SECONDS,
            )
        )
        return Path(found)

    def _choose(self) -> str:
        for name in PREFERRED:
            if name in self.names:
                return name
        usable = [name for name in self.names if name.endswith(OF_MODELS)]
        if len(usable) == 1:
            return usable[0]
        if usable:
            raise SourceError(
                f"{self._wanted.name} has {len(usable)} models: {', '.join(usable[:10])}",
                where="model.source",
                hint=f"name one: hf://{self._wanted.name}/{usable[0]}",
            )
        raise SourceError(
            f"{self._wanted.name} has no model that can be imported; its files: {', '.join(self.names[:10]) or 'none'}",
            where="model.source",
            hint=f"supported are {SUPPORTED}; a folder of transformers becomes ONNX by: optimum-cli export onnx "
            f"--model {self._wanted.name} FOLDER",
        )

    def _call(self, call: Any) -> Any:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        try:
            return call()
        except (GatedRepoError, RepositoryNotFoundError) as error:
            token = "the token in HF_TOKEN may not read it" if self._token else "HF_TOKEN is not set"
            what = "needs permission" if isinstance(error, GatedRepoError) else "does not exist, or is private"
            raise SourceError(
                f"{self._wanted.name} {what}; {token}",
                where="model.source",
                hint="correct the address, or set HF_TOKEN to a token that may read it",
            ) from None
        except RevisionNotFoundError:
            raise SourceError(
                f"{self._wanted.name} has no revision {self._wanted.revision!r}", where="model.source", hint=f"write {FORM}"
            ) from None
        except LocalEntryNotFoundError as error:
            raise self._unreachable(error.__cause__ or error) from None
        except (EntryNotFoundError, HfHubHTTPError) as error:
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            raise SourceError(
                f"{self.uri} was refused: {f'status {status}' if status else first_line(error)}",
                where="model.source",
                hint="set HF_TOKEN to a token that may read it" if status in (401, 403) else "correct the address",
            ) from None
        except Exception as error:
            if not any(base.__module__.partition(".")[0] in TRANSPORTS for base in type(error).__mro__):
                raise
            raise self._unreachable(error) from None

    def _unreachable(self, error: BaseException) -> SourceUnreachable:
        return SourceUnreachable(
            f"{self.uri} cannot be fetched: {first_line(error)}",
            where="model.source",
            hint="check the network and HF_ENDPOINT, then run the command again; what has arrived is kept",
        )


def _licence(info: Any) -> str | None:
    card = getattr(info, "card_data", None)
    found = card.get("license") if card is not None and hasattr(card, "get") else None
    if not found:
        tags = [str(tag) for tag in getattr(info, "tags", None) or []]
        found = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found) if found else None
