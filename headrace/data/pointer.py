"""What `data.dvc` and `dvc.lock` name, also in a clone without the data.

DVC keeps the list of the files of `data/` in its cache, and a clone has only the list's hash. Headrace therefore writes the
list into `data.dvc` too, in the section `meta`, which DVC keeps and does not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from headrace.errors import DataError
from headrace.files import write_with
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

SECTION = "headrace"


@dataclass(frozen=True)
class NamedFile:
    """A file of `data/` that a pointer names."""

    path: str
    """Relative to `data/`, for example `digits/0000-first.parquet`."""
    md5: str
    rows: int | None
    """None where the pointer does not say."""

    @property
    def folder(self) -> str:
        return self.path.partition("/")[0]

    def __str__(self) -> str:
        return self.path if self.rows is None else f"{self.path} ({self.rows:,} rows)"


def named_files(repo: Repo, out: Output | None, project: Project) -> list[NamedFile] | None:
    """Returns the files that `data.dvc` names; None if neither DVC's cache nor `data.dvc` has their list. Restores the list in
    the cache from `data.dvc`.

    Args:
        out: the output `data` of `data.dvc`; None if that file is missing.
    """
    if out is None or not out.hash_info:
        return []
    listed = {file.path: file for file in listed_files(project, out.hash_info.value)}
    tree = out.get_obj()
    if tree is None and listed:
        tree = _store_tree(repo, listed.values(), out.hash_info.value)
    if tree is None:
        return None
    paths = [("/".join(key), str(found.value)) for key, _, found in tree]
    return [NamedFile(path, md5, listed[path].rows if path in listed else None) for path, md5 in sorted(paths)]


def write_list(out: Output, rows: Mapping[str, int | None], project: Project) -> None:
    """Writes the list of files into `data.dvc`, unless it is there already.

    Args:
        rows: number of rows by path, relative to `data/`, where it is known.

    Raises:
        DiskFull: no space is left; the list is as before.
    """
    from ruamel.yaml import YAML

    tree = out.get_obj()
    files = {
        "/".join(key): {"md5": str(found.value), **({} if rows.get("/".join(key)) is None else {"rows": rows["/".join(key)]})}
        for key, _, found in sorted(tree, key=lambda entry: entry[0])
    }
    wanted = {"tree": str(out.hash_info.value), "files": files}
    path, editor = project.root / "data.dvc", YAML()
    content = editor.load(path)
    if (content.get("meta") or {}).get(SECTION) != wanted:
        content["meta"] = {**(content.get("meta") or {}), SECTION: wanted}
        write_with(path, lambda beside: editor.dump(content, beside))


def locked_files(project: Project) -> dict[str, int]:
    """Returns the number of files of each `data/<recipe>` that `dvc.lock` names."""
    try:
        stages = (yaml.safe_load((project.root / "dvc.lock").read_text(encoding="utf-8")) or {}).get("stages", {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):  # absent or damaged: DVC's own repair reports it
        return {}
    found: dict[str, int] = {}
    for stage in stages.values():
        for dependency in stage.get("deps") or []:
            top, _, folder = str(dependency.get("path")).partition("/")
            if top == "data" and folder and "nfiles" in dependency:
                found[folder] = int(dependency["nfiles"])
    return found


def out_of_reach(recipe_name: str, missing: Iterable[NamedFile | str]) -> DataError:
    """The error for data that pointers name and that is neither here nor in DVC's cache or remote."""
    named = [str(one) for one in missing]
    verb, it = ("is", "it") if len(named) == 1 else ("are", "them")
    return DataError(
        f"data/{recipe_name} is not complete on this machine: {', '.join(named)} {verb} named by data.dvc or dvc.lock, and "
        f"neither DVC's cache nor a remote has {it}",
        where=f"data/{recipe_name}",
        hint="dvc push where the data is, and dvc pull here (dvc remote add -d NAME PLACE names a remote); "
        "then the same command",
    )


def listed_files(project: Project, tree: str | None = None) -> list[NamedFile]:
    """Returns the list in `data.dvc`; with `tree`, only if it is that of the tree: `dvc add` by hand leaves the one before."""
    try:
        content: Any = yaml.safe_load((project.root / "data.dvc").read_text(encoding="utf-8"))
        found = content["meta"][SECTION]
        if tree not in (None, found["tree"]):
            return []
        return [NamedFile(path, str(file["md5"]), file.get("rows")) for path, file in found["files"].items()]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []


def _store_tree(repo: Repo, files: Iterable[NamedFile], wanted: str) -> Any:
    """Writes DVC's list of files to its cache, and returns it; None if the hash is another one."""
    from dvc_data.hashfile.tree import Tree

    tree = Tree.from_list([{"md5": file.md5, "relpath": file.path} for file in files], hash_name="md5")
    tree.digest()
    if tree.hash_info.value != wanted:
        return None
    repo.cache.local.add(tree.path, tree.fs, tree.oid, hardlink=False)
    return tree
