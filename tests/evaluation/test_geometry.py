"""A structure must have the same world coordinates in the scan and in every file of a patch of it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.geometry import in_file_order, patch_to_scan, write_nifti

RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
SHAPE, ZOOMS = (44, 36, 40), np.array([1.5, 2.0, 1.2])
MARK = np.array([20.0, 15.5, 23.25])  # voxel of the scan, in the middle of the part that is not zero


def oblique_affine() -> np.ndarray:
    """Rotated about two axes, shifted, with voxels of three different edges."""
    a, b = np.deg2rad((14, -9))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(ZOOMS)
    affine[:3, 3] = (-37.5, 12.25, 4.0)
    return affine


def write_marked_scan(path: Path, orientation: str) -> np.ndarray:
    """A bright ball of known world position in a scan with empty borders, stored in any axis order."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - MARK) * ZOOMS, axis=-1)
    volume = np.zeros(SHAPE, np.float32)
    volume[4:-6, 3:-2, 7:-1] = 10
    volume += (1000 * np.exp(-((distance / 5) ** 2))).astype(np.float32) * (volume > 0)
    image = nibabel.Nifti1Image(volume, oblique_affine())
    turn = ornt_transform(nibabel.io_orientation(image.affine), axcodes2ornt(orientation))
    turned = image.as_reoriented(turn)
    assert np.allclose(turned.affine, image.affine @ inv_ornt_aff(turn, SHAPE))
    nibabel.save(turned, path)
    return (image.affine @ [*MARK, 1])[:3]


def plans(reader: str, transpose: list[int], spacing: list[float], resampling: str) -> PlansManager:
    configuration = {
        "spacing": spacing,
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": RESAMPLING if resampling.endswith("to_shape") else {},
        "resampling_fn_seg": "no_resampling_hack",
        "resampling_fn_seg_kwargs": {},
        "architecture": {},
    }
    return PlansManager(
        {
            "image_reader_writer": reader,
            "transpose_forward": transpose,
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"c": configuration},
        }
    )


def centre_of_brightness(image: nibabel.Nifti1Image, affine: np.ndarray) -> np.ndarray:
    volume = np.clip(np.asarray(image.dataobj) - 100, 0, None)
    voxels = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    centre = (voxels * volume[..., None]).sum(axis=(0, 1, 2)) / volume.sum()
    return (affine @ [*centre, 1])[:3]


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "NibabelIO", "SimpleITKIO"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "ALI"])
@pytest.mark.parametrize(
    ("transpose", "resampling"),
    [
        ([0, 1, 2], "resample_data_or_seg_to_shape"),
        ([1, 2, 0], "resample_data_or_seg_to_shape"),
        ([2, 0, 1], "no_resampling_hack"),
    ],
)
def test_a_structure_keeps_its_place_in_the_world(
    tmp_path: Path, reader: str, orientation: str, transpose: list[int], resampling: str
) -> None:
    scan = tmp_path / "scan.nii.gz"
    mark = write_marked_scan(scan, orientation)
    manager = plans(reader, transpose, [1.1, 0.9, 1.7], resampling)
    volumes, _, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(scan)], None, manager, manager.get_configuration("c"), {}
    )
    volume = np.asarray(volumes)[0]
    corner = (3, -2, 1)  # a patch that is cut on one side and reaches over the volume on another
    patch = np.pad(volume, ((0, 0), (2, 0), (0, 0)))[3:, :, 1:]
    to_scan = patch_to_scan(scan, reader, properties, transpose, volume.shape, corner)
    write_nifti(tmp_path / "patch.nii.gz", in_file_order(patch, transpose), scan, to_scan)

    written = nibabel.load(tmp_path / "patch.nii.gz")
    for affine in (written.get_sform(), written.get_qform()):
        found = centre_of_brightness(written, affine)
        assert np.linalg.norm(found - mark) < 0.05, f"{found} mm instead of {mark} mm"


@pytest.mark.parametrize(("sform", "qform"), [(2, 1), (1, 0), (0, 1), (0, 0)])
def test_a_patch_follows_both_positions_that_a_header_can_hold(tmp_path: Path, sform: int, qform: int) -> None:
    """Viewers choose between the two by rules of their own, so one that was moved must move in the patch as well."""
    image = nibabel.Nifti1Image(np.ones(SHAPE, np.float32), None)
    scanner, aligned = oblique_affine(), np.diag([2.0, 3.0, 1.0, 1.0])
    image.set_qform(scanner, qform)
    image.set_sform(aligned, sform)
    nibabel.save(image, tmp_path / "scan.nii")
    to_scan = np.diag([0.5, 0.5, 2.0, 1.0])
    to_scan[:3, 3] = (1, 2, 3)
    write_nifti(tmp_path / "patch.nii.gz", np.zeros((4, 5, 6)), tmp_path / "scan.nii", to_scan)

    written, original = nibabel.load(tmp_path / "patch.nii.gz"), nibabel.load(tmp_path / "scan.nii")
    assert np.allclose(written.affine, original.affine @ to_scan, atol=1e-4)
    if sform or qform:
        assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (sform, qform)
    if sform:
        assert np.allclose(written.get_sform(), aligned @ to_scan, atol=1e-4)
    if qform:
        assert np.allclose(written.get_qform(), scanner @ to_scan, atol=1e-4)


def test_a_reader_whose_voxel_order_is_unknown_is_refused(tmp_path: Path) -> None:
    properties = {"shape_after_cropping_and_before_resampling": SHAPE, "bbox_used_for_cropping": [[0, 9]] * 3}
    with pytest.raises(UserError, match="Tiff3DIO"):
        patch_to_scan(tmp_path / "x.nii", "Tiff3DIO", properties, [0, 1, 2], SHAPE, (0, 0, 0))
