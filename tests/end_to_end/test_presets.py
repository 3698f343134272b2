"""Second tier: every preset and every fine-tuning schedule, made small, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import pytest
import torch

from tests.end_to_end.shell import Shell
from tests.presets import PRESETS, TRANSFORMERS, tiny_changes
from tests.tiny_scans import write_labelled, write_unlabelled

pytestmark = [pytest.mark.end_to_end, pytest.mark.soak]
_MODEL = "3d_fullres_mae"
_SCHEDULES = ("warmup", "default", "sawtooth", "valley", "frozen", "amaes_finetuning")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("presets")
    write_unlabelled(folder / "scans", count=7)
    write_labelled(folder / "raw", 4, "Tiny", count=5, tests=1)
    return Shell(folder)


def as_options(name: str) -> list[str]:
    """The small numbers of a preset as ``--set`` options."""
    options = ["--set", "data.spacing=[4, 4, 4]"]
    for key, value in tiny_changes(name).items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    return options


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_from_scans_to_segmentations(shell: Shell, name: str) -> None:
    number, schedule = 900 + PRESETS.index(name), _SCHEDULES[PRESETS.index(name) % len(_SCHEDULES)]
    chosen = () if name in TRANSFORMERS else ("--schedule", schedule)  # for those adapt chooses
    shell("nnssl-mae", "prepare", shell.folder / "scans", "-d", number, "-n", "Brains", "--recipe", name,
          *as_options(name), "-np", 2)  # fmt: skip
    shell("nnUNetv2_train", number, _MODEL, "all", "-tr", "nnUNetTrainerMAE", "-p", "nnsslMAEPlans", "-device", "cpu")
    run = f"Dataset{number}_Brains/nnUNetTrainerMAE__nnsslMAEPlans__{_MODEL}/fold_all"
    checkpoint = shell.folder / "results" / run / "checkpoint_final.pth"
    assert torch.load(checkpoint, weights_only=True)["nnssl_mae"]["recipe"]["name"] == name

    plans = f"Tuned-{name}"
    shell("nnssl-mae", "adapt", checkpoint, "-d", 4, "-n", plans, *chosen, "--epochs", 6,
          "--iterations", 1)  # fmt: skip
    shell("nnUNetv2_preprocess", "-d", 4, "-plans_name", plans, "-c", _MODEL, "-np", 2)
    model = ("-tr", "nnUNetTrainerMAEFinetune", "-p", plans, "-device", "cpu")
    out = shell("nnUNetv2_train", 4, _MODEL, 0, *model)
    assert f"Pre-trained weights: encoder of checkpoint_final.pth (nnssl_mae, {name}, " in out
    assert "Mean Validation Dice" in out

    images, output = shell.folder / "raw" / "Dataset004_Tiny" / "imagesTs", shell.folder / f"predicted_{name}"
    shell("nnUNetv2_predict", "-d", 4, "-i", images, "-o", output, "-c", _MODEL, *model, "-f", 0, "--disable_tta")
    (image,) = Path(images).glob("*.nii.gz")
    (segmentation,) = output.glob("*.nii.gz")
    assert nibabel.load(segmentation).shape == nibabel.load(image).shape


def test_preview_of_a_scan(shell: Shell) -> None:
    """With the checkpoint that the test above left."""
    checkpoint = next(shell.folder.glob("results/Dataset900_Brains/*/fold_all/checkpoint_final.pth"))
    scan = next((shell.folder / "scans").rglob("*.nii.gz"))
    shell("nnssl-mae", "preview", checkpoint, scan, "-o", shell.folder / "preview")
    assert list((shell.folder / "preview").glob("*.png"))
