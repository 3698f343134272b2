from pathlib import Path

import pytest

from nnssl_mae.catalogue.find import find_scans
from nnssl_mae.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def subjects(*args, **kwargs) -> dict[str, str]:
    return {scan.case: scan.subject for scan in find_scans(*args, **kwargs).scans}


def test_bids_entity_is_the_subject_across_sessions(tmp_path) -> None:
    touch(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    touch(tmp_path, "sub-02/anat/sub-02_T1w.nii")
    assert subjects([tmp_path]) == {
        "sub-01_ses-1_T1w": "sub-01",
        "sub-01_ses-2_T1w": "sub-01",
        "sub-02_T1w": "sub-02",
    }


def test_first_folder_is_the_subject_when_there_are_several(tmp_path) -> None:
    touch(tmp_path, "anna/t1.nii.gz", "anna/t2.nii.gz", "bert/scan.nii.gz")
    assert subjects([tmp_path]) == {"t1": "anna", "t2": "anna", "scan": "bert"}


def test_file_name_is_the_subject_in_a_flat_folder_without_the_channel(tmp_path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    assert subjects([tmp_path]) == {"a_0000": "a", "a_0001": "a", "b_0000": "b"}


def test_expression_decides_first(tmp_path) -> None:
    touch(tmp_path, "x/IXI002-Guys-0828-T1.nii.gz", "y/IXI002-Guys-0828-T2.nii.gz")
    found = subjects([tmp_path], subject_regex=r"(IXI\d+)")
    assert set(found.values()) == {"IXI002"}
    with pytest.raises(UserError, match="finds no group"):
        find_scans([tmp_path], subject_regex=r"(nobody)")
    with pytest.raises(UserError, match="not a regular expression"):
        find_scans([tmp_path], subject_regex="(")


def test_equal_names_in_different_folders_stay_apart(tmp_path) -> None:
    touch(tmp_path, "p1/T1.nii.gz", "p2/T1.nii.gz", "p3/t1.nii.gz")
    cases = [scan.case for scan in find_scans([tmp_path]).scans]
    assert len({case.lower() for case in cases}) == 3


def test_a_file_given_twice_counts_once_and_hidden_files_do_not(tmp_path) -> None:
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", "notes.txt")
    assert [scan.case for scan in find_scans([tmp_path, tmp_path / "a.nii.gz"]).scans] == ["a"]


def test_bad_sources(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_scans([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no NIfTI file"):
        find_scans([tmp_path])
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="not a NIfTI file"):
        find_scans([tmp_path / "notes.txt"])


def test_exclusion_masks_belong_to_the_scan_beside_them_and_are_no_scans(tmp_path) -> None:
    touch(tmp_path, "sub-01/T1w.nii.gz", "sub-01/T1w_exclude.nii", "sub-02/T2w.nii.gz", "sub-03/gone_exclude.nii.gz")
    found = find_scans([tmp_path])
    assert {scan.case: scan.exclude for scan in found.scans} == {
        "T1w": tmp_path / "sub-01/T1w_exclude.nii",
        "T2w": None,
    }
    assert found.lonely_masks == [tmp_path / "sub-03/gone_exclude.nii.gz"]
    one = find_scans([tmp_path / "sub-01/T1w.nii.gz", tmp_path / "sub-01/T1w_exclude.nii"])
    assert [scan.exclude for scan in one.scans] == [tmp_path / "sub-01/T1w_exclude.nii"]


def test_another_suffix_marks_masks_and_no_stored_volume_looks_like_one(tmp_path) -> None:
    touch(tmp_path, "a.nii.gz", "a_anon_mask.nii.gz", "b_exclude.nii.gz")
    found = find_scans([tmp_path], exclude_suffix="_anon_mask")
    assert [(scan.path.name, scan.exclude) for scan in found.scans] == [
        ("a.nii.gz", tmp_path / "a_anon_mask.nii.gz"),
        ("b_exclude.nii.gz", None),
    ]
    assert not any(scan.case.endswith("_exclude") for scan in found.scans)
    for suffix in ("", "x/y", "_mask.nii.gz"):
        with pytest.raises(UserError, match="--exclude-suffix"):
            find_scans([tmp_path], exclude_suffix=suffix)


def test_masks_alone_are_no_scans(tmp_path) -> None:
    touch(tmp_path, "a_exclude.nii.gz")
    with pytest.raises(UserError, match="every file is an exclusion mask by its name"):
        find_scans([tmp_path])
