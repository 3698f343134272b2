"""Checks of names and numbers: what they reject, what they must leave alone, and how they are switched off."""

import itertools
from dataclasses import replace

import pytest

from nnssl_mae.catalogue.checks import (
    ALLOWABLE,
    CHECKS,
    NEVER_ALLOWED,
    Limits,
    duplicate_verdicts,
    header_verdict,
    voxel_verdict,
)
from nnssl_mae.catalogue.table import ScanRow
from nnssl_mae.errors import UserError
from tests.planted import GOOD_NAMES, LOCALISER_NAMES, MAP_NAMES


def row(relative: str = "T1.nii.gz", **columns) -> ScanRow:
    """A good T1 of 1 mm."""
    good = {
        "size_x": 180, "size_y": 220, "size_z": 190, "spacing_x": 1.0, "spacing_y": 1.0, "spacing_z": 1.0,
        "min_spacing": 1.0, "max_spacing": 1.0, "min_fov": 180.0, "max_fov": 220.0, "minimum": 0.0, "maximum": 900.0,
        "distinct": 800, "whole_numbers": True, "voxel_hash": "x",
    }  # fmt: skip
    blank = ScanRow("/r/" + relative, "", "", "case", "r", "s", "file", "", "", "nifti", relative=relative)
    return replace(blank, **{**good, **columns})


THICK = {"size_z": 11, "spacing_z": 6.0, "max_spacing": 6.0, "min_fov": 66.0}


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_innocent_names_are_not_hit(name) -> None:
    assert header_verdict(row(f"{name}.nii.gz"), Limits()) is None
    assert voxel_verdict(row(f"{name}.nii.gz"), Limits()) is None


@pytest.mark.parametrize("name", LOCALISER_NAMES)
def test_localisers_are_known_by_their_names(name) -> None:
    assert header_verdict(row(f"{name}.nii.gz", **THICK), Limits())[0] == "localiser"
    assert header_verdict(row(f"{name}.nii.gz", **THICK), Limits(allow=("localiser",))) is None


@pytest.mark.parametrize("name", MAP_NAMES)
def test_derived_maps_are_known_by_their_names(name) -> None:
    assert header_verdict(row(f"{name}.nii.gz"), Limits())[0] == "derived_map"


@pytest.mark.parametrize(
    ("types", "check"),
    [
        ("ORIGINAL\\PRIMARY\\LOCALIZER", "localiser"),
        ("DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND", "derived_map"),
        ("ORIGINAL\\PRIMARY\\P\\ND", "derived_map"),
        ("ORIGINAL\\PRIMARY\\PHASE MAP\\P\\PHASE", "derived_map"),
        ("ORIGINAL\\PRIMARY\\M\\ND\\NORM", None),
        ("DERIVED\\SECONDARY\\MPR", None),
        ("ORIGINAL\\PRIMARY\\AXIAL", None),
        ("", None),
    ],
)
def test_dicom_says_what_an_image_is(types, check) -> None:
    verdict = header_verdict(row("series/", image_type=types), Limits())
    assert (verdict and verdict[0]) == check


@pytest.mark.parametrize(
    ("columns", "check"),
    [
        ({"volumes": 5}, "not_3d"),
        ({"volumes": 5, "frame": "mean"}, None),
        ({"size_z": 1}, "not_3d"),
        ({"spacing_z": float("nan")}, "spacing"),
        ({"spacing_z": 0.0}, "spacing"),
        ({"spacing_z": 0.001}, "spacing"),
        ({"spacing_z": 200.0}, "spacing"),
        ({"max_spacing": 6.6}, "thick_slices"),
        ({"max_spacing": 6.50000019}, None),
        ({"min_fov": 49.0}, "field_of_view"),
        ({"min_fov": 49.9999999}, None),
        ({"size_z": 7}, "field_of_view"),
    ],
)
def test_limits_of_the_header(columns, check) -> None:
    verdict = header_verdict(row(**columns), Limits())
    assert (verdict and verdict[0]) == check


