"""The floor of a study lies where nnU-Net's models lie, so that it is compared like one of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnssl_mae.comparison.runs import HeldOut, Request, find_runs
from nnssl_mae.study.floor import write_floor_predictions, write_floor_results
from nnssl_mae.study.place import FLOOR_MODEL, Fold, LabelledSet
from tests.study.datasets import set_folders

FOLDS = [Fold(0, None), Fold(100, 1)]


def write_label(path: Path, edge: int) -> None:
    """A cube of label 1 in 8^3 voxels."""
    values = np.zeros((8, 8, 8), np.uint8)
    values[:edge, :edge, :edge] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelledSet:
    set_folders(tmp_path, monkeypatch)
    made = LabelledSet(4, "Dataset004_Tiny")
    edges = {"a": 4, "b": 4, "c": 6, "d": 4}
    for case, edge in edges.items():
        write_label(made.raw / "labelsTr" / f"{case}.nii.gz", edge)
    write_label(made.raw / "labelsTs" / "t.nii.gz", 4)
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}
    (made.raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}))
    made.preprocessed.mkdir(parents=True)
    (made.preprocessed / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}))
    plans = {"dataset_name": made.name, "plans_name": "nnUNetPlans", "image_reader_writer": "NibabelIO",
             "label_manager": "LabelManager", "configurations": {}}  # fmt: skip
    (made.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    splits = [{"train": ["a", "b"], "val": ["c", "d"]}] * 100 + [{"train": ["a"], "val": ["c", "d"]}]
    (made.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    few = {"version": 1, "folds": {"100": {"labelled": 1, "repeat": 0}}, "subjects": {}}
    (made.preprocessed / "nnssl_folds.json").write_text(json.dumps(few))
    return made


def test_floor_of_validated_folds_is_found_and_scored(labelled: LabelledSet, tmp_path: Path) -> None:
    roots = [tmp_path / "seed_0", tmp_path / "seed_1"]
    write_floor_results(labelled, FOLDS, roots)
    results = {root.name: root for root in roots}
    found = find_runs(Request(datasets=(4,), arms={"floor": FLOOR_MODEL}, results=results))
    assert not found.unfinished
    assert [(run.replicate, run.fold, run.labelled, run.cases) for run in found.runs] == [
        (root.name, fold, count, ("c", "d")) for root in roots for fold, count in (("0", None), ("100", 1))
    ]
    summary = json.loads(
        (roots[1] / labelled.name / FLOOR_MODEL / "fold_0" / "validation" / "summary.json").read_text()
    )
    # The training labels are a cube of 4^3 voxels: equal to case d, and 64 of the 216 voxels of case c.
    assert summary["foreground_mean"]["Dice"] == pytest.approx((1 + 2 * 64 / (64 + 216)) / 2)


def test_floor_of_a_test_set_knows_its_label_counts(labelled: LabelledSet, tmp_path: Path) -> None:
    outs = [tmp_path / "floor" / f"seed_{seed}" for seed in range(2)]
    references = labelled.raw / "labelsTs"
    write_floor_predictions(labelled, FOLDS, references, outs)
    found = find_runs(Request(held_out=(HeldOut(4, references, {"floor": outs}),)))
    assert not found.unfinished
    assert [(run.replicate, run.fold, run.labelled, run.cases) for run in found.runs] == [
        (f"seed_{seed}", fold, count, ("t",)) for seed in range(2) for fold, count in (("0", None), ("100", 1))
    ]
