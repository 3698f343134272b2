"""A catalogue is made once, updated cheaply, keeps names and rules, and survives crashes of its workers."""

import io
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from rich.console import Console

from nnssl_mae.catalogue import scan as module
from nnssl_mae.catalogue.checks import Limits
from nnssl_mae.catalogue.find import find_scans
from nnssl_mae.catalogue.lock import writing_alone
from nnssl_mae.catalogue.report.pictures import read_pictures
from nnssl_mae.catalogue.rules import add_rule
from nnssl_mae.catalogue.scan import refresh, scan_folders
from nnssl_mae.catalogue.table import Catalogue, is_catalogue, read_catalogue, scan_of
from nnssl_mae.errors import ResumableError, UserError
from tests.catalogue.scan_files import brain, write_nifti

GRID = np.diag([3.0, 3.0, 4.0, 1.0])


@pytest.fixture
def tree(tmp_path) -> Path:
    for n in range(3):
        write_nifti(tmp_path / "tree" / f"sub-{n}" / f"sub-{n}_T1w.nii.gz", brain(seed=n), GRID)
    return tmp_path / "tree"


@pytest.fixture
def in_this_process(monkeypatch) -> list[str]:
    """No processes: faster, and what is read is counted."""
    read: list[str] = []

    def serial(work, items, workers, cost=None, budget=0.0):
        for item in items:
            read.append(f"{work.__name__} {item.path.name}")
            yield module.Outcome(item, work(item))

    monkeypatch.setattr(module, "in_processes", serial)
    return read


def run(tree: Path, **options) -> tuple[Catalogue, str]:
    said = io.StringIO()
    limits = options.pop("limits", Limits())
    catalogue = scan_folders([tree], tree.parent / "catalogue", limits, Console(file=said, width=150), **options)
    return catalogue, said.getvalue()


def test_a_catalogue_holds_what_it_says(tree) -> None:
    (tree / "junk.nii.gz").write_bytes(b"junk")
    catalogue, said = run(tree)
    folder = tree.parent / "catalogue"
    assert is_catalogue(folder)
    pandas.testing.assert_frame_equal(read_catalogue(folder).rows, catalogue.rows, check_dtype=False)
    assert "Found 4 files" in said and "3 of 4 scans accepted, of 3 subjects" in said and "unreadable" in said
    assert len(pandas.read_csv(folder / "catalogue.csv")) == 4
    assert set(read_pictures(folder, list(catalogue.rows["case"]))) == {f"sub-{n}_T1w" for n in range(3)}
    row = next(catalogue.accepted.itertuples())
    assert (row.subject, row.modality, row.dataset, row.orientation) == ("sub-0", "T1w", "tree", "RAS")
    assert scan_of(row).path == tree / "sub-0" / "sub-0_T1w.nii.gz"


def test_scanning_again_reads_only_what_changed(tree, in_this_process) -> None:
    first, _ = run(tree)
    assert len(in_this_process) == 6
    in_this_process.clear()
    again, _ = run(tree)
    pandas.testing.assert_frame_equal(first.rows, again.rows)
    assert in_this_process == []
    write_nifti(tree / "sub-1" / "sub-1_T1w.nii.gz", brain(seed=9), GRID)
    changed, _ = run(tree)
    assert {entry.split()[1] for entry in in_this_process} == {"sub-1_T1w.nii.gz"}
    assert changed.rows["voxel_hash"].iloc[1] != first.rows["voxel_hash"].iloc[1]
    assert len(read_pictures(tree.parent / "catalogue", list(changed.rows["case"]))) == 3
    in_this_process.clear()
    run(tree, rehash=True)
    assert len(in_this_process) == 6


def test_other_limits_judge_again_without_reading(tree, in_this_process) -> None:
    run(tree)
    in_this_process.clear()
    strict, _ = run(tree, limits=Limits(max_spacing=3.5))
    assert set(strict.rows["check"]) == {"thick_slices"}
    lenient, _ = run(tree)
    assert set(lenient.rows["check"]) == {""} and in_this_process == []


