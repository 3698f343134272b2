"""What repeats which steps: data, draws, scans and checkpoints, by what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from nnssl_mae.few_labels.splits_file import FoldsMap
from nnssl_mae.study import place
from nnssl_mae.study.place import Fold, LabelledSet, folds_differ
from nnssl_mae.study.plan import plan_study
from nnssl_mae.study.reading import read_study
from nnssl_mae.study.steps import step_keys
from tests.study.datasets import set_folders, write_labelled, write_prepared

STUDY = """
    name: S
    datasets: [4]
    arms:
      mae: {recipe: smoke}
      scratch: {scratch: mae}
    labelled: [1, all]
    seeds: [0]
    epochs: 5
    pretraining: {dataset: 900, seeds: [0]}
    device: cpu
    test: {4: {}}
"""
COMPARED = {"gather", "compare", "learning", "gates"}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_folders(tmp_path, monkeypatch)
    write_labelled(tmp_path, 4, "Tiny", tests=2)
    write_prepared(tmp_path, 900, "Scans")
    return tmp_path


def keys(folders: Path, text: str = STUDY) -> dict[str, str]:
    file = folders / "study.yaml"
    file.write_text(dedent(text))
    return step_keys(plan_study(read_study(file), file).steps)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Kinds of the steps whose keys differ."""
    return {name.partition("_")[0] for name in before if before[name] != after[name]}


def test_another_image_or_segmentation_of_the_same_size_repeats_what_uses_it(folders: Path) -> None:
    raw, before = folders / "raw" / "Dataset004_Tiny", keys(folders)
    for file in ("labelsTr/case0.nii.gz", "imagesTr/case0_0000.nii.gz"):
        content = (raw / file).read_text()
        (raw / file).write_text(content.replace("Tr", "??"))
        wanted = {"plan", "preprocess", "splits", "adapt", "train", "predict", "floor", *COMPARED}
        assert changed(before, keys(folders)) == wanted
        (raw / file).write_text(content)
    assert keys(folders) == before


def test_other_test_images_repeat_predictions_and_other_references_comparisons(folders: Path) -> None:
    raw, before = folders / "raw" / "Dataset004_Tiny", keys(folders)
    (raw / "imagesTs" / "case0_0000.nii.gz").write_text("another")
    assert changed(before, keys(folders)) == {"predict", *COMPARED}
    before = keys(folders)
    (raw / "labelsTs" / "case0.nii.gz").write_text("another")
    assert changed(before, keys(folders)) == {"floor", *COMPARED}


@pytest.mark.parametrize("line", ["split_seed: 1", "fold: 1"])
def test_other_draws_repeat_few_label_trainings_splits_and_floor(folders: Path, line: str) -> None:
    before, after = keys(folders), keys(folders, STUDY + f"    {line}\n")
    for name in ("splits_004", "floor_004", "train_004_mae_n1r0_s0", "compare"):
        assert before[name] != after[name], name
    is_same = before["train_004_mae_all_s0"] == after["train_004_mae_all_s0"]
    assert is_same == (line != "fold: 1")
    assert before["adapt_004_mae_p0"] == after["adapt_004_mae_p0"]


def test_folds_of_other_draws_are_not_those_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    known = FoldsMap(3, 5, {"fold": 1}, None, ("c",), {}, folds={})
    monkeypatch.setattr(place, "read_map", lambda folder: known)
    labelled, stock = LabelledSet(4, "Dataset004_Tiny"), [Fold(0, None)]
    assert folds_differ(labelled, stock, 3, 1) == ""
    for seed, fold in ((0, 1), (3, 0)):
        assert "of seed 3 and validate fold 1" in folds_differ(labelled, stock, seed, fold)


@pytest.mark.parametrize("size", ["spacing: median", "spacing: native"])
def test_control_depends_on_scans_that_decide_about_its_spacing(folders: Path, size: str) -> None:
    for name in ("one", "two"):
        (folders / name).mkdir()
        (folders / name / "scan.nii.gz").write_text(name)
    text = STUDY.replace("{dataset: 900,", "{dataset: 901, scans: [one], set: {data: {SIZE}},")
    for line, repeats in ((size, True), ("spacing: [2, 2, 2]", False)):
        given = text.replace("SIZE", line)
        before, after = keys(folders, given), keys(folders, given.replace("[one]", "[two]"))
        assert before["train_004_mae_n1r0_s0"] != after["train_004_mae_n1r0_s0"]
        assert (before["train_004_scratch_n1r0_s0"] != after["train_004_scratch_n1r0_s0"]) == repeats


def test_scans_that_come_repeat_their_preparation(folders: Path) -> None:
    (folders / "scans" / "sub").mkdir(parents=True)
    text = STUDY.replace("{dataset: 900,", "{dataset: 901, scans: [scans],")
    before = keys(folders, text)
    (folders / "scans" / "sub" / "scan.nii.gz").write_text("x")
    assert {"prepare", "pretrain"} <= changed(before, keys(folders, text))


def test_plans_that_somebody_prepared_with_the_median_spacing_count_by_content(folders: Path) -> None:
    text = STUDY.replace("seeds: [0]}", "seeds: [0], set: {data: {spacing: median}}}")
    before = keys(folders, text)
    plans = folders / "preprocessed" / "Dataset900_Scans" / "nnsslMAEPlans.json"
    plans.write_text(json.dumps({"spacing": 2}))
    assert before["train_004_scratch_n1r0_s0"] != keys(folders, text)["train_004_scratch_n1r0_s0"]


def test_replaced_checkpoint_in_a_folder_is_another_one(folders: Path) -> None:
    (folders / "run").mkdir()
    weights = folders / "run" / "checkpoint_final.pth"
    weights.write_bytes(b"A" * 9)
    text = STUDY.replace("{recipe: smoke}", "{checkpoint: run}")
    before = keys(folders, text)
    weights.write_bytes(b"B" * 9)
    assert {"adapt", "train"} <= changed(before, keys(folders, text))
