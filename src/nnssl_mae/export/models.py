"""Folders that nnU-Net predicts from: what of one is exported, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
_FOLD = re.compile(r"fold_(all|0|[1-9][0-9]*)")
"""As nnU-Net names them, so that no two are of the same number; backups such as ``fold_0_bak`` are none."""


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
    left_out: tuple[str, ...] = ()
    """Folders that are called almost like folds and are none, such as backups."""

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
    check_plans(plans, str(folder / "plans.json"))
    if _is_pretraining(plans):
        if folder == place:
            raise UserError(
                f"{path} is the folder of a pre-training; give the folder of its fold, such as {folder / 'fold_all'}"
            )
        return None
    _check_dataset(dataset, folder / "dataset.json")
    model = Model(folder, plans, dataset, folds=())
    if folder == fold:
        names = sorted(path.name for path in folder.glob("fold_*") if path.is_dir())
        model = replace(model, left_out=tuple(name for name in names if not _FOLD.fullmatch(name)))
        return replace(model, folds=_finished(model, [name for name in names if name not in model.left_out]))
    name = CHECKPOINT if place.is_dir() else place.name
    match = _FOLD.fullmatch(fold.name)
    if match is None:
        raise UserError(
            f"{fold} is no fold: nnU-Net calls them fold_0, fold_1 and so on, or fold_all; give one of those"
        )
    return _with_fold(model, match[1], name)


def check_plans(plans: Mapping[str, Any], shown: str) -> None:
    """Refuses plans that have not the form of nnU-Net's, as far as an export looks into them.

    Args:
        plans: of ``plans.json`` or of a checkpoint.
        shown: what to call their file in errors.

    Raises:
        UserError: see above.
    """
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(each, dict) for each in configurations.values()):
        raise UserError(f"{shown} has no configurations; {DAMAGED}")
    for name, configuration in configurations.items():
        where = f"{shown}, configuration {name},"
        architecture = _part(configuration, "architecture", where)
        if architecture is None and "architecture" in configuration:
            raise UserError(f"{where} has an architecture that is null; {DAMAGED}")
        _part(architecture, "arch_kwargs", where)
        block = _part(configuration, PLANS_BLOCK, where)
        recipe, initialisation = _part(block, "recipe", where), _part(block, "initialisation", where)
        _check_texts(recipe, "citation", where)
        _check_texts(_part(initialisation, "origin", where), "citations", where)


def _part(content: Mapping[str, Any] | None, key: str, where: str) -> dict[str, Any] | None:
    """What stands under a key, if it is there and not null."""
    part = (content or {}).get(key)
    if part is not None and not isinstance(part, dict):
        raise UserError(f"{where} has {str(part)[:40]!r} as {key}, which should be an object; {DAMAGED}")
    return part


def _check_texts(content: Mapping[str, Any] | None, key: str, where: str) -> None:
    texts = (content or {}).get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has {key} that are no list of texts; {DAMAGED}")


def _check_dataset(dataset: Mapping[str, Any], file: Path) -> None:
    for key in ("labels", "channel_names", "modality"):
        _part(dataset, key, str(file))


def _is_pretraining(plans: Mapping[str, Any]) -> bool:
    blocks = (configuration.get(PLANS_BLOCK) for configuration in plans["configurations"].values())
    return any(isinstance(block, dict) and block.get("kind") == "pretrain" for block in blocks)


def _finished(model: Model, names: Iterable[str]) -> tuple[str, ...]:
    """Of the names of folds, those of folds that are trained and validated; numbers first."""
    folds = [name.removeprefix("fold_") for name in names]
    finished = tuple(fold for fold in folds if not _missing(model, fold))
    if not finished:
        lacking = [f"fold_{fold} lacks {_missing(model, fold)}" for fold in folds]
        found = ", ".join(lacking + [f"{name} is no name of a fold" for name in model.left_out]) or "it has no fold"
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
