"""What the compared models tell of their pre-training: overlap with what they are tested on, weights never loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl_mae.comparison.entries import Run
from nnssl_mae.comparison.model_folders import archived_plans, training_logs
from nnssl_mae.plans import PLANS_BLOCK

HOW_TO_CHECK = (
    "Whether pre-training saw test images is known only where its data were made with nnssl-mae prepare "
    "--exclude-dataset NUMBER of the labelled dataset: it leaves out scans whose voxels equal those of one of its "
    "images, and other scans of these subjects; plans made from such a checkpoint say so."
)
_FROM_SCRATCH = "trained from scratch by its plans, so there is none."
_KEPT_OUT = "checked: by its plans, scans of {datasets} were kept out of pre-training (equal voxels, same subjects)."
_LOADER = "nnUNetTrainerMAEFinetune"
_LOADED = "Pre-trained weights: "
"""What that trainer, and any that is derived from it under another name, logs when it loads them."""


def overlap_of_arms(runs: Sequence[Run]) -> dict[str, str | None]:
    """Of each arm what is known on overlap: what is true of every run of it, or nothing."""
    found: dict[str, set[str | None]] = {}
    for run in runs:
        of_model = run.predictions if run.model is None else run.model.parent  # nnUNetv2_predict copies the plans
        found.setdefault(run.arm, set()).add(_overlap_of(of_model, run.dataset))
    known = {arm: sentences - {_FROM_SCRATCH} or {_FROM_SCRATCH} for arm, sentences in found.items()}
    return {
        arm: None if None in sentences else " ".join(sorted(filter(None, sentences)))
        for arm, sentences in known.items()
    }


def weights_never_loaded(runs: Sequence[Run]) -> list[str]:
    """A sentence on each model whose plans name pre-trained weights that its trainer does not load.

    Predictions of a test set do not tell which trainer their model had.
    """
    models = {run.model.parent: run for run in runs if run.model is not None and _ignored_its_weights(run.model)}
    return [
        f"Warning: the plans of {model.name} (arm {run.arm}, {run.dataset}) name pre-trained weights, but its trainer "
        f"{_trainer(model)} never loads them: it began with random weights, unless nnUNetv2_train was given "
        f"-pretrained_weights, which results do not tell. Train with -tr {_LOADER}."
        for model, run in models.items()
    ]


def _ignored_its_weights(fold: Path) -> bool:
    block = _finetune_block(fold.parent)
    if block is None or block.get("initialisation") is None or _trainer(fold.parent) == _LOADER:
        return False
    return not any(_LOADED in log for log in training_logs(fold))


def _trainer(model: Path) -> str:
    return model.name.split("__")[0]


def _overlap_of(model: Path, dataset: str) -> str | None:
    """What plans of ours say; other plans do not tell what nnU-Net's ``-pretrained_weights`` was given."""
    block = _finetune_block(model)
    if block is None:
        return None
    initialisation = block.get("initialisation")
    if initialisation is None:
        return _FROM_SCRATCH
    origin = initialisation.get("origin") if isinstance(initialisation, Mapping) else None
    excluded = origin.get("excluded_datasets") if isinstance(origin, Mapping) else None
    return _KEPT_OUT.format(datasets=dataset) if isinstance(excluded, list) and dataset in excluded else None


def _finetune_block(model: Path) -> Mapping[str, Any] | None:
    """Our block in the plans beside a model or its predictions; None of plans that are not ours, or gone."""
    configurations = archived_plans(model).get("configurations")
    of_each = configurations.values() if isinstance(configurations, Mapping) else ()
    found = [each.get(PLANS_BLOCK) for each in of_each if isinstance(each, Mapping)]
    blocks = [block for block in found if isinstance(block, Mapping)]
    ours = [block.get("kind") for block in blocks] == ["finetune"]  # ours hold one configuration
    return blocks[0] if ours else None