def test_headers_first_voxels_later(tree, in_this_process) -> None:
    write_nifti(tree / "copy.nii", brain(seed=0), GRID)
    headers, _ = run(tree, headers_only=True)
    assert set(headers.rows["check"]) == {""} and set(headers.rows["voxel_hash"]) == {""}
    in_this_process.clear()
    whole, _ = run(tree)
    assert all(entry.startswith("examine_voxels") for entry in in_this_process)
    assert list(whole.rows["check"]).count("duplicate") == 1
    kept, _ = run(tree, headers_only=True)
    pandas.testing.assert_frame_equal(kept.rows, whole.rows)


def test_scans_that_come_later_change_no_name(tree, in_this_process) -> None:
    write_nifti(tree / "a" / "scan.nii.gz", brain(seed=5), GRID)
    before, _ = run(tree)
    write_nifti(tree / "0" / "scan.nii.gz", brain(seed=6), GRID)
    after, _ = run(tree)
    names = dict(zip(after.rows["path"], after.rows["case"], strict=True))
    assert all(names[path] == case for path, case in zip(before.rows["path"], before.rows["case"], strict=True))
    assert after.rows["case"].is_unique


def test_rules_survive_a_new_scan(tree, in_this_process) -> None:
    run(tree)
    add_rule(tree.parent / "catalogue", "exclude", "subject == 'sub-1'")
    write_nifti(tree / "sub-7" / "sub-7_T1w.nii.gz", brain(seed=7), GRID)
    again, _ = run(tree)
    assert list(again.accepted["subject"]) == ["sub-0", "sub-2", "sub-7"]


@pytest.mark.parametrize(
    ("split", "cases"), [("mean", ["bold-mean"]), ("first", ["bold-vol000"]), ("all", ["bold-vol000", "bold-vol001"])]
)
def test_volumes_of_4d_images_become_scans(tree, in_this_process, split, cases) -> None:
    data = np.stack([brain(seed=20), brain(seed=21)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, GRID), tree / "bold.nii.gz")
    rejected, _ = run(tree)
    assert "not_3d" in set(rejected.rows["check"])
    catalogue, _ = run(tree, split_4d=split)
    assert [case for case in catalogue.accepted["case"] if "bold" in case] == cases
    in_this_process.clear()
    run(tree, split_4d=split)
    assert in_this_process == []
    with pytest.raises(UserError, match="--split-4d"):
        run(tree, split_4d="some")


def dies(scan):
    if "killer" in scan.path.name:
        os.kill(os.getpid(), 9)
    return module.examine_voxels(scan)


def test_a_copy_in_a_folder_of_no_subject_is_left_out_for_that_in_bids_now_and_later(tree, in_this_process) -> None:
    copy = tree / "old_copies" / "patient_A.nii.gz"
    write_nifti(copy, brain(seed=0), GRID)
    catalogue, _ = run(tree)
    for one in (catalogue, run(tree)[0], refresh(catalogue, 2, Console(quiet=True), rehash=True)):
        checks = dict(zip(one.rows["case"], one.rows["check"], strict=True))
        assert checks == {"patient_A": "duplicate_subject", "sub-0_T1w": "", "sub-1_T1w": "", "sub-2_T1w": ""}


def test_a_worker_that_dies_costs_its_scan_only(tree, monkeypatch) -> None:
    write_nifti(tree / "killer.nii", brain(seed=8), GRID)
    monkeypatch.setattr(module, "examine_voxels", dies)
    catalogue = run(tree)[0]
    assert len(catalogue.accepted) == 3
    bad = catalogue.rows[catalogue.rows["check"] != ""]
    assert list(bad["check"]) == ["unreadable"] and "SIGKILL" in bad["detail"].iloc[0]


def test_refresh_reads_what_changed_and_drops_what_is_gone(tree, in_this_process) -> None:
    catalogue, _ = run(tree)
    in_this_process.clear()
    assert refresh(catalogue, 2, Console(quiet=True)) is catalogue
    (tree / "sub-0" / "sub-0_T1w.nii.gz").unlink()
    write_nifti(tree / "sub-1" / "sub-1_T1w.nii.gz", brain(seed=2), GRID)  # now a copy of sub-2
    said = io.StringIO()
    fresh = refresh(catalogue, 2, Console(file=said))
    assert list(fresh.rows["check"]) == ["unreadable", "", "duplicate_subject"]
    assert fresh.rows["detail"].iloc[0] == "is not there any more"
    assert "1 scans changed and 1 are gone" in said.getvalue()
    assert len(in_this_process) == 2
    in_this_process.clear()
    assert len(refresh(catalogue, 2, Console(quiet=True), rehash=True).rows) == 3
    assert len(in_this_process) == 4


