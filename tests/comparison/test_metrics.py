"""Metrics against nnU-Net's own, a second library of surface distances, and examples worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from nnssl_mae.comparison.metrics import (
    diagonal_mm,
    dice,
    lesion_f1,
    score_label_maps,
    score_masks,
    surface_agreement,
)

Mask = NDArray[np.bool_]
ISOTROPIC = (1.0, 1.0, 1.0)


def box(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...] = (14, 18, 20), threshold: float = 0.06) -> Mask:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.asarray(noise > threshold)


def label_map(seed: int, labels: int = 4) -> NDArray[np.int32]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(10, 12, 14)), 1.5)
    edges = np.quantile(noise, np.linspace(0.4, 1, labels + 1)[:-1])
    return np.digitize(noise, edges).astype(np.int32)


def test_dice_of_half_overlapping_cubes_is_a_half() -> None:
    a, b = box((8, 8, 8), (2, 2, 2), (4, 4, 4)), box((8, 8, 8), (2, 2, 3), (4, 4, 5))
    assert dice(a, b) == 0.5


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        ({"a": (1,), "b": (2,), "c": (3,)}, None),
        ({"whole": (1, 2, 3), "core": (2, 3), "edge": (1,)}, None),
        ({"a": (1,), "b": (2,)}, 3),
        ({"whole": (1, 2), "core": (2,)}, 3),
    ],
    ids=["labels", "regions", "ignore", "regions and ignore"],
)
def test_counts_and_dice_are_those_of_nnunet(labels: dict[str, tuple[int, ...]], ignore: int | None) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

    reference, predicted = label_map(0), np.where(np.arange(14) < 6, label_map(1), label_map(0))
    mine = score_label_maps(reference, predicted, ISOTROPIC, labels, ignore)
    for name, values in labels.items():
        masks = [region_or_label_to_mask(array, values) for array in (reference, predicted)]
        tp, fp, fn, _ = compute_tp_fp_fn_tn(*masks, None if ignore is None else reference == ignore)
        assert tp and fp and fn, "the example must hold all kinds"
        assert mine[name].dice == 2 * tp / (2 * tp + fp + fn)
        assert mine[name].voxels_reference == tp + fn
        assert mine[name].voxels_predicted == tp + fp


SPACINGS = [ISOTROPIC, (3.0, 0.5, 0.5), (0.7, 1.3, 2.1)]


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_surface_dice_equals_monai(spacing: tuple[float, ...], seed: int, tolerance: float) -> None:
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = blobs(seed), blobs(seed) ^ blobs(seed + 10, threshold=0.2)
    mine, _ = surface_agreement(a, b, spacing, tolerance, 0.0)
    batches = [torch.from_numpy(mask)[None, None].float() for mask in (b, a)]
    theirs = metrics.compute_surface_dice(*batches, [tolerance], True, spacing=spacing, use_subvoxels=True)
    assert 0 < mine < 1
    assert mine == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the library calls scipy by names of old
@pytest.mark.parametrize("shape", [(14, 18, 20), (30, 40)], ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_equal_deepminds_library(shape: tuple[int, ...], seed: int) -> None:
    import surface_distance

    a, b = blobs(seed, shape), blobs(seed, shape) ^ blobs(seed + 10, shape, 0.2)
    spacing = (0.7, 1.3, 2.1)[-len(shape) :]
    distances = surface_distance.compute_surface_distances(a, b, spacing)
    nsd, hd95 = surface_agreement(a, b, spacing, 1.0, 0.0)
    assert nsd == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(distances, 1.0), abs=1e-12)
    assert hd95 == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95), abs=1e-9)


def test_a_surface_at_the_tolerance_is_within_it_whatever_the_header_rounds() -> None:
    a, b = box((9, 9, 30), (2, 2, 2), (7, 7, 12)), box((9, 9, 30), (2, 2, 2), (7, 7, 14))
    spacing = (1.0, 1.0, float(np.float32(1.1)))
    assert spacing[2] * 2 > 2.2
    assert surface_agreement(a, b, spacing, 2.2, 0.0)[0] == 1.0


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("seed", [1, 2])
def test_hd95_equals_the_area_weighted_percentile_of_monais_distances(spacing: tuple[float, ...], seed: int) -> None:
    """MONAI's own HD95 counts voxels of the rim, not areas, and runs from their centres; so its distances are taken."""
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("monai.metrics.utils")
    a, b = blobs(seed), blobs(seed) ^ blobs(seed + 10, threshold=0.2)
    _, mine = surface_agreement(a, b, spacing, 1.0, 0.0)
    edges, distances, areas = utils.get_edge_surface_distance(
        torch.from_numpy(b), torch.from_numpy(a), spacing=spacing, use_subvoxels=True, symmetric=True
    )
    directed = [
        weighted_percentile(d.numpy(), area[edge].numpy())
        for d, area, edge in zip(distances, areas, edges, strict=True)
    ]
    assert mine == pytest.approx(max(directed), abs=1e-5)


