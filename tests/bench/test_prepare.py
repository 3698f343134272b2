"""The bench of preprocessing measures both sides and says by how much they differ."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.console import Console

from nnssl_mae.bench.measuring import Timing, alternately, environment, one_core, seconds
from nnssl_mae.bench.prepare import bench_prepare, compare, template_scans
from nnssl_mae.errors import UserError
from tests.tiny_scans import tiny_scan


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    image = tiny_scan(0)[0]
    nibabel.save(nibabel.Nifti1Image(image.dataobj, np.diag([1.5, 1.5, 2, 1])), tmp_path / "scan [1].nii.gz")
    return tmp_path / "scan [1].nii.gz"


def test_both_sides_are_measured_and_nothing_is_left(scan: Path, tmp_path: Path) -> None:
    console = Console(record=True, file=io.StringIO(), width=200)
    bench_prepare(console, scan, repeats=1)
    text = console.export_text()
    for words in ("scan [1].nii.gz", "stock/h", "ours/h", "resample a label", "percentiles and foreground", "torch"):
        assert words in text
    assert [path.name for path in tmp_path.iterdir()] == [scan.name]


def test_differences_are_those_of_the_volumes(scan: Path, tmp_path: Path) -> None:
    found = compare("brain", scan, repeats=2, folder=tmp_path)
    assert len(found.stock.wall) == len(found.ours.wall) == 2
    assert found.before_cast < 1e-5
    assert 1e-5 < found.after_cast < 5e-3
    assert 0 < found.our_bytes < 0.6 * found.stock_bytes
    assert found.row[0] == "brain"


def test_the_template_gives_scans_with_and_without_noise_in_the_air(tmp_path: Path) -> None:
    noisy, stripped, thick = (nibabel.load(path) for path in template_scans(tmp_path, scale=0.1).values())
    assert noisy.shape == stripped.shape == (23, 27, 15)
    assert max(thick.header.get_zooms()) > 3 * min(thick.header.get_zooms())
    voxels = np.asarray(noisy.dataobj)
    assert voxels.dtype == np.int16
    assert (np.asarray(stripped.dataobj) == 0).mean() > 0.3 > (voxels == 0).mean()
    assert 600 < np.percentile(voxels, 98) < 1300


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_text("text")
    for name, words in (
        ("bad.nii.gz", "give another scan"),
        ("gone.nii", "does not exist"),
        ("x.mha", "no NIfTI file"),
    ):
        with pytest.raises(UserError, match=words):
            bench_prepare(Console(quiet=True), tmp_path / name, repeats=1)


def test_works_take_turns() -> None:
    calls: list[str] = []
    timings = alternately({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert "".join(calls) == "ababab"
    assert {name: len(timing.wall) for name, timing in timings.items()} == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match="at least 1"):
        alternately({}, 0)


def test_numbers_in_words() -> None:
    timing = Timing(wall=(1.0, 4.0, 2.0), cpu=(1.0, 3.0, 2.5))
    assert (timing.median, timing.cpu_median) == (2, 2.5)
    assert timing.per_hour == 1800
    assert timing.text == "2.00 s (1.00 s to 4.00 s)"
    assert seconds(0.0413) == "41.3 ms"
    assert "nnunetv2 2" in environment()


def test_one_core_gives_the_threads_back() -> None:
    import torch

    before = torch.get_num_threads()
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
