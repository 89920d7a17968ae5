"""The bill of materials of an image (CycloneDX, https://cyclonedx.org), read from the image itself.

It depends on the image's content only (no times, no random numbers), so that equal images have equal bills.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.serving.packaging.bento import Bento
from headrace.serving.packaging.docker import Docker

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

IN_IMAGE = "/opt/sbom.cdx.json"
NAMESPACE = uuid.UUID("6f1c2d52-4f3a-5b0e-9d0b-0d6f5b6b1a77")
READER = """
import json, pathlib, sys
sys.path.insert(0, "/opt/headrace/lib/python3.11/site-packages")
from importlib.metadata import distributions
python = {d.metadata["Name"]: [d.version, d.metadata.get("License-Expression") or ""] for d in distributions()
          if str(d.locate_file("")).startswith("/opt/headrace")}
dpkg = pathlib.Path("/var/lib/dpkg")
records = [dpkg / "status", *sorted((dpkg / "status.d").glob("*"))]
debian = {}
for text in [path.read_text(errors="replace") for path in records if path.is_file()]:
    for block in text.split("\\n\\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if "Package" in fields and "Version" in fields:
            debian[fields["Package"]] = [fields["Version"], fields.get("Architecture", "")]
release = dict(line.split("=", 1) for line in open("/etc/os-release").read().splitlines() if "=" in line)
print(json.dumps({"python": python, "debian": debian, "system": {k: v.strip('"') for k, v in release.items()}}))
"""
"""Script that runs inside the image: lists Python packages of the service and Debian packages."""


def packages_of(docker: Docker, image: str) -> dict[str, dict[str, Any]]:
    """`python`: name to [version, licence]; `debian`: name to [version, architecture]; `system`: its os-release."""
    output = docker.run("run", "--rm", "--network", "none", "--entrypoint", "python3.11", image, "-I", "-c", READER)
    found: dict[str, dict[str, Any]] = json.loads(output)
    return found


def bill_of(bento: Bento, tag: str, base: str, packages: dict[str, dict[str, Any]], served: dict[str, str]) -> bytes:
    """The bill of the image `tag` as CycloneDX 1.6 JSON.

    Args:
        base: its base image.
        packages: from `packages_of`.
        served: sha256 of each of the model's files.
    """
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, tag))
    bom.metadata.timestamp = datetime(1970, 1, 1, tzinfo=UTC)
    bom.metadata.component = Component(
        name=tag.partition(":")[0], version=tag.partition(":")[2], type=ComponentType.CONTAINER, bom_ref=tag
    )
    bom.metadata.component.properties.add(Property(name="headrace:base", value=base))
    found = [_model(bento, served), *_python(packages["python"]), *_debian(packages["debian"], packages["system"])]
    for component in found:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, found)
    return (JsonV1Dot6(bom).output_as_string(indent=1) + "\n").encode()


def _model(bento: Bento, served: dict[str, str]) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    model = Component(name=bento.name, version=bento.version, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=bento.tag)
    for name, value in sorted(bento.identity.items()):
        model.properties.add(Property(name=f"headrace:{name}", value=value))
    for name, sha256 in sorted(served.items()):
        part = Component(name=name, type=ComponentType.FILE, bom_ref=f"{bento.tag}/{name}")
        part.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=sha256))
        model.components.add(part)
    return model


def _python(packages: dict[str, list[str]]) -> list[Component]:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found = []
    for name, (version, licence) in sorted(packages.items()):
        url = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
        component = Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url))
        if licence:
            component.licenses.add(LicenseFactory().make_from_string(licence))
        found.append(component)
    return found


def _debian(packages: dict[str, list[str]], system: dict[str, str]) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    distribution = f"{system.get('ID', 'linux')}-{system.get('VERSION_ID', '')}".rstrip("-")
    found = []
    for name, (version, architecture) in sorted(packages.items()):
        url = PackageURL("deb", system.get("ID", "debian"), name, version, {"arch": architecture, "distro": distribution})
        found.append(Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=str(url)))
    return found


def keep(folder: Path, tag: str, bill: bytes) -> Path:
    """Writes the bill to `folder`, and returns its path."""
    path = folder / f"{tag.replace('/', '_').replace(':', '_')}.cdx.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bill)
    return path