def weighted_percentile(distances: NDArray[Any], weights: NDArray[Any], share: float = 0.95) -> float:
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(weights[order].astype(float)) / weights.sum()
    return float(distances[order][np.argmax(reached >= share - 1e-9)])


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_hd95_is_within_a_voxel_of_monais_own(spacing: tuple[float, ...]) -> None:
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = blobs(3), blobs(3) | box((14, 18, 20), (2, 2, 2), (10, 10, 10))
    _, mine = surface_agreement(a, b, spacing, 1.0, 0.0)
    batches = [torch.from_numpy(mask)[None, None].float() for mask in (b, a)]
    theirs = metrics.compute_hausdorff_distance(*batches, True, percentile=95, spacing=spacing).item()
    assert mine == pytest.approx(theirs, abs=diagonal_mm((1, 1, 1), spacing))


def test_surfaces_of_a_shifted_cube_by_hand() -> None:
    """A cube of 10 voxels moved by 2 along the first axis of 3 mm spacing: its two ends are 6 mm off."""
    a, b = box((30, 14, 14), (5, 2, 2), (15, 12, 12)), box((30, 14, 14), (7, 2, 2), (17, 12, 12))
    spacing = (3.0, 1.0, 1.0)
    nsd, hd95 = surface_agreement(a, b, spacing, 0.5, 0.0)
    assert hd95 == 6.0
    # Elements lie on the 11 planes between voxels, with half the area on the outer two. Of the sides (4 * 10 * 30 mm^2)
    # 8.5 of 10 layers coincide; of the ends (2 * 100 mm^2) the rim of one, 40 elements of half a mm^2.
    assert nsd == pytest.approx((0.85 * 1200 + 20) / (1200 + 200), abs=0.01)
    assert surface_agreement(a, b, spacing, 6.0, 0.0)[0] == 1.0


def test_spacing_belongs_to_the_axis_at_its_place() -> None:
    a, b = box((20, 20, 20), (4, 4, 4), (14, 14, 14)), box((20, 20, 20), (6, 4, 4), (16, 14, 14))
    assert surface_agreement(a, b, (3.0, 1.0, 1.0), 1.0, 0.0)[1] == 6.0
    assert surface_agreement(a, b, (1.0, 1.0, 3.0), 1.0, 0.0)[1] == 2.0


def test_equal_masks_agree_wholly_also_at_the_edge_of_the_image() -> None:
    mask = box((6, 6, 6), (0, 0, 0), (6, 3, 6))
    scores = score_masks(mask, mask, ISOTROPIC, 1.0, 10.0, lesions=True)
    assert (scores.dice, scores.nsd, scores.hd95, scores.lesion_f1) == (1.0, 1.0, 0.0, 1.0)


