"""Labelled datasets with genuine plans of nnU-Net, for which only the fingerprint is made up: no images are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)

from nnssl_mae.folders import planner_environment

NAME = "Dataset004_Made"
NUMBER = 4
_INTENSITIES = {
    "max": 900.0, "mean": 80.0, "median": 75.0, "min": -300.0,
    "percentile_00_5": -90.0, "percentile_99_5": 210.0, "std": 40.0,
}  # fmt: skip
PLANNERS = {"nnUNetResEncUNetLPlans": nnUNetPlannerResEncL, "nnUNetPlans": ExperimentPlanner}


@dataclass(frozen=True)
class Made:
    """What a dataset is like; ``spacing`` and ``shape`` of a case as its file has them, from the slowest axis."""

    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0)
    shape: tuple[int, int, int] = (48, 48, 48)
    channels: tuple[str, ...] = ("T1",)
    labels: Mapping[str, Any] | None = None
    regions_class_order: Sequence[int] | None = None
    stored: tuple[str, ...] = ("RAS",)
    """Orientations of the files, in turn; with another one the spacing is along the stored axes all the same."""
    spread: float = 1.0
    """How many times larger the voxels of the last case are than those of the first."""
    relative_size_after_cropping: float = 1.0
    cases: int = 4


def write_made(folders: Path, made: Made = Made(), plans: Sequence[str] = ("nnUNetResEncUNetLPlans",)) -> Path:
    """Writes ``Dataset004_Made`` below nnU-Net's folders and plans it; returns its preprocessed folder."""
    raw, preprocessed = folders / "raw" / NAME, folders / "preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(made.channels)},
        "labels": made.labels or {"background": 0, "one": 1, "two": 2},
        "numTraining": made.cases,
        "file_ending": ".nii.gz",
    }
    if made.regions_class_order is not None:
        dataset_json["regions_class_order"] = list(made.regions_class_order)
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    write_images(raw, made)
    factors = _factors(made)
    fingerprint = {
        "spacings": [[float(factor * edge) for edge in made.spacing] for factor in factors],
        "shapes_after_crop": [list(made.shape)] * made.cases,
        "foreground_intensity_properties_per_channel": {
            str(index): _INTENSITIES for index in range(len(made.channels))
        },
        "median_relative_size_after_cropping": made.relative_size_after_cropping,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    with torch.device("meta"), planner_environment():
        for name in plans:
            PLANNERS[name](NUMBER, plans_name=name).plan_experiment()
    return preprocessed


def _factors(made: Made) -> list[float]:
    return [float(factor) for factor in np.geomspace(1, made.spread, made.cases)]


def write_images(raw: Path, made: Made) -> None:
    """Images of a few voxels, whose headers say how they are stored, and labels."""
    for case, factor in enumerate(_factors(made)):
        stored = made.stored[case % len(made.stored)]
        zooms = [factor * edge for edge in reversed(made.spacing)]  # nibabel counts from the fastest axis
        affine = np.linalg.inv(inv_ornt_aff(axcodes2ornt(stored), (2, 2, 2))) @ np.diag([*zooms, 1.0])
        affine[:3, 3] = 0
        for channel in range(len(made.channels)):
            image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), affine)
            nibabel.save(image, raw / "imagesTr" / f"case{case}_{channel:04d}.nii.gz")
        labels = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)
        nibabel.save(labels, raw / "labelsTr" / f"case{case}.nii.gz")


def change_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a value of ... removes the key."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
