"""Which file is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl_mae.checkpoints.locate import choose, locate
from nnssl_mae.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("checkpoint_final.pth", "checkpoint_best.pth", "model.safetensors"), "checkpoint_final.pth"),
        (("model.safetensors", "checkpoint_best.pth", "README.md"), "model.safetensors"),
        (("amaes.ckpt", "README.md", "config.json"), "amaes.ckpt"),
        (("weights.pt",), "weights.pt"),
    ],
)
def test_the_file_of_a_folder(tmp_path: Path, names: tuple[str, ...], chosen: str) -> None:
    make(tmp_path, *names)
    source = locate(tmp_path)
    assert (source.file, source.label, source.plan_file) == (tmp_path / chosen, chosen, None)
    assert str(source) == str(tmp_path / chosen)


def test_the_plan_beside_the_file_is_found(tmp_path: Path) -> None:
    make(tmp_path, "x.pth", "adaptation_plan.json")
    source = locate(str(tmp_path / "x.pth"))
    assert source.plan_file == tmp_path / "adaptation_plan.json"
    assert source.plan_beside() == {}


def test_several_files_are_named_and_none_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "fold_0.pth", "fold_1.pth")
    with pytest.raises(UserError, match=r"several checkpoints \(fold_0\.pth, fold_1\.pth\); say which: .*fold_0\.pth"):
        locate(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    make(tmp_path, "README.md", "plans.json")
    with pytest.raises(UserError, match=r"holds no checkpoint: checkpoint_final\.pth does not exist there"):
        locate(tmp_path)


@pytest.mark.parametrize("given", [".", "results", "results/trainer__plans"])
def test_a_folder_above_that_of_a_checkpoint_is_told_of_it(tmp_path: Path, given: str) -> None:
    fold = tmp_path / "results" / "trainer__plans" / "fold_all"
    fold.mkdir(parents=True)
    make(fold, "checkpoint_final.pth")
    expected = "does not exist there" if given == "." else r"but .*fold_all below it does; give that folder"
    with pytest.raises(UserError, match=expected):
        locate(tmp_path / given)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist or is not a file"):
        locate(tmp_path / "nowhere.pth")


def test_files_in_subfolders_of_a_repository_are_candidates_too() -> None:
    assert choose(["README.md", "weights/unet_b.ckpt"], "hf://a/b") == "weights/unet_b.ckpt"
