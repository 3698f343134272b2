"""Folders that nnU-Net predicts from: what of one is exported, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnssl_mae.checkpoints.hub import is_hub
from nnssl_mae.errors import UserError
from nnssl_mae.export.place import CHECKPOINT
from nnssl_mae.files import read_json
from nnssl_mae.plans import PLANS_BLOCK

DAMAGED = "copy the model's folder again"
"""What to do about it."""


@dataclass(frozen=True)
class Model:
    """A folder that nnU-Net predicts from, and what of it is exported."""

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    folds: tuple[str, ...]
    """Such as ``0`` and ``all``."""
    checkpoint: str = CHECKPOINT
    """Name of the file in each fold."""

    def fold_folder(self, fold: str) -> Path:
        """Where a fold's checkpoint lies."""
        return self.folder / f"fold_{fold}"


@dataclass(frozen=True)
class Staged:
    """The copy: what it is called in nnU-Net's words, and what the card says of it."""

    results: Path
    """Stands for ``nnUNet_results``."""
    dataset: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    checkpoint: str
    block: dict[str, Any]
    """Ours, of the configuration; empty for a stock model."""
    dice: dict[str, float]
    """Mean foreground Dice of each fold's validation."""
    trainer_to_predict: str
    """The class that prediction looks up."""

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self.results / self.dataset / "__".join((self.trainer, self.plans, self.configuration))


def find_model(path: str) -> Model | None:
    """The fine-tuned (or stock) model at a path; None if there is none, such as for a pre-training.

    Args:
        path: the model's folder (every finished fold is meant), a fold's folder, or a checkpoint in one.

    Raises:
        UserError: the model has no finished fold, or its plans are damaged.
    """
    place = Path(path)
    if is_hub(path) or not place.exists():
        return None
    place = place.absolute()
    fold = place if place.is_dir() else place.parent
    folder = fold.parent if fold.name.startswith("fold_") else fold
    if not all((folder / name).is_file() for name in ("plans.json", "dataset.json")) or (
        folder == fold and not place.is_dir()
    ):
        return None
    plans, dataset = (read_json(folder / name, DAMAGED) for name in ("plans.json", "dataset.json"))
    _check_plans(plans, folder)
    if _is_pretraining(plans):
        if folder == place:
            raise UserError(
                f"{path} is the folder of a pre-training; give the folder of its fold, such as {folder / 'fold_all'}"
            )
        return None
    model = Model(folder, plans, dataset, folds=())
    if folder == fold:
        return replace(model, folds=_finished(model))
    name = CHECKPOINT if place.is_dir() else place.name
    return _with_fold(model, fold.name.removeprefix("fold_"), name)


def _check_plans(plans: Mapping[str, Any], folder: Path) -> None:
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(each, dict) for each in configurations.values()):
        raise UserError(f"{folder / 'plans.json'} has no configurations; {DAMAGED}")


def _is_pretraining(plans: Mapping[str, Any]) -> bool:
    blocks = (configuration.get(PLANS_BLOCK) for configuration in plans["configurations"].values())
    return any(isinstance(block, dict) and block.get("kind") == "pretrain" for block in blocks)


def _finished(model: Model) -> tuple[str, ...]:
    """Folds that are trained and validated; numbers first."""
    names = sorted(path.name.removeprefix("fold_") for path in model.folder.glob("fold_*") if path.is_dir())
    finished = tuple(fold for fold in names if not _missing(model, fold))
    if not finished:
        found = ", ".join(f"fold_{fold} lacks {_missing(model, fold)}" for fold in names) or "it has no fold"
        raise UserError(
            f"{model.folder} has no finished fold ({found}); let nnUNetv2_train end, or run it with --val for what "
            "was trained and not validated"
        )
    return finished


def _with_fold(model: Model, fold: str, checkpoint: str) -> Model:
    chosen = replace(model, folds=(fold,), checkpoint=checkpoint)
    missing = _missing(chosen, fold)
    if missing:
        raise UserError(
            f"{model.fold_folder(fold)} is not finished: it lacks {missing}; let nnUNetv2_train end, or run it with "
            "--val for what was trained and not validated"
        )
    return chosen


def _missing(model: Model, fold: str) -> str:
    """The first file that nnU-Net's exporter wants of a fold and does not find; empty if all are there."""
    wanted = (model.checkpoint, "progress.png", "validation/summary.json")
    return next((name for name in wanted if not (model.fold_folder(fold) / name).is_file()), "")
