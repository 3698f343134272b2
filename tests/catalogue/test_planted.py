"""Every planted defect is found for the right reason, no good scan is lost, and the counts add up."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nnssl_mae.catalogue.checks import CHECKS, Limits
from nnssl_mae.catalogue.find import path_text
from nnssl_mae.catalogue.scan import scan_folders
from nnssl_mae.catalogue.table import read_catalogue
from tests.catalogue.scan_files import brain, write_nifti
from tests.planted import markdown_table, plant

FILES = ("catalogue.parquet", "catalogue.csv", "thumbnails.parquet")


def check_tree(tmp_path: Path, full: bool, capfd) -> None:
    plants = plant(tmp_path / "tree", full)
    said = io.StringIO()
    rows = scan_folders([tmp_path / "tree"], tmp_path / "catalogue", Limits(), Console(file=said, width=200)).rows
    found = {(path, series): (check, detail) for path, series, check, detail in
             zip(rows["path"], rows["series"], rows["check"], rows["detail"], strict=True)}  # fmt: skip
    wanted = {(path_text(p.path), p.series): p for p in plants}
    wrong = {key: (p.check, p.what, *found.get(key, ("no row",))) for key, p in wanted.items()
             if found.get(key, ("no row",))[0] != p.check}  # fmt: skip
    print(markdown_table(plants, rows))
    assert not wrong
    assert len(wanted) == len(plants) == len(rows) == len(found)
    assert {p.check for p in plants} - {""} == set(CHECKS)
    assert (rows["verdict"] == "accepted").sum() == sum(p.check == "" for p in plants)
    assert ((rows["verdict"] == "accepted") == (rows["check"] == "")).all()
    assert all(detail for check, detail in found.values() if check)
    assert rows["case"].str.lower().is_unique and rows["case"].str.fullmatch(r"[A-Za-z0-9._-]+").all()
    assert f"{len(plants)} scans" in said.getvalue()
    out, err = capfd.readouterr()
    assert err == "" and "Traceback" not in out + said.getvalue()
    assert sorted(path.name for path in (tmp_path / "catalogue").iterdir()) == sorted((*FILES, ".lock"))


def test_a_few_of_each_defect(tmp_path, capfd) -> None:
    check_tree(tmp_path, False, capfd)


@pytest.mark.soak
def test_whole_tree(tmp_path, capfd) -> None:
    check_tree(tmp_path, True, capfd)


def scan_in_process(root: Path, folder: Path) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from nnssl_mae.catalogue.checks import Limits\n"
        "from nnssl_mae.catalogue.scan import scan_folders\n"
        "if __name__ == '__main__':\n"
        "    scan_folders([Path(sys.argv[1])], Path(sys.argv[2]), Limits(), Console(quiet=True))\n"
    )
    script = folder.parent / "run_scan.py"
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script), str(root), str(folder)], start_new_session=True)


def check_kills(root: Path, tmp_path: Path, kills: int, seed: int) -> None:
    start = time.monotonic()
    assert scan_in_process(root, tmp_path / "whole").wait() == 0
    whole = time.monotonic() - start
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        process = scan_in_process(root, tmp_path / "killed")
        try:
            process.wait(timeout=float(rng.uniform(0.3, 1.0)) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert scan_in_process(root, tmp_path / "killed").wait() == 0
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted((*FILES, ".lock"))
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(read_catalogue(tmp_path / "killed").rows)


def test_a_scan_killed_twice_ends_with_the_same_tables(tmp_path) -> None:
    for n in range(8):
        write_nifti(tmp_path / "tree" / f"sub-{n}" / f"sub-{n}_T1w.nii.gz", brain((60, 60, 50), n), np.eye(4))
    write_nifti(tmp_path / "tree" / "sub-9" / "sub-9_copy.nii", brain((60, 60, 50), 0), np.eye(4))
    (tmp_path / "tree" / "junk.nrrd").write_bytes(b"junk")
    check_kills(tmp_path / "tree", tmp_path, 2, 0)


@pytest.mark.soak
def test_a_scan_killed_20_times_ends_with_the_same_tables(tmp_path) -> None:
    plant(tmp_path / "tree", full=True)
    check_kills(tmp_path / "tree", tmp_path, 20, 1)
