"""The report: right numbers, both models shown as they are, nothing needed from outside the file."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nnssl_mae.demo.data import LABELLED_FOLDER, SCANS, list_subjects, write_real_scan
from nnssl_mae.demo.pictures import telling_slice
from nnssl_mae.demo.report import write_report
from nnssl_mae.demo.results import ARMS, CONFIGURATION, PRETRAINED, PRETRAINED_FOLDER, SCRATCH, read_finetuning_curves
from nnssl_mae.demo.scores import dice, label_means, majority_vote, overall_mean
from nnssl_mae.demo.size import FULL, SMALL
from nnssl_mae.errors import UserError

SHAPE = (12, 14, 10)


def save(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


def truth_map() -> np.ndarray:
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[2:10, 2:12, 2:8] = 1
    truth[3:9, 3:11, 3:7] = 2
    truth[4:8, 4:10, 3:7] = 3
    truth[5, 5, 5] = 4
    return truth


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The files of a finished run: the control is perfect, the pre-trained model misses the lesion."""
    truth = truth_map()
    missed = np.where(truth == 4, 3, truth).astype(np.uint8)
    image = (truth * 10.0).astype(np.float32)
    save(tmp_path / SCANS / "sub-01" / "anat" / "sub-01_T1w.nii.gz", image)
    for case in ("test_01", "test_02"):
        save(tmp_path / LABELLED_FOLDER / "imagesTs" / f"{case}_0000.nii.gz", image)
        save(tmp_path / LABELLED_FOLDER / "labelsTs" / f"{case}.nii.gz", truth)
        save(tmp_path / SCRATCH.predictions / f"{case}.nii.gz", truth)
        save(tmp_path / PRETRAINED.predictions / f"{case}.nii.gz", missed)
    for i in range(3):
        save(tmp_path / LABELLED_FOLDER / "labelsTr" / f"train_{i}.nii.gz", missed)
    for arm in ARMS:
        (tmp_path / arm.results).mkdir(parents=True)
        write_log(tmp_path / arm.results / "training_log_1.txt", 3)
        write_plans(tmp_path / arm.results.parent / "plans.json")
    pretraining = tmp_path / PRETRAINED_FOLDER
    (pretraining / "validation").mkdir(parents=True)
    summary = {"val_loss": 0.2, "psnr": 20.0, "ssim": math.nan, "r2": 0.4567, "cases": 5}
    (pretraining / "validation" / "summary.json").write_text(json.dumps(summary))
    logged = {"train_losses": [1.0, 0.5], "val_losses": [1.1, 0.6], "psnr": [1.0, 2.0]}
    torch.save({"logging": logged}, pretraining / "checkpoint_final.pth")
    Figure(figsize=(1, 1)).savefig(pretraining / "preview_epoch_0002.png")
    return tmp_path


def write_plans(path: Path) -> None:
    recipe = {"epochs": 3, "iterations": 2, "schedule": "warmup", "warmup_epochs": 1, "peak_learning_rate": 0.5}
    path.write_text(
        json.dumps({"configurations": {CONFIGURATION: {"nnssl_mae": {"recipe": recipe}}}}), encoding="utf-8"
    )


