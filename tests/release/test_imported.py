"""Models that others trained, released by the real command line: served, metered, traced and rolled back as any other."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from headrace.release import journal
from headrace.tracking import registry
from tests.importing.made import LABELS, NAMES, write_network, write_skops
from tests.release.live import Live

INSTANCE = dict(zip(NAMES, [2.0, 1.0, 0.5], strict=True))


def ask(live: Live, name: str) -> httpx.Response:
    address = f"{live.gateway}/v1/models/{name}/predict"
    return httpx.post(address, json={"instances": [INSTANCE]}, headers=live.headers, timeout=30)


def test_imports_of_skops_and_onnx_are_released_asked_and_rolled_back(live: Live) -> None:
    root = live.project.root
    write_skops(root / "theirs.skops")
    first = live.json("import", "theirs", "theirs.skops", "--licence", "BSD-3-Clause")
    assert (first["version"], first["imported"]["licence"]) == ("1", "BSD-3-Clause")
    assert first["imported"]["largest_difference"] <= 1e-4
    reasons = first["verdict"]["reasons"]
    assert reasons[0].startswith("there are no test rows: nothing was measured") and "as scikit-learn does" in reasons[-1]
    answer = ask(live, "theirs")
    assert answer.status_code == 200 and answer.json()["predictions"][0]["label"] == "large", answer.text

    weights = np.zeros((3, 3), np.float32)
    weights[0, LABELS.index("small")] = 9.0
    write_network(root / "theirs.onnx", inputs=[("x", 1, ["n", 3])], weights={"w": weights})
    options = ("--labels", ",".join(LABELS), "--activation", "softmax", "--inputs", ",".join(NAMES))
    second = live.json("import", "theirs", "theirs.onnx", *options)
    assert second["version"] == "2" and ask(live, "theirs").json()["predictions"][0]["label"] == "small"
    assert live.json("run", "theirs")["unchanged"]

    version = registry.get("theirs@2", live.project)
    assert version.identity["imported_from"] == "theirs.onnx" and version.identity["imported_licence"] == "BSD-3-Clause"
    links = {link["link"]: link["id"] for link in live.json("trace", "theirs@2")["chain"]}
    assert links["imported model"] == f"sha256 {second['imported']['sha256']}" and links["licence"] == "BSD-3-Clause"

    assert live.json("rollback", "theirs", "--why", "wrong")["version"] == "1"
    assert ask(live, "theirs").json()["predictions"][0]["label"] == "large"
    events = [(entry.event, entry.version) for entry in journal.entries(live.project, "theirs")]
    assert events == [("released", "1"), ("released", "2"), ("rolled-back", "1")]
    assert "theirs" in live.run("usage").stdout


@pytest.mark.exhaustive
def test_an_import_is_reproduced_byte_for_byte(live: Live) -> None:
    write_skops(live.project.root / "kept.skops")
    assert live.json("import", "kept", "kept.skops")["version"] == "1"
    assert live.json("reproduce", "kept@1")["identical"]