@pytest.mark.parametrize(
    ("name", "columns", "check"),
    [
        ("T1", {"maximum": 0.0, "distinct": 1}, "empty"),
        ("T1", {"minimum": 7.0, "maximum": 7.0, "distinct": 1}, "constant"),
        ("anything", {"distinct": 2, "maximum": 255.0}, "segmentation"),
        ("anything", {"distinct": 84, "flat": 0.7}, "segmentation"),
        ("anything", {"distinct": 4, "flat": 0.8, "maximum": 3.0}, "segmentation"),
        ("anything", {"distinct": 9, "flat": 0.7, "maximum": 900.0}, None),  # few grey levels, far apart
        ("T1_dseg", {"distinct": 40, "flat": 0.4}, "segmentation"),
        ("mask_study_T1", {"distinct": 250, "flat": 0.09}, None),
        ("t1_8bit", {"distinct": 225, "flat": 0.1}, None),
        ("t1_5bit", {"distinct": 30, "flat": 0.44}, None),
        ("patient_FA", {"maximum": 0.99, "whole_numbers": False}, "derived_map"),
        ("patient_FA", {}, None),
        ("patient_MD", {"maximum": 0.003, "whole_numbers": False}, "derived_map"),
    ],
)
def test_checks_of_voxels(name, columns, check) -> None:
    verdict = voxel_verdict(row(f"{name}.nii.gz", **columns), Limits())
    assert (verdict and verdict[0]) == check


def test_duplicates_keep_the_first_by_dataset_and_case_and_name_it() -> None:
    rows = [
        row(dataset="b", case="1", subject="p", subject_from="bids"),
        row(dataset="a", case="2", subject="p", subject_from="bids", path="/a/2"),
        row(dataset="a", case="3", subject="q", subject_from="bids"),
        row(dataset="a", case="4", subject="4", subject_from="file"),
        row(dataset="a", case="5", voxel_hash="other"),
        row(dataset="a", case="6", voxel_hash=""),
    ]
    verdicts = duplicate_verdicts(rows, Limits())
    assert {place: check for place, (check, _) in verdicts.items()} == {
        0: "duplicate",
        2: "duplicate_subject",
        3: "duplicate",
    }
    assert "/a/2" in verdicts[0][1] and "p in a" in verdicts[2][1] and "q in a" in verdicts[2][1]
    assert 2 not in duplicate_verdicts(rows, Limits(allow=("duplicate_subject",)))


def test_of_duplicates_the_copy_of_a_bids_subject_is_kept_best_with_a_modality_in_whatever_order() -> None:
    rows = [
        row(dataset="a", case="patient_A", subject="old_copies", subject_from="folder", modality="T1w"),
        row(dataset="b", case="sub-1_copy", subject="sub-1", subject_from="bids"),
        row(dataset="c", case="sub-1_T1w", subject="sub-1", subject_from="bids", modality="T1w"),
        row(dataset="d", case="sub-1_run-2_T1w", subject="sub-1", subject_from="bids", modality="T1w"),
    ]
    for order in itertools.permutations(rows):
        verdicts = duplicate_verdicts(order, Limits())
        assert {order[place].case: check for place, (check, _) in verdicts.items()} == {
            "patient_A": "duplicate_subject",
            "sub-1_copy": "duplicate",
            "sub-1_run-2_T1w": "duplicate",
        }
        assert all("voxels of sub-1_T1w" in detail for _, detail in verdicts.values())
    guessed = [replace(one, subject_from="folder", subject="s") for one in rows]
    assert set(duplicate_verdicts(guessed, Limits())) == {1, 2, 3}


@pytest.mark.parametrize("code", ALLOWABLE)
def test_every_check_that_can_be_switched_off_can(code) -> None:
    assert Limits(allow=(code,)).allow == (code,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"allow": (code,)}, "no network can be trained") for code in NEVER_ALLOWED),
        ({"allow": ("nonsense",)}, "is no check; choose from"),
        ({"min_fov": -1.0}, "--min-fov"),
        ({"max_spacing": float("nan")}, "--max-spacing"),
        ({"max_spacing": 0.05}, "must be more than"),
    ],
)
def test_impossible_limits_are_refused(options, words) -> None:
    with pytest.raises(UserError, match=words):
        Limits(**options)


def test_a_check_is_either_allowed_or_never() -> None:
    assert not set(ALLOWABLE) & set(NEVER_ALLOWED) and set(CHECKS) == {*ALLOWABLE, *NEVER_ALLOWED}
