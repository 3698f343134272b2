import json
from pathlib import Path

import numpy as np
import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.patches.splits import (
    Split,
    continued_split,
    folds_by_subject,
    hold_out_by_subject,
    numbered_fold,
    read_split,
    write_split,
)


def cohort(subjects: int, scans: int) -> dict[str, str]:
    return {f"s{s:05d}_{i}": f"s{s:05d}" for s in range(subjects) for i in range(scans)}


@pytest.mark.parametrize(("subjects", "held_out"), [(100, 5), (2000, 20), (200_000, 1000)])
def test_one_percent_at_least_5_at_most_1000(subjects: int, held_out: int) -> None:
    training, validation = hold_out_by_subject(cohort(subjects, 1), seed=1)
    assert len(validation) == held_out
    assert len(training) == subjects - held_out


def test_all_scans_of_a_subject_are_on_one_side() -> None:
    cases = cohort(20, 3)
    training, validation = hold_out_by_subject(cases, seed=1)
    assert sorted(training + validation) == sorted(cases)
    assert not {cases[c] for c in training} & {cases[c] for c in validation}
    assert len(validation) == 6  # five wanted, whole subjects of three


def test_the_draw_is_fixed_by_the_seed_not_by_the_order() -> None:
    cases = cohort(50, 2)
    shuffled = dict(reversed(cases.items()))
    assert hold_out_by_subject(cases, seed=3) == hold_out_by_subject(shuffled, seed=3)
    assert hold_out_by_subject(cases, seed=3) != hold_out_by_subject(cases, seed=4)


@pytest.mark.parametrize("cases", [cohort(5, 1), cohort(1, 40), cohort(2, 3) | {"x": "s00000"}])
def test_refused_where_no_training_subject_would_be_left(cases: dict[str, str]) -> None:
    if len(set(cases.values())) == 2:
        cases = dict(list(cases.items())[:4])
    with pytest.raises(UserError, match="leaves no subject for training"):
        hold_out_by_subject(cases, seed=1)


def varied_cohort(subjects: int, seed: int = 0) -> dict[str, str]:
    """One to nine scans a subject."""
    scans = np.random.default_rng(seed).integers(1, 10, subjects)
    return {f"s{s:03d}_{i}": f"s{s:03d}" for s in range(subjects) for i in range(scans[s])}


def test_five_folds_hold_out_every_scan_once_whole_subjects_and_about_as_many_each() -> None:
    cases = varied_cohort(60)
    folds = folds_by_subject(cases)
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(cases)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
        assert not {cases[c] for c in fold["train"]} & {cases[c] for c in fold["val"]}
    sizes = [len(fold["val"]) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    assert folds == folds_by_subject(dict(reversed(cases.items())))


def test_folds_need_five_subjects() -> None:
    with pytest.raises(UserError, match=r"has 4 subjects, too few for 5 folds.*use fold 'all'"):
        folds_by_subject(cohort(4, 10))


def test_the_first_start_writes_the_folds_and_later_ones_read_them(tmp_path: Path) -> None:
    cases, file = varied_cohort(12), tmp_path / "splits_final.json"
    not_first = numbered_fold(file, cases, 2, write=False)
    assert not file.exists()
    assert numbered_fold(file, cases, 2) == not_first
    assert json.loads(file.read_text()) == folds_by_subject(cases)
    swapped = json.loads(file.read_text())[::-1]
    file.write_text(json.dumps(swapped))
    assert numbered_fold(file, cases, 0) == swapped[0]


def test_a_subject_on_both_sides_is_refused_by_name(tmp_path: Path) -> None:
    cases, file = cohort(10, 2), tmp_path / "splits_final.json"
    folds = folds_by_subject(cases)
    moved = folds[1]["val"].pop()
    folds[1]["train"].append(moved)
    file.write_text(json.dumps(folds))
    assert numbered_fold(file, cases, 0) == folds[0]
    with pytest.raises(UserError, match=f"Fold 1 of .* puts scans of 1 subjects, such as {cases[moved]}, on both"):
        numbered_fold(file, cases, 1)


def test_a_file_for_other_cases_is_refused(tmp_path: Path) -> None:
    cases, file = cohort(10, 2), tmp_path / "splits_final.json"
    numbered_fold(file, cases, 0)
    with pytest.raises(UserError, match=r"1 cases differ, such as new, which is not in the file; remove the file"):
        numbered_fold(file, cases | {"new": "new"}, 0)
    del cases["s00003_1"]
    with pytest.raises(UserError, match=r"such as s00003_1, which is not in the dataset"):
        numbered_fold(file, cases, 0)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"train": []}', '[{"train": 3, "val": []}]'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(content)
    with pytest.raises(UserError, match="cannot be read as nnU-Net's splits"):
        numbered_fold(file, cohort(6, 1), 0)


@pytest.mark.parametrize("fold", [5, -1])
@pytest.mark.parametrize("there", [True, False])
def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path, there: bool, fold: int) -> None:
    if there:
        numbered_fold(tmp_path / "f.json", cohort(6, 1), 0)
    with pytest.raises(UserError, match=rf"[Ff]old {fold}"):
        numbered_fold(tmp_path / "f.json", cohort(6, 1), fold)


def sides(cases: dict[str, str], began: Split) -> tuple[set[str], set[str]]:
    split = continued_split(began, cases)
    assert sorted(split["train"] + split["val"]) == sorted(cases)
    return set(split["train"]), set(split["val"])


def test_a_run_that_goes_on_never_learns_what_it_held_out_nor_validates_what_it_learnt() -> None:
    cases = cohort(100, 2)
    training, validation = hold_out_by_subject(cases, seed=1)
    began = {"train": training, "val": validation}
    assert continued_split(began, cases) == began
    more = cases | {"s00500_0": "s00500", f"{validation[0]}b": cases[validation[0]]}
    assert set(hold_out_by_subject(more, seed=1)[1]) != set(validation)  # drawn again, it would be another one
    assert sides(more, began) == ({*training, "s00500_0"}, {*validation, f"{validation[0]}b"})
    fewer = {case: subject for case, subject in cases.items() if case not in (training[0], validation[1])}
    assert sides(fewer, began) == (set(training[1:]), set(validation) - {validation[1]})
    joined = cases | {validation[0]: cases[training[0]]}  # other names of subjects move no scan
    assert sides(joined, began) == (set(training), set(validation))


@pytest.mark.parametrize("left", ["train", "val"])
def test_a_run_whose_scans_are_gone_does_not_go_on(left: str) -> None:
    began = {"train": ["a"], "val": ["b"]}
    with pytest.raises(UserError, match="no longer in the dataset; start it again without --c"):
        continued_split(began, {began[left][0]: "s"})


def test_what_a_run_wrote_down_is_read_and_damage_is_said(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    assert read_split(file) is None
    write_split(file, ["a"], ["b", "c"])
    assert read_split(file) == {"train": ["a"], "val": ["b", "c"]}
    for content in ("", "[1]", '{"train": []}', '{"train": 3, "val": []}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"split\.json cannot be read"):
            read_split(file)


def test_forty_thousand_cases_are_split_in_a_moment(tmp_path: Path) -> None:
    cases = varied_cohort(8_000)
    assert len(cases) > 39_000
    folds = folds_by_subject(cases)
    assert sum(len(fold["val"]) for fold in folds) == len(cases)
