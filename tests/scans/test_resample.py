"""Resampling equals nnU-Net's own function on anything that it is given."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from nnssl_mae.scans.resample import replaces, resample, separate_axis
from tests.tiny_scans import template

STOCK = partial(resample_data_or_seg_to_shape, is_seg=False, order=3, order_z=0, force_separate_z=None)
ONE_MM = (1.0, 1.0, 1.0)
THICK = {None: ONE_MM, 0: (6.0, 1.0, 1.0), 1: (1.0, 6.0, 1.0), 2: (1.0, 1.0, 6.0)}
TOLERANCE = 1e-5
"""Half a step of 32 bit at 100 is 3.8e-6."""


def both(
    volume: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...] = ONE_MM, stock: Any = STOCK
) -> tuple[np.ndarray, np.ndarray]:
    before = volume.copy()
    ours = resample(stock, volume, shape, spacing, ONE_MM)
    np.testing.assert_array_equal(volume, before)
    return ours, stock(volume, shape, spacing, ONE_MM)


def assert_equal(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.dtype == expected.dtype
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


sizes = st.tuples(*[st.integers(1, 24)] * 3)
new_sizes = st.tuples(*[st.sampled_from([1, 2, 3, 7, 16, 33, 64])] * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, new_sizes, st.sampled_from([None, 0, 1, 2]), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_shape_to_any_shape(shape, new_shape, thick_axis, extremes, seed) -> None:
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(1, *shape)).astype(np.float32)
    if extremes:
        volume[rng.random(volume.shape) < 0.1] = 100
        volume[rng.random(volume.shape) < 0.1] = -100
    assert separate_axis(STOCK, THICK[thick_axis], ONE_MM) == thick_axis
    assert_equal(*both(volume, new_shape, THICK[thick_axis]))


@pytest.mark.parametrize("spacing", [(1.2, 0.8, 0.8), (0.4, 0.9, 1.1), (6.0, 0.8, 0.9), (0.7, 5.5, 0.7)])
def test_a_brain(spacing: tuple[float, ...]) -> None:
    brain = template()[0].transpose(2, 1, 0)[None]
    volume = (brain - brain.mean()) / brain.std()
    shape = tuple(round(size * edge) for size, edge in zip(brain.shape[1:], spacing, strict=True))
    assert_equal(*both(volume, shape, spacing))


@pytest.mark.parametrize("shape", [(130, 9, 20), (13, 90, 20), (1, 90, 200)])
def test_ten_times_finer_and_coarser(shape: tuple[int, ...]) -> None:
    assert_equal(*both(np.random.default_rng(0).normal(size=(1, 13, 90, 20)).astype(np.float32), shape))


def test_every_channel_is_clipped_to_its_own_range() -> None:
    step = np.zeros((2, 12, 12, 12), np.float32)
    step[0, 6:], step[1, :, 6:] = 3, -70
    ours, expected = both(step, (20, 17, 12))
    assert_equal(ours, expected)
    assert (ours[0].min(), ours[0].max(), ours[1].min(), ours[1].max()) == (0, 3, -70, 0)


def test_a_constant_stays_constant() -> None:
    for value in (0.0, -3.7, 1e-30):
        ours, _ = both(np.full((1, 5, 6, 7), value, np.float32), (9, 3, 7))
        assert np.unique(ours).tolist() == [np.float32(value)]


def test_views_of_other_layouts() -> None:
    turned = np.random.default_rng(1).normal(size=(1, 9, 14, 11)).astype(np.float32).transpose(0, 3, 1, 2)[:, ::-1, 1:]
    for spacing in THICK.values():
        assert_equal(*both(turned, (20, 5, 18), spacing))


def test_the_same_shape_is_the_volume_itself() -> None:
    volume = np.ones((1, 4, 5, 6), np.float32)
    assert resample(STOCK, volume, (4, 5, 6), ONE_MM, ONE_MM) is volume


def test_what_no_matrix_can_do_is_left_to_nnunet() -> None:
    volume = np.random.default_rng(2).normal(size=(1, 6, 7, 8)).astype(np.float32)
    with pytest.warns(RuntimeWarning):  # nnU-Net's own, of a scan that is thinner than half a voxel of the plans
        assert resample(STOCK, volume, (0, 7, 9), ONE_MM, ONE_MM).shape == (1, 0, 7, 9)
    volume[0, 0, 0, 0] = np.inf
    np.testing.assert_array_equal(*both(volume, (9, 9, 9)))
    double = volume.astype(np.float64)
    assert resample(STOCK, double, (9, 9, 9), ONE_MM, ONE_MM).dtype == np.float64


OTHERS = {
    "segmentation": partial(resample_data_or_seg_to_shape, is_seg=True, order=1, order_z=0, force_separate_z=None),
    "linear": partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None),
    "linear across slices": partial(resample_data_or_seg_to_shape, is_seg=False, order=3, order_z=1),
    "torch": partial(resample_torch_fornnunet, is_seg=False, force_separate_z=False, memefficient_seg_resampling=False),
    "none": partial(no_resampling_hack),
    "somebody's own": lambda data, new_shape, current_spacing, new_spacing: data[:, ::2, ::2, ::2],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_and_choices_are_called_as_they_are(name: str) -> None:
    volume = np.random.default_rng(3).integers(0, 3, (1, 8, 9, 10)).astype(np.float32)
    assert not replaces(OTHERS[name])
    np.testing.assert_array_equal(*both(volume, (12, 7, 10), stock=OTHERS[name]))


@pytest.mark.parametrize("keywords", [{}, {"force_separate_z": False}, {"separate_z_anisotropy_threshold": 10}])
def test_thick_slices_follow_the_plans(keywords: dict[str, Any]) -> None:
    volume = np.random.default_rng(4).normal(size=(1, 6, 20, 20)).astype(np.float32)
    stock = partial(resample_data_or_seg_to_shape, **keywords)
    assert replaces(stock)
    assert separate_axis(stock, (6.0, 1.0, 1.0), ONE_MM) is None
    assert_equal(*both(volume, (36, 20, 24), (6.0, 1.0, 1.0), stock))
