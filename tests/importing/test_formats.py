"""Which files are recognised, and which are refused because loading them would run their code."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import pytest

from headrace.importing.errors import ImportRefused
from headrace.importing.formats import format_of
from tests.importing.made import built, write_network, write_skops


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.onnx", "m.skops", "m.dat"])
def test_a_pickle_is_refused_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ImportRefused, match="holds a Python pickle") as caught:
        format_of(tmp_path / name, name)
    assert "skops.io.dump" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "snippet"),
    [
        ("m.pt", "torch.onnx.export"),
        ("m.pth", "torch.onnx.export"),
        ("m.bin", "torch.onnx.export"),
        ("m.joblib", "skops.io.dump"),
    ],
)
def test_the_way_to_convert_a_pickle_is_given(tmp_path: Path, name: str, snippet: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    with pytest.raises(ImportRefused, match="holds a Python pickle") as caught:
        format_of(tmp_path / name, name)
    assert snippet in str(caught.value)


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_programs_of_torch_are_refused_with_the_line_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A program of torch.export may contain pickles, TorchScript runs its own code while it is loaded."""
    import torch

    network, example = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1)).eval(), torch.randn(2, 4)
    if kind == "TorchScript":
        torch.jit.script(network).save(tmp_path / "model.pt")
        written = tmp_path / "model.pt"
    else:
        rows = ({0: torch.export.Dim("rows")},)
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=rows), tmp_path / "model.pt2")
        written = tmp_path / "model.pt2"
    for name in ("model.pt2", "model.pt", "model.onnx", "model"):
        with pytest.raises(ImportRefused, match=f"holds a.* {kind}.*it is not opened") as caught:
            format_of(shutil.copy(written, tmp_path / f"copy-of-{name}"), name)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("without code: ")[2], {"example": example})
    found = built(tmp_path / "model.onnx", "classification", labels=["a", "b", "c"])
    assert found.facts["activation"] == "none" and found.contract.labels == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.safetensors", b"\x08\0\0\0\0\0\0\0{}", "not supported"),
        ("m.keras", b"abc", "not supported"),
        ("m.cbm", b"CBM1", "not supported"),
        ("m.xyz", b"abc", "unknown format .xyz"),
        ("model", b"abc", "unknown format without an ending"),
        ("m.json", b'{"a": 1}', "not a model of XGBoost"),
        ("m.txt", b"hello", "not a model of LightGBM"),
        ("m.skops", b"hello", "damaged or truncated"),
        ("m.skops", b"", "is empty"),
    ],
)
def test_other_files_are_refused_with_what_is_supported(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportRefused, match=message):
        format_of(tmp_path / name, name)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = write_skops(tmp_path / "m.skops")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x00"))  # its directory; that it is a zip still shows
    with pytest.raises(ImportRefused, match="damaged or truncated"):
        format_of(path, "m.skops")


def test_models_are_recognised_by_their_content_or_ending(tmp_path: Path) -> None:
    assert format_of(write_network(tmp_path / "m.onnx"), "m") == "onnx"
    assert format_of(write_skops(tmp_path / "model"), "m") == "skops"
    (tmp_path / "m.lgb").write_bytes(b"tree\nversion=v4\n")
    assert format_of(tmp_path / "m.lgb", "m") == "lightgbm"
    (tmp_path / "m.json").write_text('{"learner": {}}')
    assert format_of(tmp_path / "m.json", "m") == "xgboost"
