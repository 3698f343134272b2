"""What is found in nnU-Net's folders, and what is told to be missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl_mae.comparison.runs import Found, HeldOut, Request, find_runs
from nnssl_mae.errors import UserError
from tests.comparison.results import write_few_label_map, write_labels, write_run, write_test_predictions

DATASET = "Dataset004_Tiny"
STOCK = "nnUNetTrainer__nnUNetPlans__3d_fullres"
SPACING = (3.0, 1.0, 1.0)
CUBE = np.zeros((4, 5, 6), np.uint8)
CUBE[1:3, 1:3, 1:3] = 1
MAPS = {"case_a": CUBE, "case_b": CUBE}


def run(
    root: Path, trainer: str = "nnUNetTrainer", fold: int | str = 0, dataset: str = DATASET, **options: Any
) -> Path:
    references, predictions = options.pop("references", MAPS), options.pop("predictions", MAPS)
    plans = options.pop("plans", "nnUNetPlans")
    return write_run(root, dataset, trainer, plans, "3d_fullres", fold, references, predictions, SPACING, **options)


def whys(found: Found) -> dict[tuple[str, str, str], str]:
    return {(hole.arm, hole.replicate, hole.fold): hole.why for hole in found.unfinished}


def test_every_model_is_an_arm_of_its_own_without_patterns(nnunet_folders: Path) -> None:
    folder = run(nnunet_folders)
    run(nnunet_folders, "SomebodysTrainer", fold=1)
    run(nnunet_folders, "SomebodysTrainer", fold=0)
    run(nnunet_folders, "nnUNetTrainer", fold=1)
    found = find_runs(Request((4,)))
    assert not found.unfinished
    assert [(r.arm, r.fold) for r in found.runs] == [
        ("SomebodysTrainer__nnUNetPlans__3d_fullres", "0"),
        ("SomebodysTrainer__nnUNetPlans__3d_fullres", "1"),
        (STOCK, "0"),
        (STOCK, "1"),
    ]
    first = found.runs[2]
    assert first.dataset == DATASET
    assert first.model == folder
    assert first.predictions == folder / "validation"
    assert first.references == nnunet_folders / "preprocessed" / DATASET / "gt_segmentations"
    assert first.labels == {"one": (1,)}
    assert first.cases == ("case_a", "case_b")
    assert (first.labelled, first.repeat, first.ignore, first.reader) == (None, None, None, "SimpleITKIO")


def test_models_of_one_pattern_are_replicates(nnunet_folders: Path) -> None:
    for plans in ("FromMAE1", "FromMAE2", "nnUNetPlans"):
        run(nnunet_folders, plans=plans)
    found = find_runs(Request((4,), {"MAE": "*__FromMAE*__*", "scratch": "*__nnUNetPlans__*"}))
    assert [(r.arm, r.replicate) for r in found.runs] == [
        ("MAE", "nnUNetTrainer__FromMAE1__3d_fullres"),
        ("MAE", "nnUNetTrainer__FromMAE2__3d_fullres"),
        ("scratch", STOCK),
    ]


def test_several_results_folders_are_replicates_named_by_their_labels(nnunet_folders: Path) -> None:
    roots = {}
    for seed in ("seed0", "seed1"):
        run(nnunet_folders, results=seed)
        roots[seed] = nnunet_folders / seed
    run(nnunet_folders, "Other", results="seed0")
    found = find_runs(Request((4,), results=roots))
    assert [(r.arm, r.replicate) for r in found.runs] == [
        ("Other__nnUNetPlans__3d_fullres", "seed0"),
        (STOCK, "seed0"),
        (STOCK, "seed1"),
    ]
    assert whys(found) == {("Other__nnUNetPlans__3d_fullres", "seed1", "0"): "there is no such result"}


def test_a_model_of_two_arms_is_refused(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    run(nnunet_folders, "nnUNetTrainerMAEFinetune")
    with pytest.raises(UserError, match=r"nnUNetTrainerMAEFinetune__.* several arms \(mae, stock\)"):
        find_runs(Request((4,), {"mae": "nnUNetTrainerMAE*", "stock": "nnUNetTrainer*"}))


def test_an_arm_without_any_model_is_refused_with_what_there_is(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    with pytest.raises(UserError, match=f"Arm 'mae' .* there are: {STOCK}"):
        find_runs(Request((4,), {"mae": "nnUNetTrainerMAE__*"}))


def test_an_arm_without_a_model_in_one_dataset_is_a_hole_there(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    run(nnunet_folders, "Mine")
    run(nnunet_folders, dataset="Dataset005_Other")
    found = find_runs(Request((4, 5), {"stock": "nnUNetTrainer__*", "mine": "Mine__*"}))
    assert [(h.dataset, h.arm, h.fold) for h in found.unfinished] == [("Dataset005_Other", "mine", "0")]


def test_a_training_that_goes_on_is_a_hole_with_the_reason(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    run(nnunet_folders, "Mine", finished=False)
    found = find_runs(Request((4,)))
    assert [r.arm for r in found.runs] == [STOCK]
    mine = "Mine__nnUNetPlans__3d_fullres"
    assert whys(found) == {(mine, mine, "0"): "training has not ended"}


def test_a_fold_that_is_trained_again_is_a_hole(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    again = run(nnunet_folders, "Mine")
    (again / "checkpoint_final.pth").rename(again / "checkpoint_latest.pth")
    assert list(whys(find_runs(Request((4,)))).values()) == ["training has not ended"]


def test_a_validated_fold_whose_weights_were_deleted_counts(nnunet_folders: Path) -> None:
    (run(nnunet_folders) / "checkpoint_final.pth").unlink()
    assert len(find_runs(Request((4,))).runs) == 1


def test_a_training_without_validation_says_how_to_get_one(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    shutil.rmtree(run(nnunet_folders, "Mine") / "validation")
    (why,) = whys(find_runs(Request((4,)))).values()
    assert "--val" in why


def test_fold_all_is_never_scored(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    run(nnunet_folders, fold="all")
    found = find_runs(Request((4,)))
    assert [r.fold for r in found.runs] == ["0"]
    assert not found.unfinished
    assert "validated on the cases it was trained on" in found.notes[0]
    assert str(nnunet_folders) not in found.notes[0], "it may go into a page for others"
    with pytest.raises(UserError, match="same cases"):
        find_runs(Request((4,), folds=("all",)))


def test_merged_cross_validation_and_ensembles_are_no_models(nnunet_folders: Path) -> None:
    model = run(nnunet_folders).parent
    shutil.copytree(model / "fold_0" / "validation", model / "crossval_results_folds_0_1_2_3_4")
    (model.parent / "ensembles").mkdir()
    assert len(find_runs(Request((4,))).runs) == 1


def test_only_the_folds_asked_for(nnunet_folders: Path) -> None:
    for fold in (0, 1):
        run(nnunet_folders, fold=fold)
    found = find_runs(Request((4,), folds=("1", "2")))
    assert [r.fold for r in found.runs] == ["1"]
    assert whys(found) == {(STOCK, STOCK, "2"): "there is no such result"}


def test_few_label_folds_know_their_count_repeat_and_subjects(nnunet_folders: Path) -> None:
    run(nnunet_folders, fold=100)
    run(nnunet_folders, fold=0)
    write_few_label_map(
        nnunet_folders, DATASET, {"100": {"labelled": 3, "repeat": 1}}, {"case_a": "anna", "case_b": "anna"}
    )
    stock, few = find_runs(Request((4,))).runs
    assert (stock.labelled, stock.repeat) == (None, None)
    assert (few.labelled, few.repeat) == (3, 1)
    assert few.subjects == {"case_a": "anna", "case_b": "anna"}


def test_cases_that_were_never_predicted_are_expected(nnunet_folders: Path) -> None:
    run(nnunet_folders, predictions={"case_a": CUBE})
    assert find_runs(Request((4,))).runs[0].cases == ("case_a", "case_b")


def test_without_splits_the_validated_cases_are_expected(nnunet_folders: Path) -> None:
    run(nnunet_folders, predictions={"case_a": CUBE})
    (nnunet_folders / "preprocessed" / DATASET / "splits_final.json").unlink()
    assert find_runs(Request((4,))).runs[0].cases == ("case_a",)


def test_a_model_of_another_split_is_a_hole(nnunet_folders: Path) -> None:
    """Cases of today's fold may have been in its training."""
    run(nnunet_folders, "Old", references={"case_c": CUBE}, predictions={"case_c": CUBE})
    run(nnunet_folders)
    (why,) = whys(find_runs(Request((4,)))).values()
    assert "other cases than fold 0" in why


