"""Label maps lie where nnU-Net would put them, whatever the orientation, spacing and crop."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from scipy.ndimage import gaussian_filter

from nnssl_mae.catalogue.find import Scan, find_scans
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import preprocessing_plans
from nnssl_mae.probe.labels import label_names, match_labels
from nnssl_mae.probe.volumes import ProbeScan, prepared_scan
from tests.checkpoints.files import tiny_recipe, write_own

DATASET = {"labels": {"background": 0, "dim": 1, "bright": 2}, "channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}


def write_pair(folder: Path, orientation: str = "RAS", name: str = "x") -> tuple[Path, Path]:
    """A smooth body off the centre with empty borders, 3.5 x 4 x 6 mm, whose labels are two levels of brightness."""
    rng = np.random.default_rng(0)
    shape = (30, 34, 20)
    volume = gaussian_filter(rng.normal(size=shape), 2)
    volume = 500 + 200 * volume / volume.std()
    body = np.zeros(shape, bool)
    body[2:-6, 7:-2, 1:-4] = True
    labels = np.where(body, 1 + (volume > 500), 0)
    affine = np.diag([3.5, 4.0, 6.0, 1])
    affine[:3, 3] = (-40, 12, 7)
    paths = folder / "images" / f"{name}_0000.nii.gz", folder / "labels" / f"{name}.nii.gz"
    for path, content in zip(paths, ((volume * body).astype(np.float32), labels.astype(np.uint8)), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(content, affine)
        nibabel.save(image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(orientation))), path)
    return paths


def prepared(folder: Path, image: Path, labels: Path, reader: str, transpose: tuple[int, int, int]) -> ProbeScan:
    write_own(folder / "x.pth", tiny_recipe(), reader, transpose, spacing=(5.0, 4.0, 3.0))
    return prepared_scan(Scan(image, "x", "x"), read_checkpoint(folder / "x.pth"), labels, "x")


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "IAR"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_labels_are_those_that_nnunet_would_train_on(
    tmp_path: Path, reader: str, orientation: str, transpose: tuple[int, int, int]
) -> None:
    image, labels = write_pair(tmp_path, orientation)
    found = prepared(tmp_path, image, labels, reader, transpose)
    plans, configuration = preprocessing_plans(read_checkpoint(tmp_path / "x.pth"))
    data, expected, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(image)], str(labels), plans, configuration, DATASET
    )
    np.testing.assert_allclose(found.volume, data[0], atol=1e-4)
    np.testing.assert_array_equal(found.labels, np.maximum(expected[0], 0))  # nnU-Net marks the outside by -1


def test_labels_lie_over_what_they_label(tmp_path: Path) -> None:
    """Without nnU-Net's word for it: bright voxels are those with the label of bright ones."""
    for orientation in ("RAS", "PIL"):
        image, labels = write_pair(tmp_path / orientation, orientation)
        found = prepared(tmp_path, image, labels, "NibabelIOWithReorient", (1, 0, 2))
        assert found.labels is not None
        inside = found.labels > 0
        threshold = (found.volume[found.labels == 1].mean() + found.volume[found.labels == 2].mean()) / 2
        agreement = ((found.volume > threshold) == (found.labels == 2))[inside].mean()
        assert agreement > 0.9


@pytest.mark.parametrize("image_name", ["a_0000.nii.gz", "a.nii.gz", "a_0000.nii"])
def test_names_of_nnunet_and_equal_names_match(tmp_path: Path, image_name: str) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.nii.gz").touch()
    (tmp_path / "labels" / "dataset.json").touch()
    scan = Scan(tmp_path / image_name, "case", "a")
    assert match_labels([scan], tmp_path / "labels") == {"case": tmp_path / "labels" / "a.nii.gz"}


def test_labels_that_belong_to_no_scan_are_refused(tmp_path: Path) -> None:
    image, labels = write_pair(tmp_path)
    labels.rename(labels.with_name("other.nii.gz"))
    with pytest.raises(UserError, match=r"No label file in .*labels .*x_0000.nii.gz would need x.nii.gz"):
        match_labels(find_scans([image.parent]).scans, labels.parent)
    with pytest.raises(UserError, match=r"--labels .* is no folder"):
        match_labels([], image)


def changed(path: Path, content: np.ndarray | None = None, shift: float = 0.0) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift
    data = np.asarray(image.dataobj) if content is None else content
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


@pytest.mark.parametrize(
    ("content", "shift", "sentence"),
    [
        (np.ones((30, 34, 19), np.uint8), 0.0, r"is not on the grid of .*\(30, 34, 19\) voxels for \(30, 34, 20\)"),
        (None, 3.5, "its affine moves it by 1 voxels"),
        (np.full((30, 34, 20), np.nan, np.float32), 0.0, "contains NaN"),
        (np.full((30, 34, 20), 0.5, np.float32), 0.0, "which are no labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, content: np.ndarray | None, shift: float, sentence: str
) -> None:
    image, labels = write_pair(tmp_path)
    changed(labels, content, shift)
    with pytest.raises(UserError, match=sentence):
        prepared(tmp_path, image, labels, "NibabelIOWithReorient", (0, 1, 2))


def test_a_damaged_label_file_is_named(tmp_path: Path) -> None:
    image, labels = write_pair(tmp_path)
    labels.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"The label file .*x.nii.gz cannot be read"):
        prepared(tmp_path, image, labels, "NibabelIOWithReorient", (0, 1, 2))


def test_names_come_from_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "tumour": 1, "both": [1, 2], "ignore": 3}}')
    (tmp_path / "labelsTr").mkdir()
    names = label_names(tmp_path / "labelsTr")
    assert (names.of(1), names.of(2), names.ignore) == ("tumour", "2", 3)
