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
    second = {"references": {"case_c": CUBE}, "predictions": {"case_c": CUBE}}
    run(nnunet_folders, "SomebodysTrainer", fold=1, **second)
    run(nnunet_folders, "SomebodysTrainer", fold=0)
    run(nnunet_folders, "nnUNetTrainer", fold=1, **second)
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


def test_predictions_that_were_lost_are_expected(nnunet_folders: Path) -> None:
    run(nnunet_folders, predictions={"case_a": CUBE})
    assert find_runs(Request((4,))).runs[0].cases == ("case_a", "case_b")


def test_without_splits_the_validated_cases_are_expected(nnunet_folders: Path) -> None:
    run(nnunet_folders, references={"case_a": CUBE}, predictions={"case_a": CUBE})
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


def test_a_few_label_fold_that_no_map_names_is_a_hole_not_a_fold_with_all_labels(nnunet_folders: Path) -> None:
    for fold in (0, 100, 101):
        run(nnunet_folders, fold=fold)
    found = find_runs(Request((4,)))
    assert [r.fold for r in found.runs] == ["0"]
    assert all("nobody knows how many labelled cases" in why for why in whys(found).values())
    write_few_label_map(nnunet_folders, DATASET, {"101": {"labelled": 1, "repeat": 0}}, {})
    found = find_runs(Request((4,)))
    assert [(r.fold, r.labelled) for r in found.runs] == [("0", None), ("101", 1)]
    assert list(whys(found)) == [(STOCK, STOCK, "100")]


def test_predictions_of_a_few_label_fold_without_plans_are_a_hole(nnunet_folders: Path, references: Path) -> None:
    run(nnunet_folders, fold=100)
    write_few_label_map(nnunet_folders, DATASET, {"100": {"labelled": 1, "repeat": 0}}, {})
    for fold in (0, 100):
        write_test_predictions(nnunet_folders / "mae" / f"fold_{fold}", MAPS, SPACING)
    (nnunet_folders / "mae" / "fold_100" / "plans.json").unlink()
    found = find_runs(Request(held_out=(HeldOut("set", references, {"mae": [nnunet_folders / "mae"]}),)))
    assert [r.fold for r in found.runs] == ["0"]
    assert "plans.json" in whys(found)["mae", "mae", "100"]


def test_a_case_in_two_folds_of_a_model_is_refused(nnunet_folders: Path) -> None:
    """Folds 5 to 99 of our own splits repeat the first five."""
    for fold in (0, 5):
        run(nnunet_folders, fold=fold)
    with pytest.raises(UserError, match=r"Folds 0, 5 of .*case_a.*--fold"):
        find_runs(Request((4,)))
    assert len(find_runs(Request((4,), folds=("0",))).runs) == 1


def test_swapped_labels_are_other_labels(nnunet_folders: Path) -> None:
    run(nnunet_folders, "Old", labels={"background": 0, "a": 1, "b": 2, "c": 3})
    run(nnunet_folders, "Half", labels={"background": 0, "b": 1, "d": 2, "c": 3})
    run(nnunet_folders, labels={"background": 0, "a": 2, "b": 1, "c": 3})
    found = find_runs(Request((4,)))
    assert [r.arm for r in found.runs] == ["Half__nnUNetPlans__3d_fullres", STOCK]
    assert "other labels" in whys(found)["Old__nnUNetPlans__3d_fullres", "Old__nnUNetPlans__3d_fullres", "0"]


def test_test_predictions_of_different_labels_need_the_dataset(nnunet_folders: Path, references: Path) -> None:
    write_test_predictions(nnunet_folders / "A", MAPS, SPACING, labels={"background": 0, "a": 1, "b": 2})
    write_test_predictions(nnunet_folders / "B", MAPS, SPACING, labels={"background": 0, "a": 2, "b": 1})
    folders = {arm: [nnunet_folders / arm] for arm in "AB"}
    with pytest.raises(UserError, match=r"'A' and 'B'.*a 1, b 2; a 2, b 1.*give -d"):
        find_runs(Request(held_out=(HeldOut("set", references, folders),)))
    run(nnunet_folders, labels={"background": 0, "a": 1, "b": 2})
    found = find_runs(Request(held_out=(HeldOut(4, references, folders),)))
    assert [r.arm for r in found.runs] == ["A"]
    assert list(whys(found)) == [("B", "B", "test")]


