"""Where the demonstration's results lie, and how they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from nnssl_mae.comparison.convergence import read_epochs
from nnssl_mae.demo.data import LABELLED_FOLDER, TRAINING_PREFIX, UNLABELLED, UNLABELLED_NAME
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION

FOLD = "0"
TEST_IMAGES = LABELLED_FOLDER / "imagesTs"
PRETRAINED_FOLDER = (
    Path("nnUNet_results")
    / f"Dataset{UNLABELLED}_{UNLABELLED_NAME}"
    / f"nnUNetTrainerMAE__nnsslMAEPlans__{CONFIGURATION}"
    / "fold_all"
)
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Arm:
    """One of the two fine-tuned models."""

    title: str
    folder: str
    plans: str
    adapt_options: tuple[str, ...] = ()

    @property
    def results(self) -> Path:
        """nnU-Net's result folder, relative to the output folder."""
        trained = f"nnUNetTrainerMAEFinetune__{self.plans}__{CONFIGURATION}"
        return Path("nnUNet_results") / LABELLED_FOLDER.name / trained / f"fold_{FOLD}"

    @property
    def predictions(self) -> Path:
        """Predicted segmentations, relative to the output folder."""
        return Path("predictions") / self.folder


PRETRAINED = Arm("pre-trained", "pretrained", "DemoPretrained")
SCRATCH = Arm("from scratch", "scratch", "DemoScratch", ("--from-scratch",))
ARMS = (PRETRAINED, SCRATCH)


@dataclass(frozen=True)
class Curves:
    """One training, a value an epoch; ``pseudo_dice`` is the mean over labels (empty for pre-training)."""

    train_loss: list[float]
    val_loss: list[float]
    pseudo_dice: list[float]


@dataclass(frozen=True)
class HeldOutCase:
    """A held-out brain on one grid (X, Y, Z): the image, the truth, and each arm's prediction by title."""

    name: str
    image: NDArray[np.float32]
    truth: Labels
    predictions: dict[str, Labels]


def read_reconstruction(out: Path) -> dict[str, Any]:
    """Pre-training's own validation: val_loss, psnr, ssim, r2, cases."""
    path = out / PRETRAINED_FOLDER / "validation" / "summary.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete {out / 'stages'} and run the demo again") from error
    return dict(content)


def read_schedule(out: Path, arm: Arm) -> str:
    """How an arm was fine-tuned, in words, from the plans that nnU-Net archived with its results."""
    path = out / arm.results.parent / "plans.json"
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        recipe = plans["configurations"][CONFIGURATION]["nnssl_mae"]["recipe"]
        return (
            f"{recipe['epochs']} epochs of {recipe['iterations']} steps, schedule '{recipe['schedule']}', "
            f"{recipe['warmup_epochs']} epochs of warm-up, highest learning rate {recipe['peak_learning_rate']}"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}; run the demo again") from error


def read_pretraining_curves(out: Path) -> Curves:
    """From the final checkpoint, without unpickling anything but tensors and plain values."""
    path = out / PRETRAINED_FOLDER / "checkpoint_final.pth"
    try:
        logged = torch.load(path, map_location="cpu", weights_only=True)["logging"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read: {error}; delete {out / 'stages'} and run the demo again") from error
    return Curves([float(v) for v in logged["train_losses"]], [float(v) for v in logged["val_losses"]], [])


def read_finetuning_curves(folder: Path) -> Curves:
    """From nnU-Net's text logs, every finished epoch."""
    whole = list(read_epochs(folder).values())
    if not whole:
        raise UserError(f"{folder} holds no nnU-Net training log with a finished epoch; run the demo again")
    return Curves(*([row[key] for row in whole] for key in ("train_loss", "val_loss", "Pseudo dice")))


def newest_preview(out: Path) -> Path:
    """The last picture that pre-training drew."""
    previews = sorted((out / PRETRAINED_FOLDER).glob("preview_*.png"), key=lambda p: (p.stat().st_mtime, p.name))
    if not previews:
        raise UserError(f"{out / PRETRAINED_FOLDER} holds no preview_*.png; run the demo again")
    return previews[-1]


def read_test_cases(out: Path) -> list[HeldOutCase]:
    """All held-out brains with both predictions."""
    cases = []
    for path in sorted((out / TEST_IMAGES).glob("*_0000.nii.gz")):
        name = path.name.removesuffix("_0000.nii.gz")
        truth = read_labels(out / LABELLED_FOLDER / "labelsTs" / f"{name}.nii.gz")
        predictions = {arm.title: read_labels(out / arm.predictions / f"{name}.nii.gz") for arm in ARMS}
        cases.append(HeldOutCase(name, read_image(path), truth, predictions))
    if not cases:
        raise UserError(f"{out / TEST_IMAGES} holds no images; delete {out / 'stages'} and run the demo again")
    return cases


def read_training_labels(out: Path) -> list[Labels]:
    """The label maps that both arms were trained on."""
    folder = out / LABELLED_FOLDER / "labelsTr"
    return [read_labels(path) for path in sorted(folder.glob(f"{TRAINING_PREFIX}_*.nii.gz"))]


def read_image(path: Path) -> NDArray[np.float32]:
    """(X, Y, Z) float32 of a NIfTI file."""
    try:
        return np.asarray(nibabel.load(path).get_fdata(dtype=np.float32))
    except (OSError, ValueError, ImageFileError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it and run the demo again") from error


def read_labels(path: Path) -> Labels:
    """(X, Y, Z) uint8 of a NIfTI file."""
    return read_image(path).round().astype(np.uint8)
