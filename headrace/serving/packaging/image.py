"""Builds container images: a serving base with all packages, built once, and one small layer for each bento."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.packaging import sbom
from headrace.serving.packaging.bento import Bento
from headrace.serving.packaging.code_files import REQUIREMENTS, SERVING, short_digest
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.wheelhouse import is_current
from headrace.settings import Settings
from headrace.tracking.artifact import LANGUAGE_MODEL

CREATED = re.compile(rb"creation_time: '[^']*'")
FIXED_TIME = b"creation_time: '1970-01-01T00:00:00+00:00'"
IN_IMAGE = "opt/bento"
LISTENS = "headrace.listens"
"""Label of images whose server can listen on a Unix socket."""


@dataclass(frozen=True)
class Image:
    """A local image. `digest` is its id on the engine."""

    tag: str
    digest: str
    size_bytes: int


def build_image(project: Project, bento: Bento) -> Image:
    """Builds the image that serves `bento`, or finds it. With a wheelhouse, no network is used.

    Equal bentos, serving files and base images have the same tag, and the bento's layer is reproduced byte for byte. The
    image's id differs, since the engine writes the time of the build into it.

    Raises:
        EngineMissing: the Docker engine does not answer.
        ServiceError: the base image cannot be pulled, a build fails, or the model needs llama.cpp, which no image has.
    """
    if (bento.model_path / LANGUAGE_MODEL).is_file():
        raise ServiceError(
            f"{bento.name}@{bento.version} is a language model, and images of replicas have no llama.cpp",
            where="runner",
            hint=f"headrace run {bento.name} --runner process",
        )
    docker = Docker.connect(project.settings)
    serving = serving_base(project, docker)
    recipe = (SERVING / "Dockerfile.bento").read_bytes()
    inputs = short_digest({"bento": bento.tag.encode(), "serving": serving.tag.encode(), "Dockerfile": recipe})
    tag = f"headrace/{bento.name}:{bento.path.name}-{inputs}"
    if (image := find_image(docker, tag)) is None:
        bill = sbom.bill_of(bento, tag, project.settings.base_image, sbom.packages_of(docker, serving.tag), _hashes(bento))
        sbom.keep(project.state / "sbom", tag, bill)
        context = _tar({"Dockerfile": recipe, "bento.tar": bento_layer(bento, bill)})
        labels = [part for name, value in _labels(bento, project.settings).items() for part in ("--label", f"{name}={value}")]
        docker.build(context, tag, "--build-arg", f"SERVING={serving.tag}", "--network", "none", *labels)
        image = _require_image(docker, tag)
    return image


def serving_base(project: Project, docker: Docker) -> Image:
    """Builds the image with all packages that bentos need, or finds it. Its tag is a hash of requirements and base image.

    Raises:
        ServiceError: the base image cannot be pulled, or a package cannot be installed.
    """
    base = _base_image(docker, project.settings.base_image)
    files = {name: (SERVING / name).read_bytes() for name in ("Dockerfile", "compile_imported.py", REQUIREMENTS.name)}
    tag = f"headrace/serving:{short_digest({**files, 'base': base.digest.encode()})}"
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "serving-base.lock"):  # a second release waits instead of building it too
        if (image := find_image(docker, tag)) is None:
            _build_serving_base(docker, tag, project.settings.base_image, files, project.wheelhouse)
            image = _require_image(docker, tag)
    return image


def find_image(docker: Docker, tag: str) -> Image | None:
    """The image with this tag, or None. An image gets its tag after the last step, so that it is complete."""
    for found in docker.inspect("image", tag):
        return Image(tag, found["Id"], int(found["Size"]))
    return None


def bento_layer(bento: Bento, bill: bytes) -> bytes:
    """A tar archive of `opt/bento`, with the model inside, where BentoML looks first, and of the image's bill of materials.

    Equal bentos give equal bytes: sorted names, owner root, time 0, and no creation times in BentoML's records.
    """
    entries = {f"{IN_IMAGE}/{file}": content for file, content in _read_tree(bento.path).items() if not file.startswith("env/")}
    model = f"{IN_IMAGE}/models/{bento.name}"
    entries |= {f"{model}/{bento.model_path.name}/{file}": content for file, content in _read_tree(bento.model_path).items()}
    entries[f"{model}/latest"] = bento.model_path.name.encode()
    for record in (f"{IN_IMAGE}/bento.yaml", f"{model}/{bento.model_path.name}/model.yaml"):
        entries[record] = CREATED.sub(FIXED_TIME, entries[record])
    return _tar({**entries, sbom.IN_IMAGE.lstrip("/"): bill})


def _build_serving_base(docker: Docker, tag: str, base: str, files: dict[str, bytes], wheelhouse: Path) -> None:
    context = {**files, "wheelhouse/.keep": b""}
    arguments = ["--build-arg", f"BASE={base}"]
    if wheelhouse.is_dir():
        if not is_current(wheelhouse):
            raise ServiceError(
                f"{wheelhouse} does not match {REQUIREMENTS.name}",
                where="wheelhouse",
                hint="python -m headrace.serving.packaging   (or delete the folder, to install over the network)",
            )
        context |= {f"wheelhouse/{wheel.name}": wheel.read_bytes() for wheel in wheelhouse.glob("*.whl")}
        arguments += ["--network", "none"]
    else:
        arguments += ["--build-arg", "PIP_FROM=", *([] if docker.has_bridge else ["--network", "host"])]
    docker.build(_tar(context), tag, *arguments)
    # The classic builder leaves the stage with pip and the wheels behind, as an image without a name.
    docker.run("image", "prune", "--force", "--filter", "label=headrace.stage=packages")


def _base_image(docker: Docker, name: str) -> Image:
    if (image := find_image(docker, name)) is None:
        try:
            docker.run("pull", "--quiet", name, seconds=900)
        except ServiceError as error:
            raise ServiceError(
                f"the base image {name!r} is missing and cannot be pulled: {error.message}",
                where="base_image",
                hint="set base_image in headrace.toml to a local Debian image with Python 3.11, "
                "or build one: deploy/ci/base-image.sh",
            ) from None
        image = _require_image(docker, name)
    return image


def _require_image(docker: Docker, tag: str) -> Image:
    image = find_image(docker, tag)
    if image is None:
        raise ServiceError(f"{tag} was built or pulled, but the engine does not list it", where="docker", hint="docker info")
    return image


def _labels(bento: Bento, settings: Settings) -> dict[str, str]:
    """Standard labels for registries and scanners, and the model's identity. Without times, so that builds are reproducible."""
    identity = bento.identity
    standard = {
        "title": f"headrace/{bento.name}",
        "description": f"{bento.name}, version {bento.version}, served over HTTP",
        "version": bento.version,
        "revision": identity.get("git_commit", ""),
        "base.name": settings.base_image,
    }
    labels = {f"org.opencontainers.image.{name}": value for name, value in standard.items()}
    labels |= {"headrace.sbom": sbom.IN_IMAGE, LISTENS: "socket"}
    return labels | {f"headrace.{name}": value for name, value in identity.items()} | {"headrace.bento": bento.tag}


def _hashes(bento: Bento) -> dict[str, str]:
    """The sha256 of each file of the model."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in _read_tree(bento.model_path).items()}


def _read_tree(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def _tar(files: dict[str, bytes]) -> bytes:
    """An archive that depends on `files` only. It has entries for folders, which would get the current time otherwise."""
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(folders | files.keys()):
            entry = tarfile.TarInfo(name)
            if name in files:
                entry.size, entry.mode = len(files[name]), 0o644
                archive.addfile(entry, io.BytesIO(files[name]))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
    return buffer.getvalue()