def test_a_mask_that_comes_later_is_noticed(tree, in_this_process) -> None:
    run(tree)
    in_this_process.clear()
    write_nifti(tree / "sub-0" / "sub-0_T1w_exclude.nii.gz", np.ones((2, 2, 2), np.uint8), GRID)
    catalogue, _ = run(tree)
    assert catalogue.rows["check"].iloc[0] == "exclusion_mask"


def test_crowded_subjects_and_lonely_masks_are_told(tmp_path, in_this_process) -> None:
    for n in range(21):
        write_nifti(tmp_path / "tree" / "site1" / f"{n}.nii", brain(seed=n), GRID)
    write_nifti(tmp_path / "tree" / "site2" / "x.nii", brain(seed=50), GRID)
    write_nifti(tmp_path / "tree" / "gone_exclude.nii", brain(seed=50), GRID)
    _, said = run(tmp_path / "tree", headers_only=True)
    assert "Subject site1 has 21 scans" in said and "--subject-regex" in said
    assert "gone_exclude.nii is an exclusion mask by its name" in said


def test_the_same_tree_elsewhere_has_the_same_names_and_hashes(tmp_path, in_this_process) -> None:
    tables = []
    for place in ("one", "two"):
        for n, name in enumerate(("p/T1", "q/T1", "q/r/t1")):
            write_nifti(tmp_path / place / "tree" / f"{name}.nii", brain(seed=n), GRID)
        tables.append(run(tmp_path / place / "tree")[0].rows.drop(columns=["path", "modified_ns"]))
    pandas.testing.assert_frame_equal(*tables)


def test_bad_options(tree, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        scan_folders([tree], tmp_path / "file", Limits(), Console(quiet=True))
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="1 or more processes"):
        run(tree, workers=0)


def test_a_full_disk_is_a_sentence_and_the_next_run_goes_on(tree, in_this_process, monkeypatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_catalogue", full)
        with pytest.raises(ResumableError, match="No space left on device"):
            run(tree)
    in_this_process.clear()
    assert len(run(tree)[0].accepted) == 3 and in_this_process == []


def test_two_scans_do_not_write_one_catalogue_at_once(tree, in_this_process) -> None:
    folder = tree.parent / "catalogue"
    folder.mkdir()
    with writing_alone(folder), pytest.raises(ResumableError, match="Another process is writing"):
        run(tree)
    assert in_this_process == [] and len(run(tree)[0].accepted) == 3


def test_files_of_others_in_the_folder_stay(tree, in_this_process) -> None:
    folder = tree.parent / "catalogue"
    folder.mkdir()
    (folder / ".thesis.tex.tmp").touch()
    (folder / ".catalogue.parquet.host.1.abc.tmp").touch()
    run(tree)
    assert (folder / ".thesis.tex.tmp").exists() and not list(folder.glob(".catalogue*"))


def test_a_rule_that_is_added_while_folders_are_searched_stays(tree, in_this_process, monkeypatch) -> None:
    run(tree)

    def slow(*args):
        add_rule(tree.parent / "catalogue", "exclude", "subject == 'sub-1'")
        return find_scans(*args)

    monkeypatch.setattr(module, "find_scans", slow)
    assert list(run(tree)[0].accepted["subject"]) == ["sub-0", "sub-2"]


def test_a_moved_tree_is_not_read_again_and_keeps_its_names(tree, in_this_process) -> None:
    write_nifti(tree / "a" / "sub-0_T1w.nii.gz", brain(seed=7), GRID)  # a second sub-0_T1w
    before, _ = run(tree)
    (tree.parent / "disk2").mkdir()
    tree.rename(tree.parent / "disk2" / tree.name)
    in_this_process.clear()
    said = io.StringIO()
    after = scan_folders(
        [tree.parent / "disk2" / tree.name], tree.parent / "catalogue", Limits(), Console(file=said, width=150)
    )
    pandas.testing.assert_frame_equal(before.rows.drop(columns="path"), after.rows.drop(columns="path"))
    assert in_this_process == [] and all("disk2" in path for path in after.rows["path"])
    assert set(read_pictures(tree.parent / "catalogue", list(after.rows["case"]))) == set(after.rows["case"])