def test_nothing_found_of_nothing_is_no_score() -> None:
    empty = np.zeros((4, 4, 4), bool)
    scores = score_masks(empty, empty, ISOTROPIC, 1.0, 10.0, lesions=True)
    assert all(map(math.isnan, (scores.dice, scores.nsd, scores.hd95, scores.lesion_f1)))


@pytest.mark.parametrize("empty_is_reference", [True, False])
def test_one_empty_mask_gets_the_worst_scores(empty_is_reference: bool) -> None:
    masks = [np.zeros((4, 5, 6), np.int32), box((4, 5, 6), (1, 1, 1), (2, 2, 2)).astype(np.int32)]
    pair = masks if empty_is_reference else masks[::-1]
    scores = score_label_maps(*pair, (2.0, 1.0, 1.0), {"a": (1,)}, lesions=["a"])["a"]
    assert (scores.dice, scores.nsd, scores.lesion_f1) == (0, 0, 0)
    assert scores.hd95 == pytest.approx(math.sqrt(8**2 + 5**2 + 6**2)), "the diagonal of the whole image, not of a part"


def test_flat_images_have_contours() -> None:
    a, b = box((12, 12), (2, 2), (8, 8)), box((12, 12), (2, 4), (8, 10))
    nsd, hd95 = surface_agreement(a, b, (1.0, 0.5), 0.5, 0.0)
    assert hd95 == 1.0
    assert 0 < nsd < 1


def test_lesions_by_hand() -> None:
    """Three lesions, of which two are touched; one prediction touches none: F1 = 4 / (4 + 1 + 1)."""
    reference = np.zeros((10, 10, 10), bool)
    predicted = np.zeros_like(reference)
    reference[1:3, 1:3, 1:3] = reference[6:8, 6:8, 6:8] = reference[1, 8, 8] = True
    predicted[2, 2, 2] = predicted[7:9, 7:9, 7:9] = predicted[8, 1, 1] = True
    assert lesion_f1(reference, predicted) == pytest.approx(4 / 6)


def test_lesions_touch_by_corners() -> None:
    reference = np.zeros((4, 4, 4), bool)
    reference[1, 1, 1] = reference[2, 2, 2] = True
    predicted = np.zeros_like(reference)
    predicted[1, 1, 1] = True
    assert lesion_f1(reference, predicted) == 1.0


def test_ignored_voxels_count_in_no_metric() -> None:
    reference = np.zeros((8, 8, 8), np.int32)
    reference[2:5, 2:5, 2:5] = 1
    reference[6:] = 2  # ignore
    predicted = reference.copy()
    predicted[6:] = 1
    scores = score_label_maps(reference, predicted, ISOTROPIC, {"a": (1,)}, ignore=2, lesions=["a"])["a"]
    assert (scores.dice, scores.nsd, scores.hd95, scores.lesion_f1, scores.voxels_predicted) == (1, 1, 0, 1, 27)


def test_values_that_are_no_label_do_not_matter() -> None:
    reference, predicted = label_map(0), label_map(1)
    labels = {"b": (2,), "c": (3,)}
    odd = predicted.copy()
    odd[predicted == 0] = 2_000_000_000  # what a damaged file may hold; no list of that length is made
    odd[0, 0, 0] = -1
    predicted[0, 0, 0] = 0
    assert score_label_maps(reference, odd, ISOTROPIC, labels) == score_label_maps(
        reference, predicted, ISOTROPIC, labels
    )


def test_a_cut_out_gives_what_the_whole_gives() -> None:
    reference, predicted = label_map(0), label_map(1)
    cut = score_label_maps(reference, predicted, (3.0, 1.0, 1.0), {"c": (3,)})["c"]
    whole = score_masks(reference == 3, predicted == 3, (3.0, 1.0, 1.0), 1.0, diagonal_mm(reference.shape, (3, 1, 1)))
    assert cut.hd95 == whole.hd95
    assert cut.nsd == pytest.approx(whole.nsd)
