"""Result folders as nnU-Net leaves them, without the training.

The metrics in ``summary.json`` are nnU-Net's own; only its pool of processes is left out, which takes seconds to start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

LABELS = {"background": 0, "one": 1}
LabelMaps = Mapping[str, NDArray[Any]]


def write_run(
    root: Path,
    dataset: str,
    trainer: str,
    plans: str,
    configuration: str,
    fold: int | str,
    references: LabelMaps,
    predictions: LabelMaps,
    spacing: Sequence[float],
    *,
    labels: Mapping[str, Any] = LABELS,
    results: str = "results",
    finished: bool = True,
) -> Path:
    """Writes one trained and validated fold and the dataset it belongs to; returns the fold's folder.

    Args:
        root: holds ``raw``, ``preprocessed`` and ``results``, as the fixture ``nnunet_folders`` makes them.
        dataset: ``Dataset004_Tiny``.
        references: what is true, by case, (z, y, x); all of them become the fold's validation cases in
            ``splits_final.json``, also those that have no prediction.
        predictions: what the validation folder holds; ``summary.json`` tells of the other cases, too, as if their
            files had been lost since.
        spacing: mm, in the order of the arrays' axes (z, y, x).
        labels: as in ``dataset.json``: lists are regions, the name ``ignore`` is nnU-Net's ignore label.
        results: name of the results folder below ``root``.
        finished: else only a checkpoint of a training that still goes on is written.
    """
    content = dataset_json(labels)
    preprocessed = root / "preprocessed" / dataset
    (preprocessed / "gt_segmentations").mkdir(parents=True, exist_ok=True)
    _write_json(preprocessed / "dataset.json", content)
    for case, values in references.items():
        write_labels(preprocessed / "gt_segmentations" / f"{case}.nii.gz", values, spacing)
    if fold != "all":
        write_split(preprocessed, int(fold), sorted(references))

    model = root / results / dataset / f"{trainer}__{plans}__{configuration}"
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(model / "dataset.json", content)
    _write_json(model / "plans.json", plans_json(dataset, plans, configuration))
    (folder / ("checkpoint_final.pth" if finished else "checkpoint_latest.pth")).write_bytes(b"weights")
    if finished:
        written = {case: predictions.get(case, np.zeros_like(values)) for case, values in references.items()}
        write_validation(folder / "validation", preprocessed / "gt_segmentations", written, spacing, labels)
        for case in references.keys() - predictions.keys():
            (folder / "validation" / f"{case}.nii.gz").unlink()
    return folder


def write_validation(
    folder: Path, references: Path, predictions: LabelMaps, spacing: Sequence[float], labels: Mapping[str, Any]
) -> None:
    """Predictions and nnU-Net's ``summary.json`` of them."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    folder.mkdir()
    targets, ignore = evaluated(labels)
    per_case = []
    for case, values in predictions.items():
        write_labels(folder / f"{case}.nii.gz", values, spacing)
        pair = str(references / f"{case}.nii.gz"), str(folder / f"{case}.nii.gz")
        per_case.append(compute_metrics(*pair, SimpleITKIO(), targets, ignore))
    for case_metrics in per_case:
        recursive_fix_for_json_export(case_metrics)
    mean = {key: {"Dice": _mean([case["metrics"][key]["Dice"] for case in per_case])} for key in targets}
    foreground = {"Dice": _mean([values["Dice"] for values in mean.values()])}
    summary = {"metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}
    save_summary_json(summary, str(folder / "summary.json"))


def write_test_predictions(
    folder: Path,
    predictions: LabelMaps,
    spacing: Sequence[float],
    *,
    labels: Mapping[str, Any] = LABELS,
    dataset: str = "Dataset004_Tiny",
    plans: str = "nnUNetPlans",
) -> None:
    """A folder as ``nnUNetv2_predict`` leaves it."""
    folder.mkdir(parents=True)
    _write_json(folder / "dataset.json", dataset_json(labels))
    _write_json(folder / "plans.json", plans_json(dataset, plans, "3d_fullres"))
    _write_json(folder / "predict_from_raw_data_args.json", {"num_parts": 1, "part_id": 0})
    for case, values in predictions.items():
        write_labels(folder / f"{case}.nii.gz", values, spacing)


def write_few_label_map(
    root: Path, dataset: str, folds: Mapping[str, Mapping[str, int]], subjects: Mapping[str, str]
) -> None:
    """``nnssl_folds.json`` beside ``splits_final.json``: how many labelled cases which fold has, and whose they are."""
    content = {
        "version": 1,
        "seed": 0,
        "validation": sorted(subjects),
        "subjects": dict(subjects),
        "folds": {fold: dict(entry) for fold, entry in folds.items()},
        "stock_folds": 5,
    }
    preprocessed = root / "preprocessed" / dataset
    _write_json(preprocessed / "nnssl_folds.json", content)
    for fold in folds:
        if (preprocessed / "splits_final.json").is_file():
            write_split(preprocessed, int(fold))


def write_labels(path: Path, values: NDArray[Any], spacing: Sequence[float]) -> None:
    """A label map (z, y, x) with its spacing in the same order; SimpleITK takes it as (x, y, z)."""
    image = sitk.GetImageFromArray(values.astype(np.uint8))
    image.SetSpacing([float(mm) for mm in reversed(spacing)])
    sitk.WriteImage(image, str(path))


def write_split(preprocessed: Path, fold: int, validation: Sequence[str] | None = None) -> None:
    """Sets one fold of ``splits_final.json``, with as many training cases as ``nnssl_folds.json`` says.

    Folds that nobody asked for are filled in. Without ``validation``, the cases of a fold that is there stay.
    """
    path, few = preprocessed / "splits_final.json", preprocessed / "nnssl_folds.json"
    splits = json.loads(path.read_text()) if path.is_file() else []
    splits += [{"train": ["filler_train"], "val": ["filler_val"]} for _ in range(fold + 1 - len(splits))]
    named = json.loads(few.read_text())["folds"] if few.is_file() else {}
    training = [f"training_{number}" for number in range(named.get(str(fold), {"labelled": 1})["labelled"])]
    splits[fold] = {"train": training, "val": splits[fold]["val"] if validation is None else list(validation)}
    _write_json(path, splits)


def dataset_json(labels: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's ``dataset.json`` for one channel."""
    content = {"channel_names": {"0": "MRI"}, "labels": dict(labels), "numTraining": 4, "file_ending": ".nii.gz"}
    targets, _ = evaluated(labels)
    if any(isinstance(target, tuple) for target in targets):
        content["regions_class_order"] = list(range(1, len(targets) + 1))
    return content


def plans_json(dataset: str, plans: str, configuration: str) -> dict[str, Any]:
    """What readers of results need of nnU-Net's plans."""
    return {
        "dataset_name": dataset,
        "plans_name": plans,
        "image_reader_writer": "SimpleITKIO",
        "configurations": {configuration: {}},
    }


def evaluated(labels: Mapping[str, Any]) -> tuple[list[Any], int | None]:
    """What nnU-Net evaluates for these labels (numbers, or tuples where there are regions) and its ignore label."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    names = [name for name, value in labels.items() if name != "ignore" and value != 0]
    has_regions = any(isinstance(labels[name], list) for name in names)
    manager = LabelManager(dict(labels), list(range(1, len(names) + 1)) if has_regions else None)
    return manager.foreground_regions if manager.has_regions else manager.foreground_labels, manager.ignore_label


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
