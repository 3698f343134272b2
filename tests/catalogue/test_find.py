import os
from pathlib import Path

import numpy as np
import pytest

from nnssl_mae.catalogue.find import dataset_names, find_scans, stamp
from nnssl_mae.catalogue.names import modality_of
from nnssl_mae.errors import UserError
from tests.catalogue.scan_files import brain, write_dicom, write_itk


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
    with pytest.raises(UserError, match="holds no scan"):
        find_scans([tmp_path])
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="is no file of a scan"):
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


def test_every_format_and_only_scans_are_found(tmp_path) -> None:
    touch(tmp_path, "a.nii", "b.nii.gz", "c.nrrd", "d.nhdr", "d.raw", "e.mha", "f.mhd", "f.zraw", "g.hdr", "g.img")
    touch(tmp_path, "H.NII.GZ", "lonely.hdr", "notes.txt", "a.json", ".hidden.nii", ".git/x.nii", "README")
    assert [s.case for s in find_scans([tmp_path]).scans] == ["H", "a", "b", "c", "d", "e", "f", "g"]


def test_dicom_series_are_found_by_content_and_the_patient_has_no_name(tmp_path) -> None:
    write_dicom(tmp_path / "x" / "1", brain((9, 8, 3)), series="1.1", patient="Anna^Example", ending="")
    write_dicom(tmp_path / "x" / "1", brain((9, 8, 4)), series="1.2", patient="Anna^Example", prefix="B", ending=".IMA")
    write_dicom(tmp_path / "y", brain((9, 8, 3)), series="2.1", patient="Bert", description="T2 tse/ax")
    touch(tmp_path, "y/README", "y/LICENSE", "z/report.dcm")
    found = find_scans([tmp_path]).found
    series = {one.scan.series: one for one in found}
    assert set(series) == {"1.1", "1.2", "2.1", ""}
    assert series["1.1"].scan.subject == series["1.2"].scan.subject != series["2.1"].scan.subject
    assert series["1.1"].subject_from == "dicom" and series["2.1"].modality == "T2w"
    assert series[""].scan.path == tmp_path / "z" / "report.dcm"
    text = repr(found)
    assert "Anna" not in text.replace(str(tmp_path), "") and "Bert" not in text and "Secret" not in text
    assert len({one.scan.case for one in found}) == 4
    assert series["1.2"].bytes == sum(path.stat().st_size for path in (tmp_path / "x/1").glob("B*"))
    assert stamp(series["1.2"].scan) == (series["1.2"].bytes, series["1.2"].modified_ns)


def test_links_are_followed_once_and_real_names_win(tmp_path) -> None:
    touch(tmp_path, "tree/real/a.nii", "elsewhere/b.nii")
    (tmp_path / "tree" / "again").symlink_to("real")
    (tmp_path / "tree" / "circle").symlink_to("..")
    (tmp_path / "tree" / "0.nii").symlink_to("real/a.nii")
    (tmp_path / "tree" / "annexed.nii").symlink_to("nowhere")
    found = find_scans([tmp_path / "tree"])
    assert [scan.path.name for scan in found.scans] == ["a.nii", "annexed.nii", "b.nii"]
    assert found.scans[0].path == tmp_path / "tree" / "real" / "a.nii"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_folders_that_may_not_be_listed_are_told(tmp_path) -> None:
    touch(tmp_path, "a.nii", "closed/b.nii")
    (tmp_path / "closed").chmod(0)
    found = find_scans([tmp_path])
    assert [folder.name for folder, _ in found.closed] == ["closed"]


def test_names_of_any_kind_become_safe_and_stay_apart(tmp_path) -> None:
    names = [
        "Müller.nii",
        "Case.nii",
        "case.nii",
        "a b.nii",
        "a\nb.nii",
        "🧠.nii",
        "日本.nii",
        f"{'x' * 200}.nii",
        "..a.nii",
    ]
    touch(tmp_path, *names)
    (tmp_path / os.fsdecode(b"bytes\xff.nii")).touch()
    cases = [scan.case for scan in find_scans([tmp_path]).scans]
    assert len(cases) == len({case.lower() for case in cases}) == len(names)  # ..a.nii is hidden
    assert all(case.isascii() and not case.startswith(".") and len(case) < 140 for case in cases)


def test_names_depend_on_the_tree_and_not_on_its_place(tmp_path) -> None:
    for place in ("one", "two"):
        touch(tmp_path / place / "data", "p/T1.nii", "q/T1.nii")
    first, second = (find_scans([tmp_path / place / "data"]).scans for place in ("one", "two"))
    assert [scan.case for scan in first] == [scan.case for scan in second]


def test_known_names_stay_when_scans_are_added(tmp_path) -> None:
    touch(tmp_path, "p/T1.nii")
    before = {scan.key: scan.case for scan in find_scans([tmp_path]).scans}
    touch(tmp_path, "a/T1.nii", "q/t1.nii")
    after = {scan.key: scan.case for scan in find_scans([tmp_path], known_names=before).scans}
    assert after.items() >= before.items() and len({case.lower() for case in after.values()}) == 3


