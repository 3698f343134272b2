"""A labelled dataset as nnU-Net leaves it after preprocessing, as far as splits look at it: names, labels, plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rich.console import Console

from nnssl_mae.few_labels.make import Splits, SplitsRequest, make_splits

NAME = "Dataset004_Tiny"
DATA = "nnUNetPlans_3d_fullres"
LABELS = {"background": 0, "left": 1, "right": 2}


def write_dataset(
    folders: Path,
    cases: Sequence[str] = tuple(f"case{index:02d}" for index in range(20)),
    voxels: Mapping[str, Mapping[int, int]] | None = None,
    labels: Mapping[str, Any] = LABELS,
    **more: Any,
) -> Path:
    """Writes ``Dataset004_Tiny`` into ``preprocessed`` below the folders; returns its folder.

    Args:
        folders: with nnU-Net's three.
        cases: names, in any order.
        voxels: how many voxels of each value a case's labels hold; without, some of all that dataset.json names.
        labels, more: of ``dataset.json``.
    """
    folder = folders / "preprocessed" / NAME
    for part in (DATA, "gt_segmentations"):
        (folder / part).mkdir(parents=True)
    content = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, **more}))
    plans = {"image_reader_writer": "NibabelIO", "configurations": {"3d_fullres": {"data_identifier": DATA}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for index, case in enumerate(cases):
        (folder / DATA / f"{case}.b2nd").touch()
        (folder / DATA / f"{case}_seg.b2nd").touch()
        counts = {1: 10 + index, 2: 30 - index % 7} if voxels is None else voxels.get(case, {})
        write_labels(folder / "gt_segmentations" / f"{case}.nii.gz", counts)
    return folder


def write_labels(file: Path, counts: Mapping[int, int]) -> None:
    """Writes labels with this many voxels of each value, and background."""
    values = np.repeat(list(counts), list(counts.values())) if counts else np.zeros(0)
    image = np.zeros(1000, dtype=np.float32)
    image[: len(values)] = values
    nibabel.save(nibabel.Nifti1Image(image.reshape(10, 10, 10), np.eye(4)), file)


def split(*labelled: int, repeats: int = 3, dry_run: bool = False, overwrite: bool = False, **more: Any) -> Splits:
    """Runs ``nnssl-mae splits -d 4`` without printing, in this process."""
    request = SplitsRequest(number=4, labelled=labelled or (1, 2, 5), repeats=repeats, **more)
    return make_splits(request, 1, Console(quiet=True), dry_run, overwrite)


def stock_split(folder: Path, fold: int | str) -> tuple[list[str], list[str]]:
    """Training and validation cases of stock nnU-Net's own ``do_split``."""
    trainer = SimpleNamespace(
        dataset_class=None,
        fold=fold,
        preprocessed_dataset_folder=str(folder / DATA),
        preprocessed_dataset_folder_base=str(folder),
        folder_with_segs_from_previous_stage=None,
        print_to_log_file=lambda *_: None,
    )
    training, validation = nnUNetTrainer.do_split(trainer)
    return list(training), list(validation)


def on_disk(folder: Path) -> dict[str, bytes]:
    """Content of the files beside the preprocessed cases."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
