"""Nothing that was exported names a scan, a subject or a machine, wherever people and programs had put such names."""

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.checkpoints.files import adaptation_plan, write_nnssl, write_s3d
from tests.export.models import CASES, PLACE, write_model
from tests.export.written import all_bytes, export, own

HOST = "reading-room-pc-17"
CATALOGUE = {"subjects": [{"name": case, "path": f"{PLACE}/{case}.nii.gz", "age": 61} for case in CASES]}


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files are named after the machine, and torch writes a file's name into it."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)


def assert_names_nobody(place: Path, *more: str) -> None:
    for name, content in all_bytes(place).items():
        for secret in (*CASES, "Mueller", "Okafor", PLACE, "neurology", HOST, *more):
            for encoding in ("utf-8", "utf-16-le"):
                assert secret.encode(encoding) not in content, f"{name} holds {secret}"


def with_names(content: dict) -> dict:
    """Puts names of cases and paths into every place of a checkpoint that may hold anything."""
    plan = json.loads(json.dumps(content["nnssl_adaptation_plan"]))
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    for part in (plan, plan["pretrain_plan"], configuration, plan["architecture_plans"]):
        part["source_folder"], part["cases"] = PLACE, list(CASES)
    content["nnssl_adaptation_plan"] = plan
    content["init_args"] = {"fold": "all", "configuration_name": "onemmiso", "pretrain_json": CATALOGUE}
    content["logging"] = {"val_losses": [0.5], "cases": list(CASES), "output_folder": PLACE}
    content["catalogue"] = CATALOGUE
    if "nnssl_mae" in content:
        content["nnssl_mae"] |= {"cases": list(CASES), "output_folder": PLACE}
    return content


def dirty(folder: Path, origin: str) -> Path:
    path = folder / "checkpoint_final.pth"
    if origin == "own":
        own(folder)
        (folder / "split.json").write_text(json.dumps({"train": [CASES[0]], "val": [CASES[1]]}))
    elif origin == "nnssl":
        write_nnssl(path, adaptation_plan())
    else:
        write_s3d(path, adaptation_plan(), released=True)
    torch.save(with_names(torch.load(path, weights_only=True)), path)
    for name in ("preview_epoch_0050.png", "preview.png", "training_log_1.txt"):
        (folder / name).write_bytes(f"{PLACE}/{CASES[0]}".encode())
    return path


@pytest.mark.parametrize("form", ["safetensors", "nnssl", "nnunet"])
@pytest.mark.parametrize("origin", ["own", "nnssl", "s3d"])
def test_a_pre_training_names_nobody(origin: str, form, tmp_path: Path) -> None:
    source = tmp_path / "patient_Mueller" / "neurology"
    source.mkdir(parents=True)
    path = dirty(source, origin)
    assert CASES[0].encode() in path.read_bytes()
    export(path, tmp_path / "out", form)
    assert_names_nobody(tmp_path / "out", str(tmp_path))
    if origin == "own":
        assert "1 for training, 1 for validation" in (tmp_path / "out" / "README.md").read_text()


def test_a_fine_tuned_model_names_nobody(tmp_path: Path) -> None:
    model = write_model(tmp_path / "patient_Mueller")
    assert CASES[0].encode() in b"".join(all_bytes(model).values())
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out" / "model.zip", "nnunet")
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert_names_nobody(tmp_path / "out", str(tmp_path))


def test_a_picture_is_taken_only_when_given_and_only_its_pixels(tmp_path: Path) -> None:
    path = dirty(tmp_path, "own")
    export(path, tmp_path / "without", "safetensors")
    assert not list((tmp_path / "without").glob("*.png"))

    information = PngInfo()
    information.add_text("Title", CASES[0])
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "given.png", pnginfo=information, comment=PLACE)
    export(path, tmp_path / "with", "safetensors", preview=tmp_path / "given.png")
    assert_names_nobody(tmp_path / "with")
    with Image.open(tmp_path / "with" / "preview.png") as picture:
        assert picture.getpixel((0, 0)) == (9, 8, 7)
    assert "](preview.png)" in (tmp_path / "with" / "README.md").read_text()
