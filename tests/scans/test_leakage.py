"""Test data must not be pre-trained on: scans that a labelled dataset holds too are found and left out."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from rich.console import Console

from nnssl_mae.catalogue.examine import voxel_hash
from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import read_voxels
from nnssl_mae.catalogue.table import Catalogue, ScanRow
from nnssl_mae.errors import UserError
from nnssl_mae.scans import leakage
from nnssl_mae.scans.leakage import leaks
from tests.scans.catalogues import one_by_one
from tests.tiny_scans import tiny_scan, write_labelled


def row(path: Path, case: str, subject: str, subject_from: str = "bids", dataset: str = "open") -> ScanRow:
    voxels, spacing = read_voxels(Scan(path, case, subject), "RAS")
    return ScanRow(
        str(path), "", "", case, dataset, subject, subject_from, "", "T1w", "nifti",
        voxel_hash=voxel_hash(voxels, spacing),
    )  # fmt: skip


def catalogue(*rows: ScanRow) -> Catalogue:
    return Catalogue(pandas.DataFrame([asdict(one) for one in rows]))


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "in_processes", one_by_one)


@pytest.fixture
def labelled(nnunet_folders: Path) -> Path:
    """``Dataset004_Tiny``: training images of seeds 100 to 102, a test image of seed 200, two channels each."""
    return write_labelled(nnunet_folders / "raw", 4, "Tiny", count=3, channels=2)


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Path]:
    """A copy of a training image turned to other axes, one of a test image, one in other numbers, and a stranger."""
    training, test, stranger = (tiny_scan(seed)[0] for seed in (101, 200, 7))
    turned = training.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    images = {"turned": turned, "test": test, "stranger": stranger}
    paths = {name: tmp_path / f"{name}.nii.gz" for name in images}
    for name, image in images.items():
        nibabel.save(image, paths[name])
    return paths


def test_copies_are_found_in_any_orientation_among_training_and_test_images(labelled, scans) -> None:
    console = Console(record=True, file=io.StringIO(), width=300)
    rows = [row(path, name, f"sub-{name}") for name, path in scans.items()]
    found = leaks(catalogue(*rows), [4], console, workers=1)
    assert found == {
        "turned": "has the voxels of case101_0000.nii.gz of Dataset004_Tiny",
        "test": "has the voxels of case200_0000.nii.gz of Dataset004_Tiny",
    }
    assert "8 images compared, 2 scans left out: 2 with equal voxels" in console.export_text()


def test_other_scans_of_the_same_person_go_too_but_only_where_the_person_is_known(labelled, scans) -> None:
    pair = [row(scans["test"], "test", "sub-9"), row(scans["stranger"], "other", "sub-9")]
    assert set(leaks(catalogue(*pair), [4], Console(quiet=True), 1)) == {"test", "other"}
    elsewhere = [pair[0], replace(pair[1], dataset="another collection")]
    assert set(leaks(catalogue(*elsewhere), [4], Console(quiet=True), 1)) == {"test"}
    guessed = [replace(one, subject_from="folder") for one in pair]
    assert set(leaks(catalogue(*guessed), [4], Console(quiet=True), 1)) == {"test"}


def test_subjects_are_compared_by_name_where_names_are_known(labelled, scans) -> None:
    for path in sorted((labelled / "imagesTr").glob("case100_*")):
        path.rename(path.with_name(path.name.replace("case100", "sub-A1_x")))
    rows = [row(scans["stranger"], "stranger", "sub-a1"), row(scans["stranger"], "twin", "sub-a1", "folder")]
    found = leaks(catalogue(*rows), [4], Console(quiet=True), 1)
    assert list(found) == ["stranger"]
    assert "subject name sub-a1" in found["stranger"]
    assert leaks(catalogue(*rows), [4], Console(quiet=True), 1, match_subjects=False) == {}
    by_regex = [row(scans["stranger"], "stranger", "102", "regex")]
    assert list(leaks(catalogue(*by_regex), [4], Console(quiet=True), 1, subject_regex=r"(\d+)_\d{4}")) == ["stranger"]


def test_what_cannot_be_compared_stops_with_a_sentence(labelled, scans) -> None:
    rows = catalogue(row(scans["stranger"], "stranger", "s"))
    unread = Catalogue(rows.rows.assign(voxel_hash=""))
    with pytest.raises(UserError, match="without --headers-only"):
        leaks(unread, [4], Console(quiet=True), 1)
    with pytest.raises(UserError, match="no dataset 77"):
        leaks(rows, [77], Console(quiet=True), 1)
    (labelled / "imagesTs" / "case200_0000.nii.gz").write_bytes(b"text")
    with pytest.raises(UserError, match=r"case200_0000.nii.gz of Dataset004_Tiny cannot be compared .* repair it"):
        leaks(rows, [4], Console(quiet=True), 1)


def test_a_rejected_copy_tells_whose_other_scans_must_go(labelled, scans) -> None:
    kept = row(scans["test"], "a", "sub-9", dataset="first")
    copy = replace(kept, case="b", subject="sub-77", dataset="second", check="duplicate_subject", verdict="rejected")
    other = row(scans["stranger"], "c", "sub-77", dataset="second")
    found = leaks(catalogue(kept, copy, other), [4], Console(quiet=True), 1)
    assert set(found) == {"a", "c"} and "whose scan b" in found["c"]


def test_every_volume_of_a_labelled_4d_image_is_compared(labelled, scans) -> None:
    stranger = nibabel.load(scans["stranger"])
    data = np.stack([np.zeros_like(stranger.dataobj), stranger.dataobj], axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, stranger.affine), labelled / "imagesTs" / "case300_0000.nii.gz")
    found = leaks(catalogue(row(scans["stranger"], "stranger", "s")), [4], Console(quiet=True), 1)
    assert "case300" in found["stranger"]


def test_the_session_is_not_taken_for_the_subject(labelled, scans) -> None:
    rows = catalogue(row(scans["stranger"], "stranger", "102", "regex"))
    regex = r"case(?P<session>\d)(?P<subject>)?|(\d+)_"
    assert leaks(rows, [4], Console(quiet=True), 1, subject_regex=regex) == {}
