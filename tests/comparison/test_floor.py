"""What can be predicted without looking at an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl_mae.comparison.floor import majority_vote, write_floor
from nnssl_mae.errors import UserError
from tests.comparison.results import write_labels

SPACING = (3.0, 1.0, 0.5)


def write(folder: Path, **maps: np.ndarray) -> list[Path]:
    for name, values in maps.items():
        write_labels(folder / f"{name}.nii.gz", values, SPACING)
    return [folder / f"{name}.nii.gz" for name in maps]


def row(*values: int) -> np.ndarray:
    return np.array([[values]], np.uint8)


def test_the_most_frequent_label_of_each_voxel_wins_and_background_wins_ties(tmp_path: Path) -> None:
    paths = write(tmp_path, a=row(1, 1, 2, 0), b=row(1, 2, 2, 1), c=row(0, 3, 2, 1), d=row(0, 3, 1, 0))
    assert majority_vote(paths, paths[0]).tolist() == row(0, 3, 2, 0).tolist()


def test_another_grid_is_looked_up_at_the_same_share_of_each_axis(tmp_path: Path) -> None:
    paths = write(tmp_path, coarse=row(1, 2), fine=row(0, 0, 0, 0, 0, 0))
    assert majority_vote(paths[:1], paths[1]).tolist() == row(1, 1, 1, 2, 2, 2).tolist()
    thirds = write(tmp_path, thirds=row(1, 2, 3), one=row(0))
    assert majority_vote(thirds[:1], thirds[1]).tolist() == row(2).tolist(), "the centre, not the first"


def test_axes_are_looked_up_one_by_one(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    paths = write(tmp_path, small=values, large=np.zeros((2, 4, 6), np.uint8))
    assert np.array_equal(majority_vote(paths[:1], paths[1]), values.repeat(2, 1).repeat(3, 2))


def test_predictions_lie_where_their_cases_lie(tmp_path: Path) -> None:
    training = write(tmp_path, a=row(1, 1), b=row(1, 0))
    case = sitk.GetImageFromArray(np.zeros((2, 1, 4), np.float32))
    case.SetSpacing((0.5, 0.7, 2.0))
    case.SetOrigin((5, 6, 7))
    sitk.WriteImage(case, str(tmp_path / "case_0000.nii.gz"))
    write_floor(training, {"case": tmp_path / "case_0000.nii.gz"}, tmp_path / "floor")
    assert [path.name for path in (tmp_path / "floor").iterdir()] == ["case.nii.gz"]
    floor = sitk.ReadImage(str(tmp_path / "floor" / "case.nii.gz"))
    assert sitk.GetArrayFromImage(floor).tolist() == [[[1, 1, 0, 0]]] * 2
    assert floor.GetSpacing() == pytest.approx(case.GetSpacing())
    assert floor.GetOrigin() == pytest.approx(case.GetOrigin())


def test_a_case_must_not_be_among_the_training_labels(tmp_path: Path) -> None:
    (path,) = write(tmp_path, a=row(1))
    with pytest.raises(UserError, match="know the answer"):
        write_floor([path], {"a": path}, tmp_path / "floor")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, a=row(1))
    with pytest.raises(UserError, match="at least one"):
        majority_vote([], path)
    with pytest.raises(UserError, match=r"gone\.nii\.gz cannot be read"):
        majority_vote([tmp_path / "gone.nii.gz"], path)


def test_an_image_of_a_training_case_is_a_training_case(tmp_path: Path) -> None:
    training = write(tmp_path, a=row(1))
    write(tmp_path, a_0000=row(0))
    with pytest.raises(UserError, match=r"Case a .*know the answer"):
        write_floor(training, {"a": tmp_path / "a_0000.nii.gz"}, tmp_path / "floor")
