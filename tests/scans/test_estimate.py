"""``prepare --dry-run`` tells what the whole will take, from a few scans, and leaves nothing behind."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from rich.console import Console

from nnssl_mae.catalogue.table import Catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.scans import estimate as module
from nnssl_mae.scans.estimate import Estimate, estimate
from nnssl_mae.scans.left_out import LeftOut
from nnssl_mae.scans.request import Request
from tests.scans.catalogues import catalogue_of, one_by_one


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_processes", one_by_one)


@pytest.fixture
def request_(tiny_recipe: Recipe, nnunet_folders: Path) -> Request:
    return Request(900, "Brains", tiny_recipe, tiny_recipe, workers=2)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.b2nd"))


def tried(catalogue: Catalogue, request: Request, **options: object) -> tuple[Estimate, str]:
    console = Console(record=True, file=io.StringIO(), width=200)
    return estimate(catalogue, request, console, **options), console.export_text()  # type: ignore[arg-type]


def test_the_disk_is_what_preparing_takes_within_the_spread_of_the_scans(
    request_, scans_folder, prepared, nnunet_folders
) -> None:
    before = sorted(nnunet_folders.rglob("*"))
    result, text = tried(catalogue_of(scans_folder), request_, tried=3)
    assert result.cases == 8
    assert len(result.tried) == 3
    assert result.disk == pytest.approx(stored(prepared), rel=0.15)
    assert result.cpu_seconds == pytest.approx(sum(one.seconds for one in result.tried) * 8 / 3, rel=0.2)
    assert "Scans: 8 of 8" in text
    assert "MB are free" not in text.split("Disk: about")[0]
    assert sorted(nnunet_folders.rglob("*")) == before


def test_many_more_scans_take_in_proportion_and_larger_ones_more(request_, scans_folder) -> None:
    few = catalogue_of(scans_folder)
    many = Catalogue(
        pandas.concat([few.rows, *(few.rows.assign(case=few.rows["case"] + f"-{n}") for n in range(9))]).reset_index()
    )
    larger = Catalogue(many.rows.assign(size_x=2 * many.rows["size_x"]))
    one, ten = (tried(catalogue, request_, tried=80)[0] for catalogue in (few, many))
    assert ten.cases == 80
    assert ten.disk == pytest.approx(10 * one.disk, rel=0.01)
    sizes = {"tried": 2}
    assert tried(larger, request_, **sizes)[0].disk == pytest.approx(tried(many, request_, **sizes)[0].disk, rel=0.01)


def test_what_is_left_out_does_not_count_and_memory_limits_processes(request_, scans_folder) -> None:
    catalogue = catalogue_of(scans_folder)

    def first(_: Catalogue) -> list[LeftOut]:
        return [LeftOut("x", catalogue.rows["case"][0], "labelled_dataset", "")]

    little = replace(request_, workers=8, max_memory=1)
    result, text = tried(catalogue, little, more_left_out=first, tried=2)
    assert (result.cases, result.processes) == (7, 1)
    assert "with 1 processes" in text


def test_a_time_is_never_nothing_and_counts_measuring_and_the_start_of_processes(
    request_, scans_folder, monkeypatch
) -> None:
    def slow_to_start(*arguments: Any, **options: Any) -> Iterator[Any]:
        time.sleep(0.2)
        yield from one_by_one(*arguments, **options)

    monkeypatch.setattr(module, "in_processes", slow_to_start)
    result, text = tried(catalogue_of(scans_folder), request_, tried=2)
    assert "Time: under a minute with 2 processes on this machine, their start included." in text
    assert result.measuring_seconds > 0
    assert result.starting_seconds >= 2 * 0.2
    assert result.seconds > (result.cpu_seconds + result.measuring_seconds) / 2 + 0.4

    long = replace(result, cpu_seconds=7200.0, measuring_seconds=1200.0, starting_seconds=60.0, spread=0.05)
    monkeypatch.setattr(module, "_scaled", lambda *_: long)
    text = tried(catalogue_of(scans_folder), request_, tried=2)[1]
    assert "Time: about 71 min with 2 processes on this machine, about 2 h 20 min of one core (within about 10%" in text


def test_the_size_of_voxels_is_said(request_, scans_folder) -> None:
    assert "Voxel size: 4x4x4 mm (of the scans: 4x4x4 mm, median)." in tried(catalogue_of(scans_folder), request_)[1]


def test_nothing_to_try_is_a_sentence(request_, scans_folder, tmp_path) -> None:
    catalogue = catalogue_of(scans_folder)
    with pytest.raises(UserError, match="None of the 8 scans can be used"):
        tried(Catalogue(catalogue.rows.assign(verdict="rejected")), request_)
    (tmp_path / "bad.nii.gz").write_bytes(b"text")
    bad = catalogue.rows.assign(path=str(tmp_path / "bad.nii.gz"))
    with pytest.raises(UserError, match=r"None of the 2 scans that were tried can be used: .*bad.nii.gz"):
        tried(Catalogue(bad), request_, tried=2)
