"""Test sets are held out, and predictions that a kill cut off are made again."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.study.contents import Contents
from nnssl_mae.study.place import LabelledSet
from nnssl_mae.study.predicted import check_held_out, remove_damaged
from tests.study.datasets import set_folders, write_labelled


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelledSet:
    set_folders(tmp_path, monkeypatch)
    return LabelledSet(4, write_labelled(tmp_path, 4, "Tiny", tests=2).name)


def test_training_images_are_no_test_set(labelled: LabelledSet) -> None:
    contents = Contents(None, labelled.raw)
    check_held_out(labelled, labelled.raw / "imagesTs", contents)
    with pytest.raises(UserError, match="holds the training images of Dataset004_Tiny"):
        check_held_out(labelled, labelled.raw / "imagesTr" / ".." / "imagesTr", contents)


def test_copy_of_a_training_case_is_named(labelled: LabelledSet) -> None:
    shutil.copy(labelled.raw / "imagesTr" / "case3_0000.nii.gz", labelled.raw / "imagesTs" / "other_0000.nii.gz")
    with pytest.raises(UserError, match=r"case other of .* is the training case case3"):
        check_held_out(labelled, labelled.raw / "imagesTs", Contents(None, labelled.raw))


def test_equal_second_channel_is_no_equal_case(labelled: LabelledSet) -> None:
    for name in ("imagesTr/case0", "imagesTs/case1"):
        (labelled.raw / f"{name}_0001.nii.gz").write_text("an empty channel")
    check_held_out(labelled, labelled.raw / "imagesTs", Contents(None, labelled.raw))


def test_truncated_predictions_go_and_whole_ones_stay(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(1000))
    contents = {"whole": whole, "cut": whole[:500], "damaged": whole[:500] + b"0" + whole[501:], "empty": b""}
    files = [Path(f"{name}.nii.gz") for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        (tmp_path / file).write_bytes(content)
    remove_damaged(tmp_path, [*files, Path("absent.nii.gz")])
    assert [path.name for path in tmp_path.iterdir()] == ["whole.nii.gz"]


def test_newest_of_predictions_that_show_no_damage_go(tmp_path: Path) -> None:
    files = [Path(f"case{n}.png") for n in range(40)]
    for n, file in enumerate(files):
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (n, n))
    remove_damaged(tmp_path, files)
    assert {path.name for path in tmp_path.iterdir()} == {f"case{n}.png" for n in range(24)}
