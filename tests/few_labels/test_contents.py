"""Counting labels: regions, the ignore label, and several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.contents import Content, read_contents
from nnssl_mae.few_labels.dataset import classes_of
from tests.few_labels.tiny_dataset import LABELS, write_labels

REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


def _classes(labels: dict[str, object]):
    return classes_of({"labels": labels, "regions_class_order": [1, 2]}, Path("dataset.json"))


def test_a_region_has_the_voxels_of_all_its_labels_and_ignore_is_no_class(tmp_path: Path) -> None:
    classes = _classes(REGIONS)
    assert classes.names == ("whole", "core")
    file = tmp_path / "a.nii.gz"
    write_labels(file, {1: 40, 2: 7, 3: 500})
    found = read_contents({"a": file}, classes, "NibabelIO", 1, Console(quiet=True))
    assert found == {"a": Content((47, 7))}


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    files = {f"c{index}": tmp_path / f"c{index}.nii.gz" for index in range(4)}
    for index, file in enumerate(files.values()):
        write_labels(file, {1: 10 + index, 2: index})
    classes = _classes(LABELS)
    found = [read_contents(files, classes, "NibabelIO", workers, Console(quiet=True)) for workers in (1, 2)]
    assert found[0] == found[1] == {f"c{index}": Content((10 + index, index)) for index in range(4)}


def test_a_file_that_a_process_cannot_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.nii.gz"
    file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad.nii.gz cannot be read"):
        read_contents({"bad": file}, _classes(LABELS), "NibabelIO", 2, Console(quiet=True))


@pytest.mark.parametrize("value", [3, -1])
def test_values_without_a_name_are_refused(tmp_path: Path, value: int) -> None:
    file = tmp_path / "a.nii.gz"
    write_labels(file, {1: 4, value: 3})
    with pytest.raises(UserError, match=rf"a.nii.gz hold {value}, which"):
        read_contents({"a": file}, _classes(LABELS), "NibabelIO", 1, Console(quiet=True))
