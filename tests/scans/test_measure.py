import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import Orientation
from nnssl_mae.scans.measure import fingerprint, measure_scan, samples_a_scan
from nnssl_mae.scans.planning import READERS
from nnssl_mae.scans.preprocess import BeyondStock
from tests.tiny_scans import tiny_scan

STOCK = BeyondStock()


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def problem(path: Path) -> str:
    return problem_of(Scan(path, "case", "subject"))


def problem_of(scan: Scan, beyond_stock: BeyondStock = STOCK) -> str:
    found = measure_scan(scan, "RAS", 100, beyond_stock).problem
    assert found is not None
    return found


def test_unusable_scans_are_named_and_never_raise(tmp_path) -> None:
    text = tmp_path / "text.nii.gz"
    text.write_text("this is not an image")
    assert "does not begin as NIfTI files do" in problem(text)
    volume = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    assert "holds 2 volumes" in problem(save(tmp_path / "4d.nii.gz", np.stack([volume] * 2, -1)))
    assert "constant" in problem(save(tmp_path / "constant.nii.gz", np.full_like(volume, 3)))
    volume[0, 0, 0] = np.nan
    assert "NaN" in problem(save(tmp_path / "nan.nii.gz", volume))
    whole = gzip.compress(gzip.decompress(save(tmp_path / "whole.nii.gz", volume).read_bytes()))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read to their end" in problem(cut)


@pytest.mark.parametrize("orientation", ["as_stored", "RAS"])
def test_fingerprint_equals_stock(orientation: Orientation, nnunet_folders: Path) -> None:
    """Shapes, spacings and crop from stock's own fingerprint of the same images with themselves as labels."""
    raw = nnunet_folders / "raw" / "Dataset007_Same"
    paths = []
    for split in ("imagesTr", "labelsTr"):
        (raw / split).mkdir(parents=True)
    for index in range(3):
        image, labels = tiny_scan(index)
        paths.append(raw / "imagesTr" / f"c{index}_0000.nii.gz")
        nibabel.save(image, paths[-1])
        nibabel.save(labels, raw / "labelsTr" / f"c{index}.nii.gz")
    content = {
        "channel_names": {"0": "zscore"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": READERS[orientation],
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    extract_fingerprints([7], num_processes=2)
    stock = json.loads((nnunet_folders / "preprocessed" / raw.name / "dataset_fingerprint.json").read_text())
    scans = [Scan(path, "case", "subject") for path in paths]
    ours = fingerprint([measure_scan(scan, orientation, samples_a_scan(3), STOCK) for scan in scans])
    for key in ("spacings", "shapes_after_crop", "median_relative_size_after_cropping"):
        assert np.allclose(ours[key], stock[key]), key
    one, other = (f["foreground_intensity_properties_per_channel"]["0"] for f in (ours, stock))
    assert one.keys() == other.keys()
    # Both are random samples of the voxels.
    assert one["mean"] == pytest.approx(other["mean"], rel=0.02)


def test_unusable_exclusion_masks_are_named_and_never_raise(tmp_path) -> None:
    volume = np.random.default_rng(0).normal(size=(20, 22, 24)).astype(np.float32)
    scan, empty = save(tmp_path / "scan.nii.gz", volume), np.zeros_like(volume)

    def with_mask(mask: Path) -> Scan:
        return Scan(scan, "case", "subject", mask)

    assert measure_scan(with_mask(save(tmp_path / "empty.nii.gz", empty)), "as_stored", 100, STOCK).problem is None
    text = tmp_path / "text.nii.gz"
    text.write_text("this is not an image")
    assert "mask text.nii.gz that is not a readable NIfTI" in problem_of(with_mask(text))
    small = save(tmp_path / "small.nii.gz", empty[1:])
    assert "mask small.nii.gz of shape (19, 22, 24); the scan's is (20, 22, 24)" in problem_of(with_mask(small))
    moved = save(tmp_path / "moved.nii.gz", empty, np.diag([1, 1, 1.05, 1]))
    assert "affine moves it by 1.15 voxels" in problem_of(with_mask(moved))
    whole = save(tmp_path / "whole.nii.gz", np.ones_like(volume))
    assert "is excluded as a whole" in problem_of(with_mask(whole))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(save(tmp_path / "noise.nii.gz", volume).read_bytes()[:20_000])
    assert "mask cut.nii.gz that has voxels that cannot be read to their end" in problem_of(with_mask(cut))


def test_clipping_never_leaves_a_constant_scan(tmp_path) -> None:
    few = np.zeros((10, 10, 10), np.float32)
    few[5, 5, 5] = 1
    scan = Scan(save(tmp_path / "few.nii.gz", few), "case", "subject")
    assert "constant once it is clipped" in problem_of(scan, BeyondStock(clip_high=99))
    assert measure_scan(scan, "RAS", 100, STOCK).problem is None


def test_a_crop_to_the_head_is_what_the_fingerprint_tells_of(tmp_path) -> None:
    image = tiny_scan(0)[0]
    noisy = np.asarray(image.dataobj) + np.random.default_rng(0).uniform(1, 20, image.shape).astype(np.float32)
    scan = Scan(save(tmp_path / "noisy.nii.gz", noisy, image.affine), "case", "subject")
    whole, head = (measure_scan(scan, "RAS", 100, BeyondStock(crop=crop)) for crop in ("nonzero", "foreground"))
    assert whole.shape_after_crop == tuple(reversed(image.shape))
    assert np.prod(head.shape_after_crop) < 0.9 * np.prod(whole.shape_after_crop)
    assert head.relative_size < 0.9 * whole.relative_size
