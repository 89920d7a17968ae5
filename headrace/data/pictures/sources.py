"""The files of a source of pictures on this machine, and a hash of their content that is quick to compute again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.console import bar
from headrace.data.pictures.checks import is_picture
from headrace.data.pictures.containers import Folder, is_archive
from headrace.data.pictures.listing import Listing, list_pictures
from headrace.data.sources.addresses import is_local, local_file, local_files
from headrace.data.sources.archives import is_pattern
from headrace.data.sources.fetch import content_sha256, fetch, fetch_all
from headrace.data.sources.packages import Progress
from headrace.errors import SourceError
from headrace.files import read_cached_json, write_json
from headrace.recipe.pictures import PATH

if TYPE_CHECKING:
    from headrace.project import Project
    from headrace.recipe.data import SourceFile
    from headrace.recipe.recipe import Recipe


def listings_of(recipe: Recipe, project: Project, cache: Path, progress: Progress | None = None) -> list[Listing]:
    """Fetches the source, where it is elsewhere, and lists its pictures.

    Raises:
        SourceError, DiskFull: as `fetch`.
        DataError: as `list_pictures`.
    """
    data = recipe.data
    files = [file for file in [*data.files, *data.picture_files] if file is not None]
    remote = [(file.uri, file.sha256) for file in files if not _is_folder(file, project)]
    fetched = dict(
        zip(remote, fetch_all(remote, cache, project.root, progress, project.settings.max_source_bytes), strict=True)
        if remote
        else ()
    )

    def place(file: SourceFile) -> Path:
        if (file.uri, file.sha256) in fetched:
            return fetched[file.uri, file.sha256]
        folder = local_file(file.uri, project.root)
        if file.sha256 is not None and (found := _Hashes(recipe, project).of_folder(folder)) != file.sha256:
            raise SourceError(
                f"the pictures in {file.uri} have sha256 {found}, and the recipe expects {file.sha256}",
                where="data.sha256",
                hint=f"if the new pictures are the ones you want, write `sha256: {found}`; otherwise restore the old ones",
            )
        return folder

    pairs = zip(data.files, data.picture_files, strict=True)
    return [list_pictures(place(file), data, file.part, place(other) if other else None) for file, other in pairs]


def _is_folder(file: SourceFile, project: Project) -> bool:
    return is_local(file.uri) and not is_pattern(file.uri) and local_file(file.uri, project.root).is_dir()


def contents_of(recipe: Recipe, project: Project, cache: Path) -> list[str]:
    """Identifies the content of each file of the source: a sha256, or the address when that is all that is known. Pictures in
    folders are hashed once, and again when their size or time has changed.

    Raises:
        SourceError: a local source is missing.
    """
    hashes = _Hashes(recipe, project)
    found = []
    for file, other in zip(recipe.data.files, recipe.data.picture_files, strict=True):
        found.append(_content(file, hashes, cache, project))
        if other is not None:
            found.append(_content(other, hashes, cache, project))
        elif _has_pictures_beside(file, recipe, project):
            listing = list_pictures(local_file(file.uri, project.root), recipe.data, file.part, None)
            found.append(hashes.of(listing.container.place, listing.rows[PATH].to_pylist()))
    hashes.keep()
    return found


def _content(file: SourceFile, hashes: _Hashes, cache: Path, project: Project) -> str:
    if _is_folder(file, project):
        return hashes.of_folder(local_file(file.uri, project.root))
    if file.sha256 is not None or not is_local(file.uri):
        return file.sha256 or file.uri
    return content_sha256(fetch(file.uri, None, cache, project.root), file.uri)


def _has_pictures_beside(file: SourceFile, recipe: Recipe, project: Project) -> bool:
    """Returns whether a table names pictures in its own folder."""
    pictures = recipe.data.pictures
    is_table = pictures is not None and pictures.path is not None and pictures.files is None and is_local(file.uri)
    return is_table and not is_pattern(file.uri) and not is_archive(local_file(file.uri, project.root))


def keep_hashes(recipe: Recipe, project: Project, found: dict[str, str]) -> None:
    """Stores the sha256 of files that were just read, by path, so that `contents_of` does not read them again."""
    hashes = _Hashes(recipe, project)
    hashes.known |= {path: [*_state(Path(path)), sha256] for path, sha256 in found.items()}
    hashes.changed = True
    hashes.keep()


def local_inputs(recipe: Recipe, project: Project) -> Iterator[Path]:
    """Yields the local files that the pictures of a recipe come from; those that a table names as the stored data has them."""
    import pyarrow.parquet as pq

    from headrace.data.tables import batch_files

    for file in [*recipe.data.files, *recipe.data.picture_files]:
        if file is None or not is_local(file.uri):
            continue
        if _is_folder(file, project):
            folder = Folder(local_file(file.uri, project.root))
            yield from (folder.place / name for name in folder.names() if is_picture(name))
            continue
        yield from local_files(file.uri, project.root)
        if _has_pictures_beside(file, recipe, project):
            for batch in batch_files(project, recipe.name)[:1]:
                paths = pq.read_table(batch, columns=[PATH])[PATH].to_pylist()
                yield from (local_file(file.uri, project.root).parent / path for path in paths)


class _Hashes:
    """The sha256 of files, kept with their size and time in a file of the project."""

    def __init__(self, recipe: Recipe, project: Project) -> None:
        self._file = project.state / "cache" / "pictures" / f"{recipe.name}.json"
        self.known: dict[str, list[int | str]] = read_cached_json(self._file) or {}
        self.changed = False

    def of_folder(self, folder: Path) -> str:
        """Returns the sha256 of what `sha256sum` prints for the pictures of a folder, sorted by path."""
        return self.of(folder, [name for name in Folder(folder).names() if is_picture(name)])

    def of(self, folder: Path, names: Iterable[str]) -> str:
        digest = hashlib.sha256()
        wanted = sorted(set(names))
        with bar(f"hashing {folder.name}", len(wanted)) as progress:
            for i, name in enumerate(wanted):
                digest.update(f"{self._sha256(folder / name)}  {name}\n".encode())
                progress.update(i + 1)
        return digest.hexdigest()

    def keep(self) -> None:
        if self.changed:
            write_json(self._file, self.known)

    def _sha256(self, path: Path) -> str:
        state = _state(path)
        known = self.known.get(str(path))
        if known is not None and tuple(known[:2]) == state:
            return str(known[2])
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return "missing"
        self.known[str(path)] = [*state, found]
        self.changed = True
        return found


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
