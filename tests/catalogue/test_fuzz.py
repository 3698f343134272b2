"""Whatever headers and names hold: nothing but a UserError comes out, and nothing is printed but our own words."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from nnssl_mae.catalogue import scan as module
from nnssl_mae.catalogue.checks import CHECKS, Limits
from nnssl_mae.catalogue.examine import examine_header, examine_voxels
from nnssl_mae.catalogue.scan import scan_folders
from nnssl_mae.errors import UserError
from tests.catalogue.scan_files import brain, scan, write_dicom, write_itk, write_nifti

GRID = np.diag([3.0, 3.0, 4.0, 1.0])
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".nhdr", ".mhd", ".dcm")
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    files = {}
    for ending in ENDINGS[:-1]:
        path = write_itk(folder / f"a{ending}", brain((9, 8, 7)), GRID, compress=False)
        files[ending] = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
    write_dicom(folder / "d", brain((9, 8, 7)))
    files[".dcm"] = (folder / "d" / "IM0003.dcm").read_bytes()
    return files


@st.composite
def damages(draw, length: int) -> list[tuple[int, bytes]]:
    """Places and bytes, most of them in the header."""
    places = st.one_of(st.integers(0, min(length, 400) - 1), st.integers(0, length - 1))
    values = st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    )
    return draw(st.lists(st.tuples(places, values), max_size=6))


def fuzz_contents(data, originals: dict[str, bytes], tmp_path: Path, capfd) -> None:
    ending = data.draw(st.sampled_from(ENDINGS))
    content = bytearray(originals[ending])
    for place, values in data.draw(damages(len(content))):
        content[place : place + len(values)] = values
    kept = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(bytes(content[:kept])) if ending == ".nii.gz" else bytes(content[:kept]))
    one = scan(tmp_path, series="1.2.826.0.1.3680043.2.1125.1") if ending == ".dcm" else scan(path)
    for work in (examine_header, examine_voxels):
        columns = work(one).columns
        assert columns.get("check", "") in (*CHECKS, "")
        assert "\n" not in columns.get("detail", "")
    assert capfd.readouterr() == ("", "")
    path.unlink()


@settings(max_examples=150, deadline=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_damaged_files(data, originals, tmp_path, capfd) -> None:
    fuzz_contents(data, originals, tmp_path, capfd)


@pytest.mark.soak
@settings(max_examples=4_000, deadline=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_many_damaged_files(data, originals, tmp_path, capfd) -> None:
    fuzz_contents(data, originals, tmp_path, capfd)


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)


def fuzz_names(names: list[bytes], endings: list[str], tmp_path: Path, capfd, monkeypatch) -> None:
    def serial(work, items, workers, cost=None, budget=0.0):
        return (module.Outcome(item, work(item)) for item in items)

    monkeypatch.setattr(module, "in_processes", serial)
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/tree"))
    catalogue = tmp_path / "catalogue"
    source = write_nifti(tmp_path / "source.nii", brain((9, 8, 7)), GRID)
    for n, name in enumerate(names):
        folder = root / os.fsdecode(names[n // 2][:20]) if n % 2 else root
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.link(source, os.fsencode(folder) + b"/" + name + endings[n % len(endings)].encode())
        except (FileExistsError, NotADirectoryError, FileNotFoundError):
            continue
    said = io.StringIO()
    try:
        rows = scan_folders([root], catalogue, Limits(min_fov=1), Console(file=said)).rows
        assert rows["case"].str.lower().is_unique and rows["case"].str.fullmatch(r"[A-Za-z0-9._-]+").all()
        assert rows["case"].str.len().max() < 180
    except UserError as error:
        str(error).encode()
    assert "Traceback" not in said.getvalue()
    assert capfd.readouterr() == ("", "")
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@settings(max_examples=25, deadline=None, suppress_health_check=SUPPRESSED)
@given(
    names=st.lists(NAMES, min_size=1, max_size=6), endings=st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3)
)
def test_odd_names(names, endings, tmp_path, capfd, monkeypatch) -> None:
    fuzz_names(names, endings, tmp_path, capfd, monkeypatch)


@pytest.mark.soak
@settings(max_examples=600, deadline=None, suppress_health_check=SUPPRESSED)
@given(
    names=st.lists(NAMES, min_size=1, max_size=6), endings=st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=3)
)
def test_many_odd_names(names, endings, tmp_path, capfd, monkeypatch) -> None:
    fuzz_names(names, endings, tmp_path, capfd, monkeypatch)
