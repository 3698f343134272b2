"""Preprocessing equals nnU-Net's own, whatever the plans say, and differs only where the recipe goes beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import ScanProblem
from nnssl_mae.recipes.pretraining import DataRecipe
from nnssl_mae.scans.foreground import _sums, foreground_mask
from nnssl_mae.scans.preprocess import BeyondStock, Preprocessed, nonzero_box, preprocess
from nnssl_mae.scans.storage import as_stored, open_volume, stored_percentiles, write_volume

TOLERANCE = 1e-5
AFFINES = {
    "RAS": np.diag([2.5, 2.0, 3.0, 1]),
    "turned": np.array([[0.0, -2, 0, 90], [0, 0, 3, -100], [2.5, 0, 0, -70], [0, 0, 0, 1]]),
    "thick": np.diag([2.0, 2.0, 9.0, 1]),
}
SPLINES = {"order_z": 0, "force_separate_z": None}
RESAMPLERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resample_data_or_seg_to_shape": (
        {**SPLINES, "is_seg": False, "order": 3},
        {**SPLINES, "is_seg": True, "order": 1},
    ),
    "no_resampling_hack": ({}, {}),
    "resample_torch_fornnunet": (
        {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False},
        {"is_seg": True, "force_separate_z": False, "memefficient_seg_resampling": False},
    ),
}
DATASET = {"channel_names": {"0": "zscore"}, "labels": {"background": 0, "excluded": 1}, "file_ending": ".nii.gz"}


def plans(
    spacing: Sequence[float] = (2.0, 2.0, 2.0),
    reader: str = "NibabelIOWithReorient",
    normalisation: str = "ZScoreNormalization",
    inside_mask: bool = False,
    order: Sequence[int] = (0, 1, 2),
    resampling: str = "resample_data_or_seg_to_shape",
) -> PlansManager:
    image, label = RESAMPLERS[resampling]
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": list(spacing),
        "patch_size": [32, 32, 32],
        "normalization_schemes": [normalisation],
        "use_mask_for_norm": [inside_mask],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": label,
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    return PlansManager(
        {
            "image_reader_writer": reader,
            "transpose_forward": list(order),
            "transpose_backward": [list(order).index(axis) for axis in range(3)],
            "foreground_intensity_properties_per_channel": {
                "0": {"mean": 300.0, "std": 200.0, "percentile_00_5": 20.0, "percentile_99_5": 900.0}
            },
            "configurations": {"x": configuration},
        }
    )


def stock(path: Path, manager: PlansManager, labels: Path | None = None) -> tuple[NDArray[Any], NDArray[Any], Any]:
    segmentation = None if labels is None else str(labels)
    volume, found, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(path)], segmentation, manager, manager.get_configuration("x"), DATASET
    )
    return volume, found, properties


def ours(path: Path, manager: PlansManager, mask: Path | None = None, **beyond: Any) -> Preprocessed:
    scan = Scan(path, "s", "s", exclude=mask)
    return preprocess(scan, manager, manager.get_configuration("x"), BeyondStock(**beyond))


def write(path: Path, data: NDArray[Any], affine: NDArray[Any]) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


@pytest.fixture(scope="module")
def brain() -> NDArray[np.float32]:
    """The ICBM template at 4 mm, skull-stripped, with a zero hole inside and noise."""
    from nilearn.datasets import load_mni152_template

    data = np.asarray(load_mni152_template(resolution=4).dataobj, dtype=np.float32)
    noisy = np.where(data > 0.05, data / data.max() * 1000 + np.random.default_rng(0).normal(0, 20, data.shape), 0)
    noisy[20:24, 25:30, 20:24] = 0
    return noisy.astype(np.float32)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finer": ("RAS", {}),
    "turned axes": ("turned", {}),
    "turned axes as stored": ("turned", {"reader": "SimpleITKIO"}),
    "nibabel without turning": ("turned", {"reader": "NibabelIO"}),
    "other order of axes": ("turned", {"order": (1, 2, 0), "spacing": (2.0, 3.0, 2.5)}),
    "own grid": ("turned", {"resampling": "no_resampling_hack"}),
    "the grid of the plans": ("RAS", {"spacing": (3.0, 2.0, 2.5)}),
    "thick slices": ("thick", {}),
    "thick slices of the plans": ("RAS", {"spacing": (9.0, 2.0, 2.0)}),
    "thick slices elsewhere": ("thick", {"order": (2, 0, 1), "reader": "SimpleITKIO"}),
    "inside mask": ("turned", {"inside_mask": True}),
    "inside mask, own grid": ("RAS", {"inside_mask": True, "resampling": "no_resampling_hack"}),
    "0 to 1": ("RAS", {"normalisation": "RescaleTo01Normalization"}),
    "0 to 1, thick slices": ("thick", {"normalisation": "RescaleTo01Normalization"}),
    "as it is": ("RAS", {"normalisation": "NoNormalization"}),
    "like CT": ("RAS", {"normalisation": "CTNormalization"}),
    "torch": ("RAS", {"resampling": "resample_torch_fornnunet"}),
}


@pytest.mark.parametrize("name", CASES)
def test_volumes_are_those_of_nnunet(name: str, brain: NDArray[np.float32], tmp_path: Path) -> None:
    affine, choices = CASES[name]
    manager = plans(**choices)
    path = write(tmp_path / "x.nii.gz", brain, AFFINES[affine])
    expected, _, properties = stock(path, manager)
    found = ours(path, manager)
    assert found.excluded is None
    assert found.volume.dtype == expected.dtype
    scale = max(1.0, float(np.abs(expected).max()) / 100)  # 32 bit cannot say 1e-5 of a thousand
    np.testing.assert_allclose(found.volume, expected, rtol=0, atol=TOLERANCE * scale)
    for key in ("shape_before_cropping", "shape_after_cropping_and_before_resampling", "bbox_used_for_cropping"):
        assert np.array_equal(found.properties[key], properties[key])
    np.testing.assert_allclose(found.properties["spacing"], properties["spacing"])


def test_extreme_voxels_and_whole_numbers(brain: NDArray[np.float32], tmp_path: Path) -> None:
    bright = brain.copy()
    bright[25:27, 25:27, 25:27] = 30_000
    path = write(tmp_path / "x.nii.gz", bright.astype(np.int16), AFFINES["turned"])
    expected = stock(path, plans())[0]
    assert expected.max() > 50
    np.testing.assert_allclose(ours(path, plans()).volume, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("inside_mask", [False, True])
@pytest.mark.parametrize("affine", AFFINES)
def test_a_mask_is_treated_as_nnunet_treats_a_label(affine, inside_mask, brain, tmp_path) -> None:
    manager = plans(inside_mask=inside_mask)
    path = write(tmp_path / "x.nii.gz", brain, AFFINES[affine])
    mask = np.zeros(brain.shape, np.uint8)
    mask[:, 35:, :20] = 1
    labels = write(tmp_path / "mask.nii.gz", mask, AFFINES[affine])
    without = ours(path, manager)
    found = ours(path, manager, labels)
    np.testing.assert_array_equal(found.volume, without.volume)
    assert found.excluded is not None
    assert 0.01 < found.excluded.mean() < 0.5
    np.testing.assert_array_equal(found.excluded, stock(path, manager, labels)[1] == 1)


def test_an_empty_mask_excludes_nothing_and_a_wrong_one_is_named(brain, tmp_path) -> None:
    path = write(tmp_path / "x.nii.gz", brain, AFFINES["RAS"])
    empty = write(tmp_path / "empty.nii.gz", np.zeros(brain.shape, np.uint8), AFFINES["RAS"])
    for manager in (plans(), plans(resampling="no_resampling_hack")):
        found = ours(path, manager, empty)
        assert found.excluded is not None
        assert found.excluded.shape == found.volume.shape
        assert not found.excluded.any()
    small = write(tmp_path / "small.nii.gz", np.ones((5, 6, 7), np.uint8), AFFINES["RAS"])
    with pytest.raises(ScanProblem, match=r"mask small.nii.gz of shape \(7, 6, 5\); the scan's is"):
        ours(path, plans(), small)
    (tmp_path / "text.nii.gz").write_text("text")
    with pytest.raises(ScanProblem, match=r"mask text.nii.gz that "):
        ours(path, plans(), tmp_path / "text.nii.gz")


def test_clipping_comes_before_everything_else(brain, tmp_path) -> None:
    low, high = np.percentile(brain, (60, 95)).astype(np.float32)
    path = write(tmp_path / "x.nii.gz", brain, AFFINES["turned"])
    for limits, clipped in (
        ({"clip_high": 95.0}, np.minimum(brain, high)),
        ({"clip_low": 60.0, "clip_high": 95.0}, np.clip(brain, low, high)),
        ({"clip_low": 60.0}, np.maximum(brain, low)),
    ):
        expected = stock(write(tmp_path / "clipped.nii.gz", clipped, AFFINES["turned"]), plans())[0]
        np.testing.assert_allclose(ours(path, plans(), **limits).volume, expected, rtol=0, atol=TOLERANCE)


def test_the_foreground_is_cut_out_of_noisy_air(brain, tmp_path) -> None:
    noise = np.abs(np.random.default_rng(1).normal(0, 15, brain.shape)) + 1
    noisy = np.pad((brain + noise).astype(np.float32), 6, mode="reflect")
    noisy[:6], noisy[-6:] = 5, 5
    path = write(tmp_path / "x.nii.gz", noisy, AFFINES["RAS"])
    box = nonzero_box(foreground_mask(noisy.transpose(2, 1, 0)))
    assert min(end - start for start, end in box) < max(noisy.shape)
    cut = noisy.transpose(2, 1, 0)[tuple(slice(*ends) for ends in box)].transpose(2, 1, 0)
    expected = stock(write(tmp_path / "cut.nii.gz", cut, AFFINES["RAS"]), plans())[0]
    found = ours(path, plans(), crop="foreground")
    np.testing.assert_allclose(found.volume, expected, rtol=0, atol=TOLERANCE)
    assert found.properties["bbox_used_for_cropping"] == box
    assert found.volume.size < 0.9 * ours(path, plans()).volume.size


@pytest.mark.parametrize("filled", [0.0, 1e-4, 1e-3, 0.3, 1.0])
def test_the_box_is_that_of_nnunet(filled: float) -> None:
    rng = np.random.default_rng(5)
    for shape in ((1, 1, 1), (5, 30, 40), (31, 2, 17)):
        volume = np.where(rng.random(shape) < filled, rng.normal(size=shape), 0)
        assert np.array_equal(nonzero_box(volume), crop_to_nonzero(volume[None])[2])


def test_what_is_beyond_stock_is_named() -> None:
    assert BeyondStock.of(DataRecipe()) == BeyondStock()
    assert BeyondStock().words == ()
    all_of_it = BeyondStock.of(DataRecipe(clip_percentile=99.5, clip_low_percentile=0.5, crop="foreground"))
    assert all_of_it.words == ("clip below 0.5", "clip 99.5", "crop foreground")


@pytest.mark.parametrize("steps", [(1, 2, 4), (4, 1, 8), (8, 4, 2), (2, 8, 1)])
def test_sums_of_neighbours_are_those_of_numpy_to_the_last_digit(steps: tuple[int, int, int]) -> None:
    """Foreground is found from them, and two versions must not find another one."""
    rng = np.random.default_rng(8)
    for shape in ((1, 2, 3), (16, 24, 8), (17, 9, 35)):
        volume = rng.normal(0, 1000, shape).astype(np.float32)
        for axis, step in enumerate(steps):
            expected = np.add.reduceat(volume, np.arange(0, shape[axis], step), axis=axis)
            np.testing.assert_array_equal(_sums(volume, axis, step), expected)


def test_percentiles_of_a_stored_volume_are_those_of_its_voxels() -> None:
    rng = np.random.default_rng(6)
    wanted = (0, 0.5, 33.3, 50, 99.5, 100)
    for count in (1, 2, 3, 200, 201, 5000):
        for scale in (0.01, 1, 300):
            volume = rng.normal(0, scale, (1, 1, 1, count)).astype(np.float32)
            volume[rng.random(volume.shape) < 0.3] = rng.choice([0.0, -0.0, 1.0])
            stored = as_stored(volume)
            np.testing.assert_array_equal(stored, volume.astype(np.float16))
            expected = np.percentile(stored.astype(np.float32), wanted)
            np.testing.assert_array_equal(stored_percentiles(stored, wanted), expected)


def test_what_is_written_is_read_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    volume = np.random.default_rng(7).normal(size=(1, 20, 30, 40)).astype(np.float32)
    for name, given in (("a", volume), ("b", as_stored(volume)), ("c", volume[:, :, ::-1][:, :, ::-1])):
        write_volume(tmp_path / f"{name}.b2nd", given, (16, 16, 16))
        np.testing.assert_array_equal(open_volume(tmp_path / f"{name}.b2nd")[:], volume.astype(np.float16))
    for wrong in (65_520.0, -1e9, np.inf, np.nan):
        with pytest.raises(ValueError, match="which 16 bit cannot hold"):
            write_volume(tmp_path / "wrong.b2nd", np.full((1, 4, 4, 4), wrong, np.float32), (4, 4, 4))
    assert not (tmp_path / "wrong.b2nd").exists()


def test_different_values_that_16_bit_cannot_tell_apart_are_refused() -> None:
    for low, high in ((0.0, 1e-9), (1000.0, 1000.1)):
        volume = np.linspace(low, high, 64, dtype=np.float32).reshape(1, 4, 4, 4)
        with pytest.raises(ValueError, match="are all the same in 16 bit"):
            as_stored(volume)
    assert as_stored(np.full((1, 2, 2, 2), 5, np.float32)).min() == 5


def test_a_scan_of_which_nothing_is_left_is_refused_by_name(brain, tmp_path) -> None:
    thin = np.zeros(brain.shape, np.float32)
    thin[20] = brain[20] + 1
    path = write(tmp_path / "x.nii.gz", thin, AFFINES["RAS"])
    with pytest.raises(ScanProblem, match="thinner than half a voxel"):
        ours(path, plans(spacing=(2.0, 2.0, 6.0)))


def test_a_volume_is_the_same_file_on_a_machine_with_another_number_of_cores(tmp_path, monkeypatch) -> None:
    volume = np.random.default_rng(0).normal(size=(1, 20, 30, 25)).astype(np.float32)
    files = []
    before = blosc2.nthreads
    for cores in (1, 7):
        blosc2.set_nthreads(cores)
        write_volume(tmp_path / f"{cores}.b2nd", volume, (16, 16, 16))
        files.append((tmp_path / f"{cores}.b2nd").read_bytes())
    blosc2.set_nthreads(before)
    assert files[0] == files[1]
