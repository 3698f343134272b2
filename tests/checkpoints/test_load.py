"""Files that are hostile, damaged, or something else: refused in a sentence, and nothing in them is ever run."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from tests.checkpoints.files import PLAIN_KWARGS as PLAIN
from tests.checkpoints.files import (
    AmaesReference,
    amaes_weights,
    lightning,
    nnunet_plans,
    stock_network,
    tiny_recipe,
    write_nnunet,
    write_own,
    write_own_safetensors,
)


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


class NumpyBomb:
    """A number of numpy whose type is an object, or whose bytes are not those of a number."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return np.dtype, self.arguments


class Scalar:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        function = np.float64(1).__reduce__()[0]
        return function, self.arguments


def _stock_with(**more: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_nnunet(path, stock_network("PlainConvUNet", PLAIN), nnunet_plans("PlainConvUNet", PLAIN), **more)

    return write


def _saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "weights": _saved({"network_weights": Bomb()}),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "old form of torch": lambda path: torch.save({"x": Bomb()}, path, _use_new_zipfile_serialization=False),
    "lightning": lambda path: torch.save(lightning(amaes_weights(AmaesReference()), callbacks={"a": Bomb()}), path),
    "stock nnU-Net's log": _stock_with(logging={"losses": [np.float64(1), Bomb()]}),
    "stock nnU-Net's plans": _stock_with(init_args={"plans": Bomb()}),
    "numpy objects": _stock_with(logging=np.array([Bomb()], dtype=object)),
    "numpy array": _stock_with(logging=np.zeros(3)),
    "numpy object type": _stock_with(logging=NumpyBomb("O")),
    "numpy huge type": _stock_with(logging=NumpyBomb("V1000000000")),
    "number of the wrong length": _stock_with(logging=Scalar(np.dtype("f8"), b"1")),
    "number that is no bytes": _stock_with(logging=Scalar(np.dtype("f8"), 5)),
    "number without a type": _stock_with(logging=Scalar("f8", b"12345678")),
    "a module": _saved({"network_weights": torch.nn.Linear(1, 1)}),
    "a function": _saved({"network_weights": {}, "function": eval}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_and_never_run(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    HOSTILE[kind](Path("x.pth"))
    with pytest.raises(UserError, match=r"x\.pth is not a checkpoint that can be read safely") as caught:
        read_checkpoint(Path("x.pth"))
    assert not Path("exploded").exists()
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_that_would_be_run_is_named(tmp_path: Path) -> None:
    torch.save({"x": Fraction(1, 2)}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"holds code beside weights, which is never run \(it names fractions\.Fraction"
    ):
        read_checkpoint(tmp_path / "x.pth")


def test_torch_that_could_run_code_of_a_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    safe = write_own_safetensors(tmp_path / "shared", tmp_path / "x.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(UserError, match=r"x\.pth cannot be read safely: torch 2\.5\.1.*install torch 2\.10 or newer"):
        read_checkpoint(tmp_path / "x.pth")
    assert read_checkpoint(safe).weights


@pytest.mark.parametrize(("version", "notes"), [("2.6.0", 1), ("2.8.0+cpu", 1), ("2.10.0", 0), ("2.15.0+cu132", 0)])
def test_torch_that_a_file_could_harm_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, notes: int
) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    safe = write_own_safetensors(tmp_path / "shared", tmp_path / "x.pth")
    monkeypatch.setattr(torch, "__version__", version)
    assert ["CVE-2026-24747" in note for note in read_checkpoint(tmp_path / "x.pth").notes] == [True] * notes
    assert read_checkpoint(safe).notes == ()


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plans.json", "{}")


def _truncated(path: Path) -> None:
    write_own(path, tiny_recipe())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncated_safetensors(path: Path) -> None:
    data = safetensors.torch.save({"x": torch.zeros(1000)})
    path.write_bytes(data[: len(data) // 2])


def _spoilt(path: Path) -> None:
    """A byte of the weights' own archive is another."""
    buffer = io.BytesIO()
    torch.save({"network_weights": {"x": torch.zeros(4)}}, buffer)
    data = bytearray(buffer.getvalue())
    start = data.index(b"data.pkl") + 80
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)


OTHER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: path.write_bytes(b""), "is not a checkpoint: it is empty; download"),
    "text": (lambda path: path.write_text("hello"), "is not a checkpoint that can be read safely"),
    "git-LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 409\n"),
        "it is a git-LFS pointer.*download the file itself",
    ),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>"), "it is a web page; download the file"),
    "a zip of something else": (_zip, "is not a checkpoint that can be read safely"),
    "half a file": (_truncated, "it is damaged or no checkpoint at all; download or copy it again"),
    "spoilt": (_spoilt, "is not a checkpoint that can be read safely"),
    "half a safetensors": (_truncated_safetensors, "damaged safetensors file"),
    "safetensors with a false header": (
        lambda path: path.write_bytes(struct.pack("<Q", 40) + b"{" + b" " * 60),
        "damaged safetensors file",
    ),
    "a list": (lambda path: torch.save([1], path), "holds a list, not a checkpoint"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor, not a checkpoint"),
    "an image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50), "is not a checkpoint that can be"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_no_checkpoint_gets_a_sentence(tmp_path: Path, kind: str) -> None:
    write, sentence = OTHER[kind]
    write(tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth .*{sentence}"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    torch.save({}, tmp_path / "x.pth")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"x\.pth cannot be read \(Permission denied\)"):
        read_checkpoint(tmp_path / "x.pth")


# ---------------------------------------------------------------------- our safetensors


def shared(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, **metadata: str) -> Path:
    write_own(folder / "x.pth", tiny_recipe())
    if change is not None:
        content = torch.load(folder / "x.pth", weights_only=True)
        change(content)
        torch.save(content, folder / "x.pth")
    return write_own_safetensors(folder / "shared", folder / "x.pth", **metadata)


def test_our_safetensors_are_read_as_our_pth(tmp_path: Path) -> None:
    file = shared(tmp_path, licence="CC-BY-4.0")
    one, other = read_checkpoint(tmp_path / "x.pth"), read_checkpoint(file.parent)
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert one.architecture == other.architecture
    assert (one.plans, one.data, one.channels) == (other.plans, other.data, other.channels)
    assert (one.reconstruction, one.beyond_stock) == (other.reconstruction, other.beyond_stock)
    assert (one.origin.method, one.origin.epochs) == (other.origin.method, other.origin.epochs)
    assert (one.origin.licence, other.origin.licence) == (None, "CC-BY-4.0")
    assert (one.origin.label, other.origin.label) == ("x.pth", "model.safetensors")


def _operator(name: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]["norm_op"] = name

    return change


def _widths(content: dict[str, Any]) -> None:
    content["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]["features_per_stage"] = [10**9] * 3


def _channels(content: dict[str, Any]) -> None:
    content["nnssl_adaptation_plan"]["pretrain_num_input_channels"] = 7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_operator("os.system"), r"'os\.system' as norm_op, which is not a class of torch\.nn"),
        (_operator("torch.nn.modules.conv.Conv3d.__init__"), "not a class of torch"),
        (_widths, "features_per_stage .* only numbers from 1 to"),
        (_channels, "takes 7 channels, but its first convolution takes 1"),
    ],
)
def test_hostile_descriptions_in_safetensors(tmp_path: Path, change: Any, sentence: str) -> None:
    """Building what the last one describes would take all memory: it is refused before."""
    file = shared(tmp_path, change)
    with pytest.raises(UserError, match=rf"model\.safetensors .*{sentence}"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"nnssl_mae": "{"}, r"damaged metadata \(nnssl_mae:"),
        ({"nnssl_adaptation_plan": "[" * 100_000}, r"damaged metadata \(nnssl_adaptation_plan:"),
        ({"nnssl_mae": json.dumps({"schema": 99})}, "newer nnssl_mae"),
        ({"nnssl_mae": json.dumps({"schema": 1})}, "damaged description"),
        ({"nnssl_adaptation_plan": "3"}, "damaged description"),
        ({"citations": "3"}, "damaged description"),
    ],
)
def test_damaged_metadata_of_safetensors(tmp_path: Path, metadata: dict[str, str], sentence: str) -> None:
    file = shared(tmp_path, **metadata)
    with pytest.raises(UserError, match=rf"model\.safetensors .*{sentence}"):
        read_checkpoint(file)