def test_raw_labels_are_the_reference_where_preprocessing_is_gone(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    raw = nnunet_folders / "raw" / DATASET
    raw.mkdir()
    (nnunet_folders / "preprocessed" / DATASET / "gt_segmentations").rename(raw / "labelsTr")
    assert find_runs(Request((4,))).runs[0].references == raw / "labelsTr"
    shutil.rmtree(raw)
    with pytest.raises(UserError, match="gt_segmentations"):
        find_runs(Request((4,)))


def test_regions_and_ignore_are_read(nnunet_folders: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    run(nnunet_folders, labels=labels)
    found = find_runs(Request((4,))).runs[0]
    assert found.labels == {"whole": (1, 2), "core": (2,)}
    assert found.ignore == 3


def test_a_model_of_other_labels_is_a_hole(nnunet_folders: Path) -> None:
    run(nnunet_folders, "Old", labels={"background": 0, "one": 1, "two": 2})
    run(nnunet_folders)
    (why,) = whys(find_runs(Request((4,)))).values()
    assert "other labels" in why


def test_renamed_labels_keep_todays_name(nnunet_folders: Path) -> None:
    run(nnunet_folders, "Old", labels={"background": 0, "former": 1})
    run(nnunet_folders)
    assert [list(r.labels) for r in find_runs(Request((4,))).runs] == [["one"], ["one"]]


def test_labels_by_number_as_nnunet_1_wrote_them(nnunet_folders: Path) -> None:
    folder = run(nnunet_folders)
    for path in (folder.parent / "dataset.json", nnunet_folders / "preprocessed" / DATASET / "dataset.json"):
        path.write_text(json.dumps({"labels": {"0": "background", "1": "one"}, "file_ending": ".nii.gz"}))
    assert find_runs(Request((4,))).runs[0].labels == {"one": (1,)}


def test_a_reader_that_nnunet_does_not_bring_is_refused(nnunet_folders: Path) -> None:
    folder = run(nnunet_folders)
    (folder.parent / "plans.json").write_text(json.dumps({"image_reader_writer": "os.system"}))
    with pytest.raises(UserError, match=r"os\.system"):
        find_runs(Request((4,)))


def test_a_damaged_summary_is_named(nnunet_folders: Path) -> None:
    summary = run(nnunet_folders) / "validation" / "summary.json"
    summary.write_text('{"mean": {')
    with pytest.raises(UserError, match=str(summary)):
        find_runs(Request((4,)))


def test_nothing_at_all_says_why(nnunet_folders: Path) -> None:
    with pytest.raises(UserError, match="no dataset 4"):
        find_runs(Request((4,)))
    run(nnunet_folders, finished=False)
    with pytest.raises(UserError, match="nothing to compare: training has not ended"):
        find_runs(Request((4,)))


@pytest.fixture
def references(nnunet_folders: Path) -> Path:
    folder = nnunet_folders / "labelsTs"
    folder.mkdir()
    for case, values in MAPS.items():
        write_labels(folder / f"{case}.nii.gz", values, SPACING)
    return folder


def test_predictions_of_a_test_set(nnunet_folders: Path, references: Path) -> None:
    run(nnunet_folders)
    for seed in ("seed0", "seed1"):
        write_test_predictions(nnunet_folders / seed / "test", MAPS, SPACING)
    write_test_predictions(nnunet_folders / "stock", {"case_a": CUBE}, SPACING)
    folders = {
        "mae": [nnunet_folders / seed / "test" for seed in ("seed0", "seed1")],
        "stock": [nnunet_folders / "stock"],
    }
    found = find_runs(Request(held_out=(HeldOut(4, references, folders),)))
    assert [(r.dataset, r.arm, r.replicate, r.fold) for r in found.runs] == [
        (DATASET, "mae", "seed0/test", "test"),
        (DATASET, "mae", "seed1/test", "test"),
        (DATASET, "stock", "stock", "test"),
    ]
    assert all(r.cases == ("case_a", "case_b") and r.model is None for r in found.runs)


def test_test_predictions_by_fold_know_how_many_labels(nnunet_folders: Path, references: Path) -> None:
    run(nnunet_folders, fold=100)
    write_few_label_map(nnunet_folders, DATASET, {"100": {"labelled": 1, "repeat": 2}}, {"case_a": "anna"})
    write_test_predictions(nnunet_folders / "mae" / "fold_100", MAPS, SPACING)
    write_test_predictions(nnunet_folders / "mae" / "fold_0", MAPS, SPACING)
    write_test_predictions(nnunet_folders / "stock" / "fold_100", MAPS, SPACING)
    folders = {arm: [nnunet_folders / arm] for arm in ("mae", "stock")}
    found = find_runs(Request(held_out=(HeldOut("foreign brains", references, folders),)))
    assert [(r.dataset, r.arm, r.fold, r.labelled, r.repeat) for r in found.runs] == [
        ("foreign brains", "mae", "0", None, None),
        ("foreign brains", "mae", "100", 1, 2),
        ("foreign brains", "stock", "100", 1, 2),
    ]
    assert whys(found) == {("stock", "stock", "0"): "there is no such prediction"}


def test_a_test_set_is_not_mixed_with_the_folds_of_its_dataset(nnunet_folders: Path, references: Path) -> None:
    run(nnunet_folders)
    write_test_predictions(nnunet_folders / "stock", MAPS, SPACING)
    held_out = HeldOut(4, references, {STOCK: [nnunet_folders / "stock"]})
    found = find_runs(Request((4,), held_out=(held_out,)))
    assert [r.dataset for r in found.runs] == [DATASET, f"{DATASET} (test)"]


def test_a_folder_without_predictions_is_a_hole(nnunet_folders: Path, references: Path) -> None:
    write_test_predictions(nnunet_folders / "stock", MAPS, SPACING)
    write_test_predictions(nnunet_folders / "mae", {}, SPACING)
    held_out = HeldOut("set", references, {"mae": [nnunet_folders / "mae"], "stock": [nnunet_folders / "stock"]})
    (hole,) = find_runs(Request(held_out=(held_out,))).unfinished
    assert hole.arm == "mae"
    assert "holds no predictions" in hole.why
