"""What data hold decides whether a step is done: not their names, and not where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnssl_mae.study import contents as module
from nnssl_mae.study.contents import CACHE, Contents, sizes_below
from nnssl_mae.study.place import checkpoint_digest


def test_other_content_of_the_same_size_is_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "case.nii.gz"
    file.write_text("a")
    before = Contents(None, tmp_path).of_all_in(tmp_path)
    file.write_text("b")
    assert Contents(None, tmp_path).of_all_in(tmp_path) != before
    file.write_text("a")
    (tmp_path / ".hidden").write_text("x")
    assert Contents(None, tmp_path).of_all_in(tmp_path) == before


def test_files_are_read_once_even_where_the_data_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out := tmp_path / "out", here := tmp_path / "here")
    (out / "state").mkdir(parents=True)
    here.mkdir()
    (here / "case").write_text("a")
    with Contents(out, here) as known:
        digest = known.of_file(here / "case")
    monkeypatch.setattr(module, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    there = here.rename(tmp_path / "there")
    with Contents(out, there) as known:
        assert known.of_file(there / "case") == digest
    os.utime(there / "case", (1, 1))
    with pytest.raises(pytest.fail.Exception):
        Contents(out, there).of_file(there / "case")


def test_nothing_is_remembered_where_no_study_runs_and_damage_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "case").write_text("a")
    with Contents(tmp_path / "out", tmp_path) as known:
        digest = known.of_file(tmp_path / "case")
    assert not (tmp_path / "out").exists()
    (tmp_path / CACHE).parent.mkdir(parents=True)
    (tmp_path / CACHE).write_text("[")
    assert Contents(tmp_path, tmp_path).of_file(tmp_path / "case") == digest


def test_folder_of_a_checkpoint_is_known_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "fold_all").mkdir()
    weights = tmp_path / "fold_all" / "checkpoint_final.pth"
    weights.write_bytes(b"A" * 100)
    before = checkpoint_digest(tmp_path, Contents(None, tmp_path))
    (tmp_path / "fold_all" / "progress.png").write_bytes(b"1")
    assert checkpoint_digest(tmp_path, Contents(None, tmp_path)) == before
    weights.write_bytes(b"B" * 100)
    assert checkpoint_digest(tmp_path, Contents(None, tmp_path)) != before


def test_scans_are_known_by_names_and_sizes_in_all_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "scan").write_text("a")
    before = sizes_below(tmp_path)
    (tmp_path / "sub" / "more").write_text("a")
    assert sizes_below(tmp_path) != before