def test_datasets_are_named_by_the_folder_that_was_searched(tmp_path) -> None:
    touch(tmp_path, "disk1/adni/a.nii", "disk2/adni/b.nii", "oasis/c.nii")
    roots = [tmp_path / "disk1" / "adni", tmp_path / "disk2" / "adni", tmp_path / "oasis"]
    assert dataset_names(roots) == ["disk1-adni", "disk2-adni", "oasis"]
    assert {scan.dataset for scan in find_scans(roots).scans} == {"disk1-adni", "disk2-adni", "oasis"}
    assert len(find_scans([tmp_path, roots[0]]).scans) == 3  # searched twice, found once


def test_sessions_come_from_bids_the_expression_or_the_second_folder(tmp_path) -> None:
    touch(tmp_path, "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii", "anna/2020/x.nii", "anna/anat/y.nii", "bert/z.nii")
    assert {scan.case: scan.session for scan in find_scans([tmp_path]).scans} == {
        "sub-01_ses-b_T1w": "ses-b",
        "x": "2020",
        "y": "",
        "z": "",
    }
    regex = r"^([^/]+)/(?:(?P<session>\w+)/)?"
    assert {s.case: s.session for s in find_scans([tmp_path], subject_regex=regex).scans}["y"] == "anat"


@pytest.mark.parametrize(
    ("relative", "description", "dicom", "modality"),
    [
        ("sub-1/anat/sub-1_T1w.nii.gz", "", "", "T1w"),
        ("sub-1/anat/sub-1_inplaneT2.nii.gz", "", "", "inplaneT2"),
        ("anna/t2_flair.nii", "", "", "FLAIR"),
        ("anna/T2/scan.nii", "", "", "T2w"),
        ("BraTS_t1ce.nii.gz", "", "", "T1ce"),
        ("IXI002-Guys-0828-PD.nii.gz", "", "", "PDw"),
        ("x/MPRAGE.nrrd", "", "", "T1w"),
        ("export/", "AX T2 FLAIR", "MR", "FLAIR"),
        ("export/", "", "CT", "CT"),
        ("export/", "", "PT", "PET"),
        ("scan.nii", "", "", ""),
    ],
)
def test_modalities(relative, description, dicom, modality) -> None:
    assert modality_of(relative, description, dicom) == modality


def test_voxels_in_another_file_count_for_size_and_time(tmp_path) -> None:
    write_itk(tmp_path / "a.mhd", brain((9, 8, 7)), np.eye(4), compress=False)
    found = find_scans([tmp_path]).found[0]
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    os.utime(tmp_path / "a.raw", ns=(1, found.modified_ns + 10**9))
    assert stamp(found.scan) == (found.bytes, found.modified_ns + 10**9)


def test_thousands_of_dicom_files_are_looked_at_in_processes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nnssl_mae.catalogue.find._FILES_WORTH_PROCESSES", 1)
    for n in range(2):
        write_dicom(tmp_path / str(n), brain((9, 8, 3)), series=f"1.{n}", patient=str(n))
    inside = find_scans([tmp_path], workers=2)
    monkeypatch.undo()
    assert inside.found == find_scans([tmp_path]).found and len(inside.found) == 2


def test_the_group_of_the_session_is_never_the_subject(tmp_path) -> None:
    touch(tmp_path, "v1/anna_t1.nii", "v2/anna_t1.nii")
    found = find_scans([tmp_path], subject_regex=r"(?P<session>v\d)/([a-z]+)_").scans
    assert {(scan.subject, scan.session) for scan in found} == {("anna", "v1"), ("anna", "v2")}


def test_an_expression_that_does_not_always_match_says_how_often(tmp_path) -> None:
    touch(tmp_path, "p1_a.nii", "p2_a.nii", "x.nii")
    with pytest.raises(UserError, match=r"finds no group in 1 of 3 paths, such as 'x.nii'"):
        find_scans([tmp_path], subject_regex=r"(p\d)")


def test_visits_and_kinds_of_files_are_no_subjects(tmp_path) -> None:
    touch(tmp_path, "anna/ses-1/t1.nii", "anna/ses-2/t1.nii", "all/anat/bert/a.nii", "all/dwi/carl/b.nii")
    assert {(s.subject, s.session) for s in find_scans([tmp_path / "anna"]).scans} == {
        ("anna", "ses-1"),
        ("anna", "ses-2"),
    }
    assert set(subjects([tmp_path / "all"]).values()) == {"bert", "carl"}
    touch(tmp_path, "flat/anna_ses-1.nii", "flat/bert_ses-1.nii")
    assert set(subjects([tmp_path / "flat"]).values()) == {"anna_ses-1", "bert_ses-1"}


def test_dicom_files_that_cannot_be_used_are_not_passed_over(tmp_path) -> None:
    write_dicom(tmp_path / "a", brain((9, 8, 3)), series="1.1")
    write_dicom(tmp_path / "b", brain((9, 8, 1)), series="", ending="")
    (tmp_path / "a" / "annexed.dcm").symlink_to("nowhere")
    (tmp_path / "a" / "README").symlink_to("nowhere")
    found = find_scans([tmp_path]).scans
    assert sorted(scan.path.name for scan in found if not scan.series) == ["IM0000", "annexed.dcm"]


def test_the_size_of_a_series_is_that_of_the_files_that_are_searched(tmp_path) -> None:
    write_dicom(tmp_path, brain((9, 8, 3)))
    (tmp_path / "IM0000.bak").write_bytes((tmp_path / "IM0000.dcm").read_bytes())
    (found,) = find_scans([tmp_path]).found
    assert stamp(found.scan) == (found.bytes, found.modified_ns)
