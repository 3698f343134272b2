"""The arm that learns nothing, written as nnU-Net writes: what the training labels of a fold predict by themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnssl_mae.comparison.floor import write_floor
from nnssl_mae.comparison.model_folders import label_files
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.plans import STOCK_PLANS
from nnssl_mae.study.place import FLOOR_MODEL, Fold, LabelledSet, file_ending


def write_floor_results(labelled: LabelledSet, folds: Sequence[Fold], roots: Sequence[Path]) -> None:
    """Beside the models of each results root: ``Floor__.../fold_N/validation`` with predictions and summary.

    Args:
        labelled: the dataset, with its splits.
        folds: the folds whose training cases decide, and whose validation cases are predicted.
        roots: ``nnUNet_results`` of each repetition; the floor is the same in all.
    """
    for fold in folds:
        split = _split(labelled, fold.number)
        first = roots[0] / labelled.name / FLOOR_MODEL
        folder = first / f"fold_{fold.number}" / "validation"
        ending = file_ending(labelled)
        write_floor(
            [_label(labelled, case, ending) for case in split["train"]],
            {case: _label(labelled, case, ending) for case in split["val"]},
            folder,
            ending,
        )
        _describe(labelled, first)
        _score(labelled, folder)
    for root in roots[1:]:
        shutil.copytree(roots[0] / labelled.name / FLOOR_MODEL, root / labelled.name / FLOOR_MODEL, dirs_exist_ok=True)


def write_floor_predictions(
    labelled: LabelledSet, folds: Sequence[Fold], references: Path, outs: Sequence[Path]
) -> None:
    """Of a test set: ``OUT/fold_N`` with a prediction of every reference.

    Args:
        labelled: the dataset, with its splits.
        folds: the folds whose training cases decide.
        references: folder of the test set's segmentations, of which only the grids are looked at.
        outs: a folder a repetition; the floor is the same in all.
    """
    ending = file_ending(labelled)
    cases = label_files(references, ending)
    for fold in folds:
        training = [_label(labelled, case, ending) for case in _split(labelled, fold.number)["train"]]
        write_floor(training, cases, outs[0] / f"fold_{fold.number}", ending)
        _describe(labelled, outs[0] / f"fold_{fold.number}")
    for out in outs[1:]:
        shutil.copytree(outs[0], out, dirs_exist_ok=True)


def _split(labelled: LabelledSet, fold: int) -> dict[str, list[str]]:
    file = labelled.preprocessed / "splits_final.json"
    try:
        split: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))[fold]
        return {side: list(split[side]) for side in ("train", "val")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} has no usable fold {fold} ({error}); train a fold of it first") from error


def _label(labelled: LabelledSet, case: str, ending: str) -> Path:
    return labelled.raw / "labelsTr" / f"{case}{ending}"


def _plans(labelled: LabelledSet) -> dict[str, Any]:
    files = [labelled.preprocessed / f"{name}.json" for name in STOCK_PLANS]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{labelled.name} has no plans of nnU-Net; run nnUNetv2_plan_experiment -d {labelled.number}")
    return read_json(found, "plan the dataset again")


def _describe(labelled: LabelledSet, folder: Path) -> None:
    """What nnU-Net archives with a model or predictions."""
    (folder / "plans.json").write_text(json.dumps(_plans(labelled), indent=4), encoding="utf-8")
    shutil.copyfile(labelled.raw / "dataset.json", folder / "dataset.json")


def _score(labelled: LabelledSet, folder: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset_json = read_json(labelled.raw / "dataset.json", "repair it")
    manager = PlansManager(_plans(labelled))
    labels = manager.get_label_manager(dataset_json)
    compute_metrics_on_folder(
        str(labelled.raw / "labelsTr"),
        str(folder),
        str(folder / "summary.json"),
        manager.image_reader_writer_class(),
        dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        num_processes=1,
    )