def write_log(path: Path, epochs: int, first: int = 0, loss: float = 0.5) -> None:
    stamp = "2026-01-01 00:00:00.000001:"
    lines = ["This is the configuration used by this training:"]
    for epoch in range(first, epochs):
        lines += [
            f"{stamp} Epoch {epoch} ",
            f"{stamp} train_loss {loss - epoch} ",
            f"{stamp} val_loss -1e-05 ",
            f"{stamp} Pseudo dice [np.float32(0.25), np.float64(nan), 0.75, nan] ",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_dice_by_hand() -> None:
    truth = np.array([[[1, 1, 0, 0]]], dtype=np.uint8)
    predicted = np.array([[[1, 0, 0, 2]]], dtype=np.uint8)
    assert dice(truth, predicted, 1) == pytest.approx(2 * 1 / (2 + 1))
    assert dice(truth, predicted, 2) == 0.0
    assert math.isnan(dice(truth, predicted, 3))
    assert dice(truth, truth, 1) == 1.0


def test_means_leave_out_what_does_not_count() -> None:
    scores = np.array([[0.5, math.nan, math.nan], [1.0, 0.2, math.nan]])
    assert label_means(scores)[:2].tolist() == [0.75, 0.2] and math.isnan(label_means(scores)[2])
    assert overall_mean(scores) == pytest.approx((0.75 + 0.2) / 2)
    assert math.isnan(overall_mean(np.full((2, 2), math.nan)))


def test_majority_vote_by_hand() -> None:
    maps = [np.array([[[1, 2, 0]]]), np.array([[[1, 2, 3]]]), np.array([[[2, 0, 4]]])]
    assert majority_vote([m.astype(np.uint8) for m in maps]).tolist() == [[[1, 2, 0]]]


def test_telling_slice_prefers_lesions_in_large_slices() -> None:
    truth = np.zeros((10, 10, 6), dtype=np.uint8)
    truth[1:9, 1:9, 1:4] = 3
    truth[1:3, 1:3, 5] = 4
    assert telling_slice(truth) == 1
    truth[4, 4, 2] = 4
    assert telling_slice(truth) == 2


def test_finetuning_curves_of_a_resumed_training(tmp_path: Path) -> None:
    write_log(tmp_path / "training_log_2026_1.txt", 3)
    write_log(tmp_path / "training_log_2026_2.txt", 5, first=2, loss=9.0)
    curves = read_finetuning_curves(tmp_path)
    assert curves.train_loss == [0.5, -0.5, 7.0, 6.0, 5.0]
    assert curves.val_loss == [-1e-05] * 5 and curves.pseudo_dice == [0.5] * 5


def test_report_tells_what_happened(finished: Path) -> None:
    report = write_report(finished, SMALL, "cpu", {"Pre-train": 12.0})
    text = report.read_text(encoding="utf-8")
    assert "n = 3 training cases and 2 test cases" in text
    assert "R² of the reconstruction of hidden voxels: 0.457" in text
    assert "too small to judge the benefit" in text
    assert "semi-synthetic and made from one anatomy" in text
    # The control is ahead here, and the report says so as plainly as it would the opposite.
    assert f"{PRETRAINED.title} is ahead in 0 of 2 cases" in text
    assert re.search(r"minus from scratch, is -0\.2\d\d", text)
    assert "<td>label vote</td>" in text
    assert "3 epochs of 2 steps" in text and "highest learning rate 0.5" in text
    assert sorted(p.stem for p in (finished / "pictures").glob("*.png")) == [
        "brains",
        "dice",
        "reconstructions",
        "segmentations",
        "training",
    ]


def test_report_needs_no_other_file(finished: Path) -> None:
    text = write_report(finished, SMALL, "cpu", {}).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert str(finished) not in text


def test_large_run_is_not_called_small(finished: Path) -> None:
    text = write_report(finished, FULL, "cuda", {}).read_text(encoding="utf-8")
    assert "too small to judge" not in text


def test_missing_prediction_is_named(finished: Path) -> None:
    (finished / SCRATCH.predictions / "test_02.nii.gz").unlink()
    with pytest.raises(UserError, match=r"scratch/test_02\.nii\.gz"):
        write_report(finished, SMALL, "cpu", {})


def test_damaged_checkpoint_is_named(finished: Path) -> None:
    (finished / PRETRAINED_FOLDER / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint_final\.pth"):
        write_report(finished, SMALL, "cpu", {})


def test_no_subject_is_in_two_sets() -> None:
    for size in (SMALL, FULL):
        subjects = list_subjects(size)
        assert len({s.seed for s in subjects}) == len({s.image for s in subjects}) == len(subjects)
        assert sum(s.label is None for s in subjects) == size.unlabelled
        test = [s for s in subjects if "imagesTs" in s.image.parts]
        assert len(test) == size.test and {s.seed[1] for s in test} == {2}


def test_real_scan_is_turned_to_ras(tmp_path: Path) -> None:
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    source = tmp_path / "las.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-2.0, 2.0, 2.0, 1.0])), source)
    write_real_scan(source, tmp_path / "scans", "someone")
    written = nibabel.load(tmp_path / "scans" / "sub-someone" / "anat" / "sub-someone_T1w.nii.gz")
    assert nibabel.aff2axcodes(written.affine) == ("R", "A", "S")
    assert np.array_equal(written.get_fdata(), volume[::-1])
