"""The whole path through the real commands, as subprocesses, on tiny volumes with real anatomy.

Nothing is mocked. A new process each time, with nnU-Net's three folders set and nothing else of ours.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from tests.conftest import TINY_RECIPE
from tests.end_to_end.shell import Shell, bare_python
from tests.tiny_scans import write_labelled, write_unlabelled

pytestmark = pytest.mark.end_to_end
_MODEL = "3d_fullres_mae"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("path")
    write_unlabelled(folder / "scans", count=8)
    write_labelled(folder / "raw", 4, "Tiny", count=5, tests=2)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    return Shell(folder)


def test_from_scans_to_segmentations(shell: Shell, tmp_path: Path) -> None:
    folder = shell.folder
    out = shell("nnssl-mae", "prepare", folder / "scans", "-d", 900, "-n", "Brains", "--recipe", "tiny.yaml",
                "--spacing", 4, 4, 4, "-np", 2)  # fmt: skip
    assert "nnUNetv2_train 900 3d_fullres_mae all -tr nnUNetTrainerMAE -p nnsslMAEPlans" in out

    pretraining = folder / "results" / "Dataset900_Brains" / "nnUNetTrainerMAE__nnsslMAEPlans__3d_fullres_mae"
    killed_in_the_middle_and_continued(shell, pretraining / "fold_all")
    two_processes_train_together(shell, pretraining / "fold_0")

    checkpoint = pretraining / "fold_all" / "checkpoint_final.pth"
    out = shell("nnssl-mae", "adapt", checkpoint, "-d", 4, "-n", "Treatment", "--epochs", 2, "--iterations", 2)
    # The commands that adapt prints are the ones that work.
    assert "nnUNetv2_preprocess -d 4 -plans_name Treatment -c 3d_fullres_mae" in out
    assert "nnUNetv2_train 4 3d_fullres_mae 0 -tr nnUNetTrainerMAEFinetune -p Treatment" in out
    shell("nnUNetv2_preprocess", "-d", 4, "-plans_name", "Treatment", "-c", _MODEL, "-np", 2)
    train = ("nnUNetv2_train", 4, _MODEL, 0, "-tr", "nnUNetTrainerMAEFinetune", "-p", "Treatment", "-device", "cpu")
    assert "Leave -pretrained_weights out" in shell.fails(*train, "-pretrained_weights", checkpoint)
    out = shell(*train)
    assert "Pre-trained weights: encoder of checkpoint_final.pth (nnssl_mae, tiny, 3 epochs" in out
    assert "Mean Validation Dice" in out

    predicts_with_and_without_our_package(shell, tmp_path)


def killed_in_the_middle_and_continued(shell: Shell, fold: Path) -> None:
    train = ("nnUNetv2_train", 900, _MODEL, "all", "-tr", "nnUNetTrainerMAE", "-p", "nnsslMAEPlans", "-device", "cpu")
    process = shell.start(*train)
    deadline = time.monotonic() + 120
    while not (fold / "checkpoint_latest.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert (fold / "checkpoint_latest.pth").exists(), output
    assert not (fold / "checkpoint_final.pth").exists()
    out = shell(*train, "--c")
    assert "Epoch 0" not in out
    assert "Training done." in out
    assert torch.load(fold / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 3
    assert json.loads((fold / "validation" / "summary.json").read_text())["cases"] == 5
    assert (fold / "preview_epoch_0003.png").stat().st_size > 10_000


def two_processes_train_together(shell: Shell, fold: Path) -> None:
    shell("torchrun", "--nproc-per-node", 2, "-m", "nnssl_mae", "pretrain", "--device", "cpu", "-d", 900, "-f", 0)
    # Both processes print at once, so the log is read: only one of them writes it.
    (log,) = fold.glob("training_log_*.txt")
    assert "2 processes share the batch of 2 patches." in log.read_text()
    assert log.read_text().count("Training done.") == 1
    content = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert not [name for name in content["network_weights"] if name.startswith("module.")]


def predicts_with_and_without_our_package(shell: Shell, tmp_path: Path) -> None:
    images = shell.folder / "raw" / "Dataset004_Tiny" / "imagesTs"
    arguments = ("-d", 4, "-i", images, "-c", _MODEL, "-tr", "nnUNetTrainerMAEFinetune", "-p", "Treatment",
                 "-f", 0, "-device", "cpu", "--disable_tta")  # fmt: skip
    shell("nnUNetv2_predict", *arguments, "-o", tmp_path / "with")

    python = bare_python(tmp_path / "bare")
    shell.fails("-c", "import nnssl_mae", python=python)
    predict = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
    shell("-c", predict, *arguments, "-o", tmp_path / "without", python=python)

    for case in ("case200", "case201"):
        one, other = (np.asarray(nibabel.load(tmp_path / d / f"{case}.nii.gz").dataobj) for d in ("with", "without"))
        truth = nibabel.load(images / f"{case}_0000.nii.gz")
        assert one.shape == truth.shape
        assert np.array_equal(one, other)
