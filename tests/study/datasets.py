"""Datasets of which only names and descriptions are there: enough to plan a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def write_labelled(folders: Path, number: int, name: str, cases: int = 6, tests: int = 0) -> Path:
    """Writes ``nnUNet_raw/DatasetNNN_Name`` with files that hold a word; returns it."""
    raw = folders / "raw" / f"Dataset{number:03d}_{name}"
    for part, count in (("Tr", cases), ("Ts", tests)):
        if count:
            (raw / f"labels{part}").mkdir(parents=True)
            (raw / f"images{part}").mkdir()
        for index in range(count):
            (raw / f"labels{part}" / f"case{index}.nii.gz").write_text(f"labels {part} {index}")
            (raw / f"images{part}" / f"case{index}_0000.nii.gz").write_text(f"image {part} {index}")
    content = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1},
        "numTraining": cases, "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw


def write_prepared(folders: Path, number: int, name: str, left_out: tuple[int, ...] = ()) -> Path:
    """Writes what shows that an unlabelled dataset was prepared."""
    folder = folders / "preprocessed" / f"Dataset{number:03d}_{name}"
    folder.mkdir(parents=True)
    (folder / "nnsslMAEPlans.json").write_text("{}")
    (folder / "request.json").write_text(json.dumps({"exclude_datasets": list(left_out)}))
    return folder


def set_folders(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points nnU-Net's variables to ``folders``."""
    for name in ("raw", "preprocessed", "results"):
        (folders / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(folders / name))
