"""Statistics, hashes and pictures of single scans."""

import io

import nibabel
import numpy as np
import pytest
from PIL import Image

from nnssl_mae.catalogue.examine import examine_header, examine_voxels, flatness, picture, voxel_hash
from nnssl_mae.catalogue.read import read_voxels
from tests.catalogue.scan_files import brain, oblique, scan, write_itk, write_nifti


def test_columns_of_a_scan(tmp_path) -> None:
    data = brain()
    path = write_nifti(tmp_path / "a.nii.gz", data, np.diag([-3.0, 3.0, 4.0, 1.0]))
    header, voxels = examine_header(scan(path)).columns, examine_voxels(scan(path)).columns
    assert (header["size_x"], header["spacing_z"], header["orientation"], header["dtype"]) == (20, 4.0, "LAS", "int16")
    assert (header["min_fov"], header["max_fov"], header["volumes"]) == (60.0, 72.0, 1)
    assert (voxels["minimum"], voxels["maximum"]) == (data.min(), data.max())
    assert voxels["mean"] == pytest.approx(data.mean()) and voxels["std"] == pytest.approx(data.std(), rel=1e-4)
    assert voxels["distinct"] == len(np.unique(data)) and voxels["whole_numbers"]
    assert voxels["nonzero"] == pytest.approx((data != 0).mean())
    assert voxels["p50"] == pytest.approx(np.median(data), abs=5)


def test_equal_images_have_equal_hashes_whatever_their_file(tmp_path) -> None:
    data, affine = brain(), oblique(turned="RAS", spacing=(1.2, 0.9375, 3.3))
    flipped = affine.copy()
    flipped[:3, 0] *= -1
    flipped[:3, 3] += affine[:3, 0] * (data.shape[0] - 1)
    files = [
        write_nifti(tmp_path / "a.nii", data, affine),
        write_nifti(tmp_path / "b.nii.gz", data.astype(np.float32), affine),
        write_nifti(tmp_path / "c.nii.gz", data[::-1], flipped),
        write_itk(tmp_path / "d.nrrd", data, affine),
        write_itk(tmp_path / "e.mha", data, affine),
        write_nifti(tmp_path / "f.nii", data.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]),
    ]
    found = [examine_voxels(scan(path)).columns for path in files]
    assert len({columns["voxel_hash"] for columns in found}) == 1
    assert len({columns["source_hash"] for columns in found}) == len(files)
    others = [write_nifti(tmp_path / "g.nii", data[::-1], affine), write_nifti(tmp_path / "h.nii", data, np.eye(4))]
    assert not {examine_voxels(scan(path)).columns["voxel_hash"] for path in others} & {found[0]["voxel_hash"]}


def test_zero_has_no_sign_in_the_hash() -> None:
    voxels = np.zeros((1, 2, 3, 4), np.float32)
    assert voxel_hash(voxels, (1, 1, 1)) == voxel_hash(-voxels, (1, 1, 1)) != voxel_hash(voxels, (1, 1, 2))


def test_the_mask_belongs_to_the_source(tmp_path) -> None:
    path = write_nifti(tmp_path / "a.nii", brain(), np.eye(4))
    mask = np.zeros(brain().shape, np.uint8)
    mask[:5] = 1
    write_nifti(tmp_path / "m.nii", mask, np.eye(4))
    plain = examine_voxels(scan(path)).columns
    masked = examine_voxels(scan(path, exclude=tmp_path / "m.nii")).columns
    assert plain["voxel_hash"] == masked["voxel_hash"] and plain["source_hash"] != masked["source_hash"]


@pytest.mark.parametrize(
    ("shape", "shift", "value", "words"),
    [((20, 24, 17), 0, 0, "shape"), ((20, 24, 18), 1, 0, "moves it by 1 voxels"), ((20, 24, 18), 0, 1, "as a whole")],
)
def test_masks_that_do_not_fit(tmp_path, shape, shift, value, words) -> None:
    path = write_nifti(tmp_path / "a.nii", brain(), np.eye(4))
    affine = np.eye(4)
    affine[0, 3] = shift
    write_nifti(tmp_path / "m.nii", np.full(shape, value, np.uint8), affine)
    columns = examine_voxels(scan(path, exclude=tmp_path / "m.nii")).columns
    assert columns["check"] == "exclusion_mask" and words in columns["detail"]


def test_a_picture_shows_three_planes_the_right_way_up(tmp_path) -> None:
    data = np.zeros((40, 50, 30), np.float32)
    data[30:, :, :] = 1  # right
    data[:, 40:, :] += 2  # front
    data[:, :, 22:] += 4  # top
    write_nifti(tmp_path / "a.nii", data[::-1], np.diag([-1.0, 1.0, 2.0, 1.0]))
    voxels, spacing = read_voxels(scan(tmp_path / "a.nii"), "RAS")
    shown = Image.open(io.BytesIO(picture(voxels[0], spacing, 0.0, 7.0)))
    assert (shown.mode, shown.size) == ("L", (288, 96))
    axial, coronal, sagittal = (np.asarray(shown)[:, 96 * n : 96 * (n + 1)].astype(int) for n in range(3))
    assert axial[15:30, 40:56].mean() > axial[66:81, 40:56].mean()  # front above
    assert axial[40:56, 70:80].mean() > axial[40:56, 16:26].mean()  # right at the right
    assert coronal[5:15, 40:56].mean() > coronal[80:90, 40:56].mean()  # top above
    assert sagittal[5:15, 40:56].mean() > sagittal[80:90, 40:56].mean()
    assert sagittal[40:56, 80:86].mean() > sagittal[40:56, 10:16].mean()  # front at the right
    # 60 mm of the largest edge fill the square: 40 mm are 64 pixels.
    assert (axial.max(axis=0) > 0).sum() <= 64


def test_flatness_tells_labels_from_noise() -> None:
    labels = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((6, 6, 6)))
    noise = np.random.default_rng(0).integers(1, 28, (18, 18, 18))
    assert flatness(labels.astype(np.float32), 0) > 0.85
    assert flatness(noise.astype(np.float32), 0) < 0.1


def test_values_that_no_number_can_hold_are_said(tmp_path) -> None:
    data = brain().astype(np.float64)
    data[2, 2, 2] = 1e300  # infinite as float32, as nnU-Net would read it
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    columns = examine_voxels(scan(tmp_path / "a.nii")).columns
    assert columns["check"] == "not_finite" and "1 of" in columns["detail"]
