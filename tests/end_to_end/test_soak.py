"""Second tier: killed again and again at any moment, and still the same result. Also the whole demonstration."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nnssl_mae.scans.storage import open_volume
from tests.conftest import TINY_RECIPE
from tests.end_to_end.shell import Shell
from tests.tiny_scans import write_labelled, write_unlabelled

pytestmark = [pytest.mark.soak, pytest.mark.end_to_end]
_TRAIN = ("nnUNetv2_train", 900, "3d_fullres_mae", "all", "-tr", "nnUNetTrainerMAE", "-p", "nnsslMAEPlans",
          "-device", "cpu")  # fmt: skip


def shell_in(folder: Path) -> Shell:
    folder.mkdir()
    write_unlabelled(folder / "scans", count=24)
    # Long enough to be killed several times.
    long = {**TINY_RECIPE, "schedule": {**TINY_RECIPE["schedule"], "epochs": 12}}  # type: ignore[dict-item]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(long))
    return Shell(folder)


def prepare(shell: Shell) -> tuple[object, ...]:
    return ("nnssl-mae", "prepare", "scans", "-d", 900, "-n", "Brains", "--recipe", "tiny.yaml", "-np", 2)


def until_it_succeeds(
    shell: Shell, command: tuple[object, ...], progress: Callable[[], int], result: Path, kills: int
) -> int:
    """Runs a command until ``result`` exists, killing it and its workers each time shortly after it got further.

    Returns:
        how many kills met a running process, at most ``kills``; then it runs to the end.
    """
    rng, met = random.Random(0), 0
    while met < kills and not result.exists():
        before = progress()
        process = shell.start(*command)  # type: ignore[arg-type]
        while process.poll() is None and progress() == before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            return met
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        met += 1
    if not result.exists():
        shell(*command)  # type: ignore[arg-type]
    return met


def test_prepare_killed_again_and_again_gives_the_same_dataset(tmp_path: Path) -> None:
    whole, broken = shell_in(tmp_path / "whole"), shell_in(tmp_path / "broken")
    whole(*prepare(whole))
    volumes = lambda: len(list((broken.folder / "preprocessed").glob(".Dataset900*/*/*.b2nd")))  # noqa: E731
    one, other = (shell.folder / "preprocessed" / "Dataset900_Brains" for shell in (whole, broken))
    assert until_it_succeeds(broken, prepare(broken), volumes, result=other, kills=3) >= 1
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.suffix == ".b2nd":
            assert np.array_equal(open_volume(one / name)[:], open_volume(other / name)[:])
        elif name.suffix == ".json":
            assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())
    assert [path.name for path in other.parent.iterdir()] == [other.name]


def test_pretraining_killed_again_and_again_gives_the_same_weights(tmp_path: Path) -> None:
    whole, broken = shell_in(tmp_path / "whole"), shell_in(tmp_path / "broken")
    for shell in (whole, broken):
        shell(*prepare(shell))
    whole(*_TRAIN)
    fold = Path("results", "Dataset900_Brains", "nnUNetTrainerMAE__nnsslMAEPlans__3d_fullres_mae", "fold_all")
    latest = broken.folder / fold / "checkpoint_latest.pth"
    written = lambda: latest.stat().st_mtime_ns if latest.exists() else 0  # noqa: E731
    assert (
        until_it_succeeds(broken, (*_TRAIN, "--c"), written, result=latest.with_name("checkpoint_final.pth"), kills=5)
        >= 3
    )
    one, other = (
        torch.load(shell.folder / fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
        for shell in (whole, broken)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ten_minutes_of_training_leak_nothing(tmp_path: Path) -> None:
    """Memory of all its processes, open files and the number of processes are at the end what they were."""
    folder = tmp_path / "long"
    folder.mkdir()
    write_unlabelled(folder / "scans", count=8)
    endless = {**TINY_RECIPE["schedule"], "epochs": 100_000, "iterations": 20, "preview_every": 20}  # type: ignore[dict-item]
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY_RECIPE, "schedule": endless}))
    shell = Shell(folder)
    shell.environment["nnUNet_n_proc_DA"] = "2"
    shell(*prepare(shell))
    process = shell.start(*_TRAIN)
    used: list[tuple[int, int, int]] = []
    began = time.monotonic()
    with (folder / "output.txt").open("w") as output:  # a full pipe would stop it
        threading.Thread(target=lambda: output.writelines(process.stdout or ()), daemon=True).start()
        while time.monotonic() - began < 600:
            time.sleep(5)
            assert process.poll() is None, (folder / "output.txt").read_text()[-2000:]
            if time.monotonic() - began > 120:
                used.append(resources(process.pid))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    third = len(used) // 3
    early, late = (np.median(np.array(part), axis=0) for part in (used[:third], used[-third:]))
    assert late[0] < 1.05 * early[0], f"memory grew from {early[0]} to {late[0]} kB"
    assert late[1] <= early[1] + 2, f"open files grew from {early[1]} to {late[1]}"
    assert late[2] == early[2], f"processes grew from {early[2]} to {late[2]}"


def resources(parent: int) -> tuple[int, int, int]:
    """kB of memory of its own, open files, and number of processes, of a process and all below it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            children.setdefault(int(lines["PPid"]), []).append(int(status.parent.name))
    family = [parent]
    for one in family:
        family += children.get(one, [])
    memory = files = 0
    for one in family:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = dict(
                line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines() if ":" in line
            )
            memory += int(lines["RssAnon"].split()[0])
            files += len(list(Path(f"/proc/{one}/fd").iterdir()))
    return memory, files, len(family)


def test_stock_trainer_with_pretrained_weights(tmp_path: Path) -> None:
    shell = shell_in(tmp_path / "stock")
    write_labelled(shell.folder / "raw", 4, "Tiny", count=5)
    shell(*prepare(shell))
    shell(*_TRAIN)
    fold = (
        shell.folder / "results" / "Dataset900_Brains" / "nnUNetTrainerMAE__nnsslMAEPlans__3d_fullres_mae" / "fold_all"
    )
    checkpoint = fold / "checkpoint_final.pth"
    shell("nnssl-mae", "adapt", checkpoint, "-d", 4, "-n", "Plain", "--from-scratch")
    shell("nnUNetv2_preprocess", "-d", 4, "-plans_name", "Plain", "-c", "3d_fullres_mae", "-np", 2)
    out = shell("nnUNetv2_train", 4, "3d_fullres_mae", 0, "-tr", "nnUNetTrainer_1epoch", "-p", "Plain",
                "-device", "cpu", "-pretrained_weights", checkpoint)  # fmt: skip
    assert "Loading pretrained weights from file" in out
    assert "Mean Validation Dice" in out


def test_the_demonstration_and_its_second_run(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell("nnssl-mae", "demo", "--out", tmp_path / "demo")
    report = tmp_path / "demo" / "report.html"
    assert "too small to judge the benefit" in report.read_text()
    checkpoint = next((tmp_path / "demo").rglob("fold_all/checkpoint_final.pth"))
    written = checkpoint.stat().st_mtime_ns
    shell("nnssl-mae", "demo", "--out", tmp_path / "demo")
    assert checkpoint.stat().st_mtime_ns == written
