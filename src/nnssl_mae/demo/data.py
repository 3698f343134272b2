"""Writes the demonstration's scans: an unlabelled collection, and a small labelled nnU-Net dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from nnssl_mae.brains.anatomy import LABEL_NAMES, find_real_scans, load_anatomy
from nnssl_mae.brains.writing import Subject, write_dataset_json, write_subjects, write_volume
from nnssl_mae.demo.size import DemoSize
from nnssl_mae.files import write_json

UNLABELLED, LABELLED = 900, 901
UNLABELLED_NAME, LABELLED_NAME = "DemoUnlabelled", "DemoBrains"
TRAINING_PREFIX, VALIDATION_PREFIX = "train", "val"
SCANS = Path("scans")
LABELLED_FOLDER = Path("nnUNet_raw") / f"Dataset{LABELLED}_{LABELLED_NAME}"

# Which set a brain belongs to is part of its seed, so no subject can be in two sets.
_PRETRAINING, _TRAINING, _TEST, _VALIDATION = 0, 1, 2, 3


def list_subjects(size: DemoSize) -> list[Subject]:
    """All brains of the demonstration, with where they go."""
    subjects = []
    for i in range(size.unlabelled):
        name = f"sub-{i + 1:02d}"
        image = SCANS / name / "anat" / f"{name}_T1w.nii.gz"
        subjects.append(Subject((size.seed, _PRETRAINING, i), image, None))
    for part, count, suffix, prefix in (
        (_TRAINING, size.training, "Tr", TRAINING_PREFIX),
        (_VALIDATION, size.validation, "Tr", VALIDATION_PREFIX),
        (_TEST, size.test, "Ts", "test"),
    ):
        for i in range(count):
            name = f"{prefix}_{i + 1:02d}"
            image = LABELLED_FOLDER / f"images{suffix}" / f"{name}_0000.nii.gz"
            label = LABELLED_FOLDER / f"labels{suffix}" / f"{name}.nii.gz"
            seed = (size.seed, part, i)
            subjects.append(Subject(seed, image, label, size.labelled_styles, size.labelled_lesions, 0.0))
    return subjects


def write_data(out: Path, size: DemoSize, on_line: Callable[[str], None]) -> None:
    """Write every scan, ``dataset.json`` and ``subjects.json``; ``on_line`` is told about each finished scan."""
    subjects = list_subjects(size)
    write_subjects(out, {"icbm": load_anatomy(size.resolution)}, subjects, size.workers, on_line)
    for name, source in find_real_scans().items():
        on_line(f"real scan: {write_real_scan(source, out / SCANS, name)}")
    write_dataset_json(out / LABELLED_FOLDER, size.training + size.validation, LABEL_NAMES)
    write_split(out / LABELLED_FOLDER)
    write_json(out / "subjects.json", [{"seed": s.seed, "image": s.image.as_posix()} for s in subjects])


def write_real_scan(source: Path, scans: Path, name: str) -> str:
    """Copy a real scan into the collection, in RAS order like the others; returns its name."""
    scan = nibabel.as_closest_canonical(nibabel.load(source))
    path = scans / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
    write_volume(path, np.asarray(scan.get_fdata(), dtype=np.float32), scan.affine)
    return path.name


def write_split(folder: Path) -> None:
    """The one fold: nnU-Net's planner takes ``splits_final.json`` from beside the raw data."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").glob("*.nii.gz"))
    fold = {
        part: [case for case in cases if case.startswith(prefix)]
        for part, prefix in (("train", TRAINING_PREFIX), ("val", VALIDATION_PREFIX))
    }
    write_json(folder / "splits_final.json", [fold])
