"""Few-label folds as stock nnU-Net sees them; and that no fold ever changes its meaning."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import _maybe_copy_splits_file
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels import splits_file
from nnssl_mae.few_labels.make import SplitsRequest, make_splits
from nnssl_mae.few_labels.splits_file import MAP, SPLITS, read_map
from tests.few_labels.tiny_dataset import DATA, on_disk, split, stock_split, write_dataset, write_labels
from tests.training import finetuning_data
from tests.training.trainers import make_trainer


@pytest.fixture
def dataset(nnunet_folders: Path) -> Path:
    """20 cases with both labels."""
    return write_dataset(nnunet_folders)


def _own_folds(dataset: Path, *folds: tuple[list[str], list[str]]) -> list[dict[str, list[str]]]:
    content = [{"train": list(training), "val": list(validation)} for training, validation in folds]
    (dataset / SPLITS).write_text(json.dumps(content))
    return content


def _cases(first: int, end: int) -> list[str]:
    return [f"case{index:02d}" for index in range(first, end)]


def test_stock_do_split_trains_fold_104_on_the_cases_that_the_map_tells(dataset: Path) -> None:
    split(1, 2, 5, 10)
    named = read_map(dataset)
    assert named is not None
    assert (named.folds[104].labelled, named.folds[104].repeat) == (2, 1)
    training, validation = stock_split(dataset, 104)
    assert training == sorted(named.orders[1][:2])
    assert validation == list(named.validation)


def test_the_first_five_folds_are_those_that_stock_nnunet_would_have_written(dataset: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(dataset, twin)
    stock = [stock_split(twin, fold) for fold in range(5)]
    split()
    assert [stock_split(dataset, fold) for fold in range(5)] == stock
    written = json.loads((dataset / SPLITS).read_text())
    assert written[:5] == json.loads((twin / SPLITS).read_text())
    assert all(written[number] == written[number % 5] for number in range(5, 100))


def test_a_real_stock_trainer_gets_the_few_cases(nnunet_folders: Path) -> None:
    folder = finetuning_data.write_dataset(nnunet_folders / "preprocessed", "regions and ignore")
    request = SplitsRequest(number=5, labelled=(1, 2), repeats=2)
    made = make_splits(request, 1, Console(quiet=True))
    trainer = make_trainer(nnUNetTrainer, folder, "Control", fold=102)
    training, validation = trainer.get_tr_and_val_datasets()
    assert training.identifiers == made.folds[102]["train"]
    assert len(training.identifiers) == 2
    assert validation.identifiers == stock_split_of(folder, 0)


def stock_split_of(folder: Path, fold: int) -> list[str]:
    trainer = make_trainer(nnUNetTrainer, folder, "Control", fold=fold)
    return sorted(trainer.do_split()[1])


def test_all_few_label_folds_validate_on_the_cases_of_fold_0_which_is_the_run_with_all_labels(dataset: Path) -> None:
    made = split(1, 5, 16)
    training, validation = stock_split(dataset, 0)
    for number, fold in made.named.folds.items():
        assert made.folds[number]["val"] == validation
        assert set(made.folds[number]["train"]) <= set(training)
        assert len(made.folds[number]["train"]) == fold.labelled
    assert made.folds[106]["train"] == training


def test_smaller_sets_lie_in_larger_ones_even_if_asked_for_later(dataset: Path) -> None:
    split(2, 8)
    made = split(1, 4, 16)
    sets = {(f.labelled, f.repeat): set(made.folds[number]["train"]) for number, f in made.named.folds.items()}
    for repeat in range(3):
        for small, large in ((1, 2), (2, 4), (4, 8), (8, 16)):
            assert sets[small, repeat] < sets[large, repeat]


def test_the_same_options_again_change_nothing_and_read_no_labels(dataset: Path) -> None:
    first = split()
    before = on_disk(dataset)
    shutil.rmtree(dataset / "gt_segmentations")
    again = split()
    assert on_disk(dataset) == before
    assert again.new == ()
    assert again.named == first.named


def test_further_counts_and_repeats_get_new_numbers_and_no_fold_changes(dataset: Path) -> None:
    split(1, 5, repeats=2)
    before = json.loads((dataset / SPLITS).read_text())
    made = split(1, 2, 5, repeats=3)
    assert made.folds[: len(before)] == before
    appended = [(made.named.folds[number].labelled, made.named.folds[number].repeat) for number in made.new]
    assert made.new == (104, 105, 106, 107, 108)
    assert appended == [(1, 2), (2, 0), (2, 1), (2, 2), (5, 2)]


def test_asking_in_two_steps_gives_the_sets_of_asking_at_once(nnunet_folders: Path) -> None:
    def sets(dataset: Path, *steps: tuple[tuple[int, ...], int]) -> dict[tuple[int, int], list[str]]:
        for counts, repeats in steps:
            made = split(*counts, repeats=repeats)
        found = {(f.labelled, f.repeat): made.folds[number]["train"] for number, f in made.named.folds.items()}
        shutil.rmtree(dataset)
        return found

    at_once = sets(write_dataset(nnunet_folders), ((1, 2, 6), 3))
    assert sets(write_dataset(nnunet_folders), ((1,), 1), ((6,), 2), ((1, 2, 6), 3)) == at_once


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "--seed 0"),
        ({"validation_fold": 1}, "--validation-fold 0"),
        ({"validation_share": 0.2}, "--validation-fold 0"),
        ({"subject_regex": "(.*)"}, "no --subject-regex"),
    ],
)
def test_options_that_would_change_folds_are_refused(dataset: Path, other: dict[str, Any], words: str) -> None:
    split()
    before = on_disk(dataset)
    with pytest.raises(UserError, match=words):
        split(**other)
    assert on_disk(dataset) == before


def test_overwrite_gives_new_numbers_and_leaves_the_cases_of_the_old_ones(dataset: Path) -> None:
    """Models of another folder of results may have been trained on them."""
    first = split(2)
    second = split(2, seed=1, overwrite=True)
    assert list(first.named.folds) == [100, 101, 102]
    assert list(second.named.folds) == [103, 104, 105]
    assert second.named.replaced == (100, 101, 102)
    assert second.folds[:103] == first.folds
    assert second.folds[103:] != first.folds[100:]
    assert json.loads((dataset / f"{SPLITS}.backup").read_text()) == first.folds
    assert "100" in json.loads((dataset / f"{MAP}.backup").read_text())["folds"]
    assert any("100, 101, 102" in note for note in second.notes)
    assert split(2, 4, seed=1).new == (106, 107, 108)


def test_a_number_of_folds_once_replaced_is_never_given_again(dataset: Path) -> None:
    """Neither to the same cases, for nobody could tell of which time a model is, nor after the file was lost."""
    split(16, repeats=1)
    split(16, repeats=1, seed=1, overwrite=True)
    assert list(split(16, repeats=1, overwrite=True).named.folds) == [102]
    (dataset / SPLITS).unlink()
    again = split(16, repeats=2)
    assert list(again.named.folds) == [102, 103]
    assert again.named.replaced == (100, 101)


def test_what_was_trained_elsewhere_before_an_overwrite_is_not_compared_as_something_else(
    dataset: Path, nnunet_folders: Path
) -> None:
    from nnssl_mae.comparison.fold_map import read_fold_map

    split(1, repeats=1)
    split(5, repeats=1, seed=1, overwrite=True)
    folds = read_fold_map(dataset)
    assert (folds.labelled("100"), folds.labelled("101")) == (None, 5)
    assert folds.why_unknown("100")
    assert not folds.why_unknown("101")


def test_overwrite_spares_folds_with_models(dataset: Path, nnunet_folders: Path) -> None:
    split(2)
    before = on_disk(dataset)
    model = nnunet_folders / "results" / dataset.name / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_101"
    model.mkdir(parents=True)
    with pytest.raises(UserError, match=r"fold_101 was trained on few-label fold 101"):
        split(2, seed=1, overwrite=True)
    assert on_disk(dataset) == before


def test_the_users_own_folds_keep_their_numbers(dataset: Path) -> None:
    own = _own_folds(dataset, (_cases(5, 20), _cases(0, 5)), (_cases(0, 15), _cases(15, 20)))
    own[1]["note"] = ["of the user"]
    (dataset / SPLITS).write_text(json.dumps(own))
    made = split(1)
    assert made.folds[:100] == own * 50
    assert made.named.stock_folds == 2
    assert made.folds[100]["val"] == _cases(0, 5)
    assert json.loads((dataset / f"{SPLITS}.backup").read_text()) == own


def test_folds_of_the_user_from_100_on_are_respected(dataset: Path) -> None:
    split(1, repeats=2)
    folds = json.loads((dataset / SPLITS).read_text())
    own = {"train": ["case01"], "val": ["case02"]}
    (dataset / SPLITS).write_text(json.dumps([*folds, own]))
    made = split(1, 2, repeats=2)
    assert made.folds[102] == own
    assert made.new == (103, 104)
    replaced = split(1, repeats=2, seed=4, overwrite=True)
    assert replaced.folds[102] == own
    assert list(replaced.named.folds) == [105, 106]


def test_models_of_numbers_that_the_file_does_not_have_keep_stocks_random_split(
    dataset: Path, nnunet_folders: Path
) -> None:
    twin = nnunet_folders / "twin"
    shutil.copytree(dataset, twin)
    for fold in (7, 101):
        (nnunet_folders / "results" / dataset.name / "a__b__c" / f"fold_{fold}").mkdir(parents=True)
    stock = {fold: stock_split(twin, fold) for fold in (7, 101)}
    made = split(1)
    assert {fold: stock_split(dataset, fold) for fold in (7, 101)} == stock
    assert list(made.named.folds) == [100, 102, 103]
    assert any("fold 7, 101" in note for note in made.notes)
    (dataset / MAP).unlink()
    assert split(1).named == made.named  # told from the file, whose further folds do not all repeat the first


def test_splits_of_the_raw_dataset_count_as_those_that_the_planner_copies(dataset: Path, nnunet_folders: Path) -> None:
    raw = nnunet_folders / "raw" / dataset.name
    raw.mkdir()
    own = _own_folds(raw, (_cases(4, 20), _cases(0, 4)))
    made = split(1)
    assert made.folds[0] == own[0]
    assert made.named.validation == tuple(_cases(0, 4))
    _maybe_copy_splits_file(str(raw / SPLITS), str(dataset / SPLITS))  # the next planning; it asserts that they fit


def test_a_dry_run_writes_nothing_and_tells_the_folds_that_would_be(dataset: Path) -> None:
    before = on_disk(dataset)
    planned = split(dry_run=True)
    assert on_disk(dataset) == before
    assert split().named == planned.named


def test_a_kill_between_the_two_files_is_made_good_by_the_same_command(dataset: Path) -> None:
    split(1)
    with _killed_before(MAP):
        split(1, 2)
    left = json.loads((dataset / SPLITS).read_text())
    assert len(left) == 106
    made = split(1, 2)
    assert made.folds == left
    assert [made.named.folds[number].labelled for number in made.new] == [2, 2, 2]


def test_after_a_kill_other_options_take_other_numbers(dataset: Path) -> None:
    with _killed_before(MAP):
        split(3)
    left = json.loads((dataset / SPLITS).read_text())
    made = split(3, seed=1)
    assert made.folds[: len(left)] == left
    assert list(made.named.folds) == [103, 104, 105]
    assert made.named.stock_folds == 5


@pytest.mark.parametrize("file", [SPLITS, MAP])
def test_a_kill_while_overwriting_leaves_no_fold_with_a_wrong_name(dataset: Path, file: str) -> None:
    split(2)
    with _killed_before(file):
        split(2, seed=1, overwrite=True)
    known = read_map(dataset)
    assert known is not None
    assert known.seed == 0
    left = json.loads((dataset / SPLITS).read_text())
    for number, fold in known.folds.items():
        assert set(left[number]["train"]) == set(known.orders[fold.repeat][:2])
    made = split(2, seed=1, overwrite=True)
    assert made.folds[: len(left)] == left
    assert list(made.named.folds) == [103, 104, 105]


@contextlib.contextmanager
def _killed_before(name: str) -> Iterator[None]:
    """The process is killed just before it writes this file."""
    write = splits_file._write

    def killed(file: Path, content: bytes) -> None:
        if file.name == name:
            raise KeyboardInterrupt
        write(file, content)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(splits_file, "_write", killed)
        yield


def test_lost_splits_come_back_from_the_map_at_their_numbers(dataset: Path) -> None:
    first = split(1, 4)
    (dataset / SPLITS).unlink()
    stock_split(dataset, 0)  # nnU-Net writes its five folds again
    again = split(1, 4)
    assert again.folds == first.folds
    assert again.new == tuple(first.named.folds)  # so that the user is told


def test_a_lost_map_comes_back_with_the_same_options(dataset: Path) -> None:
    first = split(1, 4)
    (dataset / MAP).unlink()
    assert split(1, 4).named == first.named


def test_fewer_folds_of_the_users_own_after_a_loss_do_no_harm(dataset: Path) -> None:
    first = split(1)
    own = _own_folds(dataset, (_cases(4, 20), _cases(0, 4)))
    made = split(1)
    assert made.folds[:100] == own * 100
    assert made.folds[100:] == first.folds[100:]


def test_each_change_keeps_a_backup_of_its_own(dataset: Path) -> None:
    stock_split(dataset, 0)
    contents = []
    for labelled in (1, 2, 3):
        contents.append((dataset / SPLITS).read_bytes())
        split(labelled)
    backups = [dataset / f"{SPLITS}.backup{number}" for number in ("", 1, 2)]
    assert [backup.read_bytes() for backup in backups] == contents
    assert not list(dataset.glob("*.tmp"))


def test_subjects_are_never_on_both_sides(nnunet_folders: Path) -> None:
    cases = [f"sub-{subject:02d}_ses-{session}" for subject in range(10) for session in (1, 2)]
    dataset = write_dataset(nnunet_folders, cases)
    made = split(1, 3)
    held = {case[:6] for case in made.named.validation}
    for number in made.named.folds:
        training = [case[:6] for case in made.folds[number]["train"]]
        assert held.isdisjoint(training)
        assert len(set(training)) == len(training)  # other subjects teach more than a second scan
    assert made.named.subjects["sub-03_ses-2"] == "sub-03"
    assert made.named.validation == tuple(stock_split(dataset, 0)[1])
    assert any("no few-label fold" in note for note in made.notes)


def test_a_validation_share_is_of_whole_subjects(nnunet_folders: Path) -> None:
    write_dataset(nnunet_folders, [f"p{index // 2}_{index % 2}" for index in range(20)])
    made = split(1, 16, validation_share=0.2, subject_regex=r"^(p\d+)_")
    held = {case.split("_")[0] for case in made.named.validation}
    assert len(held) == 2
    assert len(made.named.validation) == 4
    assert {case.split("_")[0] for order in made.named.orders for case in order}.isdisjoint(held)


def test_labels_that_a_fold_lacks_are_told(nnunet_folders: Path) -> None:
    voxels = {case: {1: 50} for case in _cases(0, 20)}
    write_dataset(nnunet_folders, voxels={**voxels, "case04": {2: 9}, "case07": {1: 5}})
    made = split(1, 2, repeats=1)
    assert [fold.missing for fold in made.named.folds.values()] == [("right",), ()]


def _without_data(dataset: Path) -> None:
    shutil.rmtree(dataset / DATA)


def _without_plans(dataset: Path) -> None:
    (dataset / "nnUNetPlans.json").unlink()


def _partly_preprocessed(dataset: Path) -> None:
    (dataset / "nnUNetPlans_2d").mkdir()
    (dataset / "nnUNetPlans_2d" / "case00.b2nd").touch()


def _no_label_file(dataset: Path) -> None:
    (dataset / "gt_segmentations" / "case03.nii.gz").unlink()


def _damaged_label_file(dataset: Path) -> None:
    (dataset / "gt_segmentations" / "case03.nii.gz").write_bytes(b"no image")


def _unknown_value(dataset: Path) -> None:
    write_labels(dataset / "gt_segmentations" / "case03.nii.gz", {1: 4, 7: 3})


def _fractional_value(dataset: Path) -> None:
    write_labels(dataset / "gt_segmentations" / "case03.nii.gz", {0.5: 4})  # type: ignore[dict-item]


def _no_labels(dataset: Path) -> None:
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0}, "file_ending": ".nii.gz"}))


def _bad_labels(dataset: Path) -> None:
    (dataset / "dataset.json").write_text(json.dumps({"labels": ["a", "b"], "file_ending": ".nii.gz"}))


def _infinite_label(dataset: Path) -> None:
    labels = {"background": 0, "a": float("inf")}
    (dataset / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))


def _no_ending(dataset: Path) -> None:
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}}))


def _damaged_json(dataset: Path) -> None:
    (dataset / "dataset.json").write_text("{")


def _file(name: str, content: str) -> Callable[[Path], None]:
    def write(dataset: Path) -> None:
        (dataset / name).write_text(content)

    return write


def _foreign_case(dataset: Path) -> None:
    _own_folds(dataset, (["case01", "stranger"], ["case02"]))


def _edited_fold(dataset: Path) -> None:
    split(1)
    folds = json.loads((dataset / SPLITS).read_text())
    folds[101]["train"] = ["case00"] if folds[101]["train"] != ["case00"] else ["case01"]
    (dataset / SPLITS).write_text(json.dumps(folds))


def _edited_map(**values: Any) -> Callable[[Path], None]:
    def edit(dataset: Path) -> None:
        split(1)
        (dataset / MAP).write_text(json.dumps(json.loads((dataset / MAP).read_text()) | values))

    return edit


def _same_cases(dataset: Path) -> None:
    _own_folds(dataset, (_cases(0, 20), _cases(0, 20)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "There is no dataset 4"),
        (_without_data, "holds no preprocessed cases"),
        (_without_plans, "holds no plans"),
        (_partly_preprocessed, "19 of 20 preprocessed cases.*case01.*nnUNetPlans_2d"),
        (_no_label_file, "case03, have no label file"),
        (_damaged_label_file, "case03.nii.gz cannot be read"),
        (_unknown_value, "case03.nii.gz hold 7, which dataset.json does not name"),
        (_fractional_value, "case03.nii.gz cannot be read.*0.5, and labels are whole"),
        (_no_labels, "no labels besides the background"),
        (_bad_labels, "labels that nnU-Net does not understand"),
        (_no_ending, "has no file_ending"),
        (_damaged_json, "dataset.json cannot be read"),
        (_file(SPLITS, "[{"), "cannot be read as nnU-Net's splits"),
        (_file(SPLITS, "{}"), "it holds no list of folds"),
        (_file(SPLITS, '[{"train": "case01", "val": []}]'), "a list of names is none"),
        (_foreign_case, "1 cases that are not preprocessed, such as stranger"),
        (_same_cases, "leaves 0 training cases of other subjects"),
        (_edited_fold, "Fold 101 of .* has other cases than"),
        (_file(MAP, "{"), f"{MAP} cannot be read"),
        (_file(MAP, "[]"), f"{MAP} cannot be read"),
        (_edited_map(version=2), "version 2 is not known"),
        (_edited_map(orders=[]), "fold 100 does not fit"),
        (_edited_map(validation=[]), "overlap"),
        (_edited_map(folds={"4": {"labelled": 1, "repeat": 0, "missing": []}}), "fold 4 does not fit"),
        (_edited_map(folds={"100": {"labelled": 1}}), f"{MAP} cannot be read"),
        (_edited_map(subjects={}), "case00 has no subject"),
        (_edited_map(validation_from={}), "tells no source of validation cases"),
        (_edited_map(validation_from={"fold": "x"}), "tells no source of validation cases"),
        (_edited_map(validation_from={"share": 2.0}), "tells no source of validation cases"),
        (_edited_map(replaced=[100]), "replaced fold 100 does not fit"),
        (_edited_map(replaced=[10**9]), "replaced fold 1000000000 does not fit"),
        (_edited_map(seed=float("inf")), f"{MAP} cannot be read"),
        (_infinite_label, "labels that nnU-Net does not understand"),
    ],
)
def test_bad_input_gets_a_sentence_and_writes_nothing(dataset: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(dataset)
    before = on_disk(dataset) if dataset.exists() else {}
    with pytest.raises(UserError, match=words):
        split(2)
    assert (on_disk(dataset) if dataset.exists() else {}) == before


def test_a_dataset_that_is_only_raw_must_be_preprocessed(nnunet_folders: Path) -> None:
    (nnunet_folders / "raw" / "Dataset004_Tiny").mkdir()
    with pytest.raises(UserError, match=r"not in nnUNet_preprocessed.*nnUNetv2_plan_and_preprocess -d 4"):
        split()


def test_labels_of_the_raw_dataset_do_where_nnunet_copied_none(dataset: Path, nnunet_folders: Path) -> None:
    raw = nnunet_folders / "raw" / dataset.name
    shutil.copytree(dataset / "gt_segmentations", raw / "labelsTr")
    shutil.copy(dataset / "dataset.json", raw)
    shutil.rmtree(dataset / "gt_segmentations")
    assert split(1).new == (100, 101, 102)


def test_too_few_cases_for_five_folds(nnunet_folders: Path) -> None:
    write_dataset(nnunet_folders, ["a", "b", "c"])
    with pytest.raises(UserError, match="3 cases, too few for nnU-Net's 5 folds"):
        split(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labelled": (17,)}, "--labelled 17 is more than the 16 cases"),
        ({"labelled": (0,)}, "--labelled needs whole numbers"),
        ({"repeats": 0}, "--repeats 0"),
        ({"seed": -1}, "--seed -1"),
        ({"validation_share": 1.0}, "--validation-share 1"),
        ({"validation_share": 0.99}, "leaves none for training"),
        ({"validation_share": 0.2, "validation_fold": 0}, "contradict"),
        ({"validation_fold": 5}, "has folds 0 to 4"),
        ({"validation_fold": -1}, "has folds 0 to 4"),
        ({"subject_regex": "(x"}, "is not a regular expression"),
        ({"subject_regex": "(x)"}, "finds no group in 20 of 20"),
    ],
)
def test_options_that_are_not_possible(dataset: Path, options: dict[str, Any], words: str) -> None:
    before = on_disk(dataset)
    with pytest.raises(UserError, match=words):
        split(*options.pop("labelled", (1,)), **options)
    assert on_disk(dataset) == before


def test_a_folder_that_cannot_be_written(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(splits_file, "_write", refused)
    with pytest.raises(UserError, match=r"cannot be written to .*Permission denied"):
        split()
    assert not (dataset / SPLITS).exists()


def test_a_training_that_writes_the_splits_meanwhile_is_not_overwritten(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnssl_mae.few_labels import make

    def slow_reading(*arguments: Any) -> Any:
        stock_split(dataset, 0)
        return read(*arguments)

    read = make.read_contents
    monkeypatch.setattr(make, "read_contents", slow_reading)
    with pytest.raises(UserError, match="changed by another program"):
        split()
    assert len(json.loads((dataset / SPLITS).read_text())) == 5
