"""Preparation killed again and again, workers killed, the disk full: in the end the same dataset, byte by byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import pytest

from nnssl_mae.files import file_sizes
from tests.scans.catalogues import files_of
from tests.scans.preparation import command
from tests.tiny_scans import tiny_scan

pytestmark = [pytest.mark.soak, pytest.mark.end_to_end]
_ROOT = Path(__file__).parents[2]
_CASES = 24
_KILLS = 20


class Machine:
    """Scans and folders of a user; starts, watches and kills preparations."""

    def __init__(self, folder: Path, preprocessed: Path) -> None:
        self.scans, self.preprocessed = folder / "scans", preprocessed
        self.final = preprocessed / "Dataset900_Brains"
        self.work = preprocessed / ".Dataset900_Brains.preparing"
        self.environment = {**os.environ, "nnUNet_preprocessed": str(preprocessed)}
        for path in (self.scans, preprocessed):
            path.mkdir(parents=True, exist_ok=True)

    def write_scans(self, names: range, first_seed: int = 0) -> None:
        for index in names:
            nibabel.save(tiny_scan(first_seed + index)[0], self.scans / f"s{index:02d}.nii.gz")

    def start(self, workers: int = 2) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(self.scans, workers=workers), cwd=_ROOT, env=self.environment, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self) -> str:
        process = self.start()
        text = process.communicate()[0]
        assert process.returncode == 0, text
        return text

    def progress(self) -> int:
        """Grows with every file and every record that is written in the work folder."""
        # Folders that are renamed meanwhile are passed over.
        return sum(sum(1 + size for size in file_sizes(Path(folder)).values()) for folder, _, _ in os.walk(self.work))

    def volumes(self) -> int:
        return sum(name.endswith(".b2nd") for _, _, names in os.walk(self.work) for name in names)

    def is_tidy(self) -> bool:
        return list(self.preprocessed.iterdir()) == [self.final] and not list(self.final.rglob("*.tmp"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path, tmp_path / "preprocessed")
    made.write_scans(range(_CASES))
    return made


@pytest.fixture
def uninterrupted(machine: Machine) -> dict[str, bytes]:
    machine.run()
    files = files_of(machine.final)
    shutil.rmtree(machine.final)
    return files


def kill_when(machine: Machine, reached: Callable[[], bool], delay: float) -> bool:
    """Starts a preparation and kills it with its workers once something is reached, and a little later.

    Returns:
        whether it was still running.
    """
    process = machine.start()
    while process.poll() is None and not reached():
        time.sleep(0.005)
    time.sleep(delay)
    is_running = process.poll() is None
    if is_running:
        os.killpg(process.pid, signal.SIGKILL)
    text = process.communicate()[0]
    assert is_running or process.returncode == 0, text
    return is_running


def test_killed_at_random_moments(machine, uninterrupted) -> None:
    rng, met, rounds = random.Random(0), 0, 0
    while met < _KILLS:
        rounds += 1
        assert rounds < 3 * _KILLS
        if machine.final.exists():
            assert files_of(machine.final) == uninterrupted
            assert machine.is_tidy()
            shutil.rmtree(machine.final)
        before = machine.progress()
        if rng.random() < 0.3:  # in the middle of putting all together, or just before
            met += kill_when(machine, lambda: machine.volumes() >= _CASES, rng.uniform(0, 0.2))
        else:
            met += kill_when(machine, lambda now=before: machine.progress() > now, rng.uniform(0, 1.0))
    machine.run()
    assert files_of(machine.final) == uninterrupted
    assert machine.is_tidy()


def test_updates_killed_at_random_moments(machine) -> None:
    machine.run()
    plans = {name: content for name, content in files_of(machine.final).items() if name in _MADE_ONCE}
    rng, met = random.Random(1), 0
    for seed in range(1, 2 * _KILLS):
        machine.write_scans(range(0, _CASES, 3), 100 * seed)
        (machine.scans / f"s{rng.choice(range(1, _CASES, 3)):02d}.nii.gz").unlink(missing_ok=True)
        before = machine.progress()
        if kill_when(machine, lambda now=before: machine.progress() > now, rng.uniform(0, 2.0)):
            met += 1
        if met >= _KILLS // 2:
            break
    assert met >= 3
    machine.run()
    updated = files_of(machine.final)
    assert machine.is_tidy()
    shutil.rmtree(machine.final)
    machine.run()
    anew = files_of(machine.final)
    assert {**anew, **plans} == updated


_MADE_ONCE = ("nnsslMAEPlans.json", "dataset_fingerprint.json")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_workers_killed_alone(machine, uninterrupted) -> None:
    rng, killed = random.Random(2), 0
    process = machine.start()
    while process.poll() is None:
        time.sleep(rng.uniform(0.5, 1.5))
        # A case fails when its process dies twice, so not too many.
        if machine.volumes() > 0 and killed < 3 and (workers := _workers_of(process.pid)):
            os.kill(rng.choice(workers), signal.SIGKILL)
            killed += 1
    text = process.communicate()[0]
    assert killed
    if process.returncode:  # one that had just been started was met
        assert "A worker process ended before it could start" in text
    machine.run()  # if a case met two kills, it is tried again
    assert files_of(machine.final) == uninterrupted


def _workers_of(parent: int) -> list[int]:
    """Its spawned processes, without the one that keeps track of shared resources."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    numbers = children.read_text(encoding="utf-8").split() if children.exists() else []
    return [int(n) for n in numbers if b"spawn_main" in Path(f"/proc/{n}/cmdline").read_bytes()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own on which a part of the volumes fits."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; RLIMIT_FSIZE stands for it in tests/scans/test_resume.py")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_runs_full_and_is_made_larger(machine, uninterrupted, small_disk, tmp_path) -> None:
    small = Machine(tmp_path, small_disk)
    done = 0
    for size in range(600, 4000, 300):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        process = small.start()
        text = process.communicate()[0]
        if process.returncode == 0:
            break
        assert process.returncode == 2, text
        assert "No space is left in" in text
        assert small.volumes() >= done
        done = small.volumes()
    assert done > 0
    assert files_of(small.final) == uninterrupted
    assert small.is_tidy()