@pytest.mark.parametrize("today", [["case_a", "case_b", "case_c"], ["case_a"]])
def test_other_validation_cases_than_today_are_a_hole_not_a_failure(nnunet_folders: Path, today: list[str]) -> None:
    run(nnunet_folders)
    run(nnunet_folders, "New", references=dict.fromkeys(today, CUBE), predictions=dict.fromkeys(today, CUBE))
    found = find_runs(Request((4,)))
    assert [r.arm for r in found.runs] == ["New__nnUNetPlans__3d_fullres"]
    assert "other cases than fold 0" in whys(found)[STOCK, STOCK, "0"]


@pytest.mark.parametrize(("logged", "compared"), [(3, True), (1, False)])
def test_a_log_that_tells_of_another_number_of_labels_is_believed(
    nnunet_folders: Path, logged: int, compared: bool
) -> None:
    folder = run(nnunet_folders, fold=100)
    run(nnunet_folders)
    write_few_label_map(nnunet_folders, DATASET, {"100": {"labelled": 3, "repeat": 0}}, {})
    line = f"2026-01-01 00:00:00.000: This split has {logged} training and 2 validation cases.\n"
    (folder / "training_log_2026_1_1_00_00_00.txt").write_text(line)
    found = find_runs(Request((4,)))
    assert [r.fold for r in found.runs] == ["0", "100"][: 1 + compared]
    assert compared or "1 training cases, and fold 100 has 3" in found.unfinished[0].why


def test_splits_that_contradict_the_map_are_refused(nnunet_folders: Path) -> None:
    run(nnunet_folders, fold=100)
    write_few_label_map(nnunet_folders, DATASET, {"100": {"labelled": 3, "repeat": 0}}, {})
    path = nnunet_folders / "preprocessed" / DATASET / "splits_final.json"
    splits = json.loads(path.read_text())
    splits[100]["train"] = [f"case_{number}" for number in range(16)]
    path.write_text(json.dumps(splits))
    with pytest.raises(UserError, match=r"Fold 100 of .* has 16 training cases and .* says 3"):
        find_runs(Request((4,)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"folds": {"0": {"labelled": 1, "repeat": 0}}}, "damaged"),
        ({"folds": {"100": {"labelled": 0, "repeat": 0}}}, "damaged"),
        ({"folds": {"100": {"labelled": 1, "repeat": True}}}, "damaged"),
        ({"subjects": {"case_a": ["anna"]}}, "damaged"),
    ],
)
def test_a_damaged_map_of_folds_is_named(nnunet_folders: Path, content: dict[str, Any], words: str) -> None:
    run(nnunet_folders)
    path = nnunet_folders / "preprocessed" / DATASET / "nnssl_folds.json"
    path.write_text(json.dumps({"version": 1, "folds": {}, "subjects": {}} | content))
    with pytest.raises(UserError, match=f"{path} .*{words}"):
        find_runs(Request((4,)))


@pytest.mark.parametrize("validation", ["abc", ["../../x"], [1]])
def test_damaged_splits_are_named(nnunet_folders: Path, validation: Any) -> None:
    run(nnunet_folders)
    path = nnunet_folders / "preprocessed" / DATASET / "splits_final.json"
    path.write_text(json.dumps([{"train": [], "val": validation}]))
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        find_runs(Request((4,)))


@pytest.mark.parametrize(("other", "words"), [(("T", "2d"), "2 configurations .*2d, 3d"), (("U", "3d"), "2 trainers")])
def test_models_of_an_arm_differ_in_nothing_but_plans(nnunet_folders: Path, other: Any, words: str) -> None:
    for trainer, configuration in (("T", "3d"), other):
        write_run(nnunet_folders, DATASET, trainer, "mae", configuration, 0, MAPS, MAPS, SPACING)
    with pytest.raises(UserError, match=f"Arm 'mae' .* {words}"):
        find_runs(Request((4,), {"mae": "*__mae__*"}))


