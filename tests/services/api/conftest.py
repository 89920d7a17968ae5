"""One service for all tests of this folder: three tiny models behind a real Envoy, with tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.runtime.contract import Contract
from tests.services.api.server import LocalService, start_service
from tests.tiny_models import image_model, language_model, table_model


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    models = tmp_path_factory.mktemp("models")
    made = {
        "trips": table_model(models / "trips"),
        "halves": image_model(models / "halves"),
        "letters": language_model(models / "letters"),
    }
    contract = Contract.read(made["trips"] / "contract.json")
    distance = contract.inputs[0].model_copy(update={"minimum": -1e6, "maximum": 1e6})
    contract.model_copy(update={"inputs": [distance, *contract.inputs[1:]]}).write(made["trips"] / "contract.json")
    with start_service(
        tmp_path_factory.mktemp("service") / "clone", made, max_batch_bytes=4 * 1024 * 1024, upload_idle_seconds=2.0
    ) as found:
        yield found
