"""Second tier: a checkpoint of each origin becomes a segmentation model, through the real commands.

Inspect, adapt, preprocess, train, killed in the middle, continued with the source gone, predict with and without our
package. Labels with regions and with an ignore label, two channels and thick slices are among the datasets.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.checkpoints import files
from tests.end_to_end.shell import Shell, bare_python
from tests.tiny_scans import tiny_scan

pytestmark = [pytest.mark.end_to_end, pytest.mark.soak]
_EPOCHS = 6
_MODEL = "3d_fullres_mae"
_TRAINER = ("-tr", "nnUNetTrainerMAEFinetune")
_PREDICT = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"


def write_with_ignore(raw: Path) -> None:
    """``Dataset006_Ignore``: one channel, cubic voxels of 4 mm, the labels of some slices unknown."""
    write_dataset(raw / "Dataset006_Ignore", 1, 1, {"background": 0, "dark": 1, "bright": 2, "ignore": 3})


def write_with_regions(raw: Path) -> None:
    """``Dataset007_Regions``: two channels, slices of 16 mm, one region within the other."""
    labels = {"background": 0, "all": [1, 2], "bright": [2]}
    write_dataset(raw / "Dataset007_Regions", 2, 4, labels, regions_class_order=[1, 2])


def write_dataset(folder: Path, channels: int, slices: int, labels: dict[str, object], **more: object) -> None:
    for split, seeds in (("Tr", range(100, 105)), ("Ts", range(200, 202))):
        for kind in ("images", "labels"):
            (folder / f"{kind}{split}").mkdir(parents=True)
        for seed in seeds:
            image, truth = ((np.asarray(each.dataobj)[:, :, ::slices], each.affine) for each in tiny_scan(seed))
            affine = image[1] @ np.diag([1, 1, slices, 1])
            for channel in range(channels):
                data = (image[0] ** (1 / (1 + channel))).astype(np.float32)
                target = folder / f"images{split}" / f"case{seed}_{channel:04d}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(data, affine), target)
            segmentation = truth[0].astype(np.uint8)
            if "ignore" in labels:
                segmentation[:, :, :8] = 3
            nibabel.save(nibabel.Nifti1Image(segmentation, affine), folder / f"labels{split}" / f"case{seed}.nii.gz")
    content = {
        "channel_names": {str(channel): f"MRI{channel}" for channel in range(channels)},
        "labels": labels,
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | more))


# ---------------------------------------------------------------------- a file of each origin


def nnssl_mae_file(folder: Path) -> Path:
    plan = files.with_configuration(files.adaptation_plan(), spacing_style="median", spacing=(4, 4, 4))
    files.write_nnssl(folder / "checkpoint_final.pth", plan)
    return folder / "checkpoint_final.pth"


def nnssl_s3d_folder(folder: Path) -> Path:
    plan = files.with_configuration(files.adaptation_plan(), spacing_style="median", spacing=(4, 4, 4))
    files.write_s3d(folder / "checkpoint_final.pth", plan)
    return folder


def amaes_file(folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save(files.lightning(files.amaes_weights(files.AmaesReference())), folder / "amaes.ckpt")
    return folder / "amaes.ckpt"


def nnunet_file(folder: Path) -> Path:
    plans = files.nnunet_plans("PlainConvUNet", files.PLAIN_KWARGS)
    network = files.stock_network("PlainConvUNet", files.PLAIN_KWARGS)
    files.write_nnunet(folder / "checkpoint_final.pth", network, plans)
    return folder / "checkpoint_final.pth"


def own_safetensors(folder: Path) -> Path:
    files.write_own(folder / "own.pth", files.tiny_recipe())
    files.write_own_safetensors(folder / "shared", folder / "own.pth")
    return folder / "shared"


@dataclass(frozen=True)
class Origin:
    """A checkpoint, the dataset that it shall segment, and how."""

    write: Callable[[Path], Path]
    dataset: str
    fitting: tuple[object, ...]
    """Options of ``inspect`` and ``adapt``."""
    recipe: tuple[object, ...]
    """Options of ``adapt`` only."""
    says: str
    """In the log, of where the weights come from."""
    adapted: str = "none"
    """In the log, of what was adapted and how."""
    needs_us: bool = False
    """To predict."""


ORIGINS = {
    "nnssl": Origin(nnssl_mae_file, "Dataset006_Ignore",
                    ("--transfer", "encoder+decoder"), ("--set", "deep_supervision=true"),
                    "encoder+decoder of checkpoint_final.pth (nnssl, "),
    "s3d": Origin(nnssl_s3d_folder, "Dataset006_Ignore", (), ("--schedule", "sawtooth"),
                  "encoder of checkpoint_final.pth (nnssl, "),
    "amaes": Origin(amaes_file, "Dataset006_Ignore",
                    ("--mode", "dataset", "--patch", 32, 32, 32), ("--schedule", "amaes_finetuning"),
                    "encoder of amaes.ckpt (AMAES, ", needs_us=True),
    "nnunet": Origin(nnunet_file, "Dataset007_Regions",
                     ("--mode", "dataset", "--normalisation", "dataset"), (),
                     "encoder of checkpoint_final.pth (nnU-Net, ",
                     "1 input channel to 2: repeated and divided by 2; kernel 3x3x3 to 3x1x3: outer taps added"),
    "safetensors": Origin(own_safetensors, "Dataset007_Regions",
                          ("--mode", "native", "--channel-map", "0 -"), ("--set", "layer_decay=0.5"),
                          "encoder of model.safetensors (nnssl_mae, ",
                          "encoder.stem (1): input channels by the map 0 -"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("foreign")
    write_with_ignore(folder / "raw")
    write_with_regions(folder / "raw")
    return Shell(folder)


@pytest.fixture(scope="module")
def without_us(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> Path:
    """An interpreter that knows nnU-Net and not our package."""
    python = bare_python(tmp_path_factory.mktemp("without") / "env")
    assert "No module named 'nnssl_mae'" in shell.fails("-c", "import nnssl_mae", python=python)
    return python


@pytest.mark.parametrize("name", ORIGINS)
def test_a_checkpoint_becomes_a_model(shell: Shell, without_us: Path, name: str, tmp_path: Path) -> None:
    origin, plans = ORIGINS[name], f"From-{name}"
    number = int(origin.dataset[7:10])
    checkpoint = origin.write(tmp_path)
    out = shell("nnssl-mae", "adapt", checkpoint, "-d", number, "-n", plans, *origin.fitting, *origin.recipe,
                "--epochs", _EPOCHS, "--iterations", 1, "--batch", 2)  # fmt: skip
    assert "tensors start from the checkpoint" in out
    assert "encoder.stages.0" in shell("nnssl-mae", "inspect", checkpoint, "-d", number, *origin.fitting)
    shell("nnUNetv2_preprocess", "-d", number, "-plans_name", plans, "-c", _MODEL, "-np", 2)

    fold = shell.folder / "results" / origin.dataset / f"nnUNetTrainerMAEFinetune__{plans}__{_MODEL}" / "fold_0"
    killed_and_continued(shell, fold, ("nnUNetv2_train", number, _MODEL, 0, *_TRAINER, "-p", plans), origin)
    knows_its_origin(shell, fold)
    predicts(shell, without_us, origin, (number, plans), tmp_path)


def killed_and_continued(shell: Shell, fold: Path, command: tuple[object, ...], origin: Origin) -> None:
    """Killed after the first epochs; continues with neither source nor the tensors that ``adapt`` laid aside."""
    command = (*command, "-device", "cpu")
    process = shell.start(*command)  # type: ignore[arg-type]
    deadline = time.monotonic() + 300
    while not (fold / "checkpoint_best.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    out = process.communicate()[0]
    assert (fold / "checkpoint_best.pth").exists(), out
    assert not (fold / "checkpoint_final.pth").exists()
    assert f"Pre-trained weights: {origin.says}" in out
    (adapted,) = [line for line in out.splitlines() if "loaded and adapted" in line]
    assert origin.adapted in adapted

    plans = json.loads((fold.parent / "plans.json").read_text())
    block = plans["configurations"][_MODEL]["nnssl_mae"]["initialisation"]
    dataset = shell.folder / "preprocessed" / plans["dataset_name"]
    given = safetensors.torch.load_file(dataset / block["file"])
    (dataset / block["file"]).unlink()
    done = torch.load(fold / "checkpoint_best.pth", weights_only=True)
    out = shell(*command, "--c")  # type: ignore[arg-type]
    assert "Pre-trained weights" not in out
    assert f"Epoch {done['current_epoch']}\n" in out.replace(" \n", "\n")
    assert f"Epoch {done['current_epoch'] - 1}\n" not in out.replace(" \n", "\n")
    assert "Mean Validation Dice" in out
    final = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == _EPOCHS
    assert given.keys() <= final["network_weights"].keys()


def knows_its_origin(shell: Shell, fold: Path) -> None:
    """The model says what it started from, and names no folder of this machine."""
    content = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert len(content["nnssl_mae"]["initialisation"]["origin"]["sha256"]) == 64
    assert content["trainer_name"] == "nnUNetTrainer"
    for file in (fold / "checkpoint_final.pth", fold.parent / "plans.json"):
        assert str(shell.folder.parent).encode() not in file.read_bytes()


def predicts(shell: Shell, without_us: Path, origin: Origin, model: tuple[int, str], out: Path) -> None:
    images = shell.folder / "raw" / origin.dataset / "imagesTs"
    arguments = ("-d", model[0], "-i", images, "-c", _MODEL, *_TRAINER, "-p", model[1], "-f", 0, "-device", "cpu",
                 "--disable_tta", "-npp", 1, "-nps", 1)  # fmt: skip
    shell("nnUNetv2_predict", *arguments, "-o", out / "with")
    if origin.needs_us:
        printed = shell.fails("-c", _PREDICT, *arguments, "-o", out / "without", python=without_us)
        assert "nnssl_mae.networks.amaes_unet.AmaesUNet not found" in printed
    else:
        shell("-c", _PREDICT, *arguments, "-o", out / "without", python=without_us)
    for case in ("case200", "case201"):
        truth = nibabel.load(images / f"{case}_0000.nii.gz")
        predicted = np.asarray(nibabel.load(out / "with" / f"{case}.nii.gz").dataobj)
        assert predicted.shape == truth.shape
        assert set(np.unique(predicted)) <= {0, 1, 2}
        if not origin.needs_us:
            again = np.asarray(nibabel.load(out / "without" / f"{case}.nii.gz").dataobj)
            assert np.array_equal(predicted, again)


# ---------------------------------------------------------------------- refusals in nnU-Net's own command


def test_a_refusal_is_a_sentence_in_nnunets_own_command(shell: Shell, tmp_path: Path) -> None:
    adapted = ("nnssl-mae", "adapt", own_safetensors(tmp_path), "-d", 6, "-n", "Refused")
    shell(*adapted, "--epochs", 2, "--iterations", 1)
    for configuration, sentence in (
        ("2d", "2d is a 2D configuration, and the pre-trained networks are 3D; use 3d_fullres_mae, or -tr nnUNet"),
        ("3d_cascade_fullres", "3d_cascade_fullres is a stage of a cascade"),
        ("3d_lowres", "hold no configuration 3d_lowres, only 3d_fullres_mae"),
    ):
        process = shell.start("nnUNetv2_train", 6, configuration, 0, *_TRAINER, "-p", "Refused", "-device", "cpu")
        out = process.communicate()[0]
        assert process.returncode == 2, out
        assert sentence in out
        assert "Traceback" not in out
    results = shell.folder / "results" / "Dataset006_Ignore"
    assert not list(results.glob("*Refused*"))