def test_one_folder_is_no_two_replicates(nnunet_folders: Path) -> None:
    run(nnunet_folders)
    results = nnunet_folders / "results"
    (nnunet_folders / "link").symlink_to(results)
    with pytest.raises(UserError, match="'a' and 'b' are the same folder"):
        find_runs(Request((4,), results={"a": results, "b": nnunet_folders / "link"}))


def test_test_cases_that_were_trained_on_are_told(nnunet_folders: Path, references: Path) -> None:
    run(nnunet_folders)
    path = nnunet_folders / "preprocessed" / DATASET / "splits_final.json"
    path.write_text(json.dumps([{"train": ["case_a"], "val": ["x"]}, {"train": ["x"], "val": ["case_a"]}]))
    for arm, fold in (("seen", "fold_0"), ("unseen", "fold_1"), ("any", ".")):
        write_test_predictions(nnunet_folders / arm / fold, MAPS, SPACING)
    notes = {
        arm: find_runs(Request(held_out=(HeldOut("set", references, {arm: [nnunet_folders / arm]}),))).notes
        for arm in ("seen", "unseen", "any")
    }
    assert not notes["unseen"]
    for arm in ("seen", "any"):
        assert f"1 cases, such as case_a, have names of cases that models of {arm} were trained on" in notes[arm][0]


def test_fold_all_may_predict_a_test_set(nnunet_folders: Path, references: Path) -> None:
    for fold in ("all", "0"):
        write_test_predictions(nnunet_folders / "mae" / f"fold_{fold}", MAPS, SPACING)
    held_out = HeldOut("set", references, {"mae": [nnunet_folders / "mae"]})
    assert [r.fold for r in find_runs(Request(held_out=(held_out,), folds=("all",))).runs] == ["all"]


def test_predictions_without_a_reference_are_told(nnunet_folders: Path, references: Path) -> None:
    write_test_predictions(nnunet_folders / "mae", {**MAPS, "extra": CUBE}, SPACING)
    (nnunet_folders / "mae" / "._case_a.nii.gz").write_bytes(b"of macOS")
    (references / "._case_a.nii.gz").write_bytes(b"of macOS")
    found = find_runs(Request(held_out=(HeldOut("set", references, {"mae": [nnunet_folders / "mae"]}),)))
    assert found.runs[0].cases == ("case_a", "case_b")
    assert found.notes == ("set: 1 predictions of mae, such as extra, have no reference: left out.",)


def test_folds_of_predictions_that_have_none_are_refused(nnunet_folders: Path, references: Path) -> None:
    write_test_predictions(nnunet_folders / "plain", MAPS, SPACING)
    write_test_predictions(nnunet_folders / "mae" / "fold_0", MAPS, SPACING)
    for arm, words in (("plain", "belong to no fold"), ("mae", "nothing to compare: .*fold_3")):
        held_out = HeldOut("set", references, {arm: [nnunet_folders / arm]})
        with pytest.raises(UserError, match=words):
            find_runs(Request(held_out=(held_out,), folds=("3",)))


@pytest.mark.parametrize("reader", ["os.system", ["x"]])
def test_the_plans_are_blamed_for_their_reader(nnunet_folders: Path, reader: Any) -> None:
    plans = run(nnunet_folders).parent / "plans.json"
    plans.write_text(json.dumps({"image_reader_writer": reader}))
    with pytest.raises(UserError, match=f"^{plans} asks for the reader"):
        find_runs(Request((4,)))


@pytest.mark.parametrize("value", ["Infinity", "1e999", "NaN"])
def test_labels_that_are_no_numbers_are_named(nnunet_folders: Path, value: str) -> None:
    file = run(nnunet_folders).parent / "dataset.json"
    file.write_text('{"file_ending": ".nii.gz", "labels": {"background": 0, "one": ' + value + "}}")
    with pytest.raises(UserError, match="no usable 'labels'"):
        find_runs(Request((4,)))
