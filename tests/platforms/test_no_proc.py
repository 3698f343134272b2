"""macOS and Windows have no ``/proc``: nothing may need it, and where nothing else tells, that is said."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnssl_mae import memory
from nnssl_mae.bench import measuring, startup
from nnssl_mae.doctor import machine
from nnssl_mae.memory import free_memory, memory_budget, own_memory, peak_memory
from nnssl_mae.study import processes
from nnssl_mae.study.processes import Process, lives
from nnssl_mae.study.state import State


def elsewhere(*parts: str | Path) -> Path:
    """A path as on a system without ``/proc`` and ``/sys``."""
    path = Path(*parts)
    return Path("/nowhere", *path.parts[1:]) if path.parts[:2] in (("/", "proc"), ("/", "sys")) else path


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, measuring, startup, machine):
        monkeypatch.setattr(module, "Path", elsewhere)
    monkeypatch.setattr(memory, "_CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(processes, "_PROC", Path("/nowhere"))


def test_memory_is_all_that_the_machine_has_and_what_a_process_takes_is_not_known(no_proc: None) -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert free_memory() == everything
    assert 0 < memory_budget(None) < everything
    assert math.isnan(peak_memory())
    assert math.isnan(own_memory())


def test_a_bench_says_what_it_can(no_proc: None) -> None:
    assert isinstance(measuring.processor(), str)
    measured = startup._measured(math.nan, 0.5, 1.0)
    assert [startup._mebibytes(size) for size in (measured.peak, measured.own, measured.worker)] == ["-", "-", "-"]


def test_doctor_looks_for_the_driver_on_the_path(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert not machine._nvidia_driver_present()
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"C:/{name}.exe")
    assert machine._nvidia_driver_present()


# ---------------------------------------------------------------------- who works on a step of a study


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_is_known_by_its_number_and_its_start(no_proc: None, sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeper.pid)
    assert process.since
    assert lives(process)
    assert not lives(Process(sleeper.pid, "Mon Jan 1 00:00:00 2001"))  # the number was used before
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and its starter has not looked yet
    assert not lives(process)
    sleeper.wait()
    assert not lives(process)


def test_the_time_of_a_start_is_the_same_whoever_asks(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Process.of(os.getpid())
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert Process.of(os.getpid()) == here


def test_without_ps_a_number_in_use_counts_as_the_process(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert Process.of(os.getpid()) == Process(os.getpid(), "")
    assert lives(Process(os.getpid(), ""))


def test_a_dead_runners_claim_is_taken_over(no_proc: None, tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    with subprocess.Popen([sys.executable, "-c", ""]) as runner:
        assert state.claim("train")
        state.add_process("train", runner.pid)
        assert state.holder("train") is not None
    claim = tmp_path / "state" / "claims" / "train.json"
    claim.write_text(claim.read_text().replace(f'"pid": {os.getpid()},', f'"pid": {runner.pid},'))
    assert state.holder("train") is None
    assert state.claim("train")


# ---------------------------------------------------------------------- Windows' own functions, by a stand-in


class Kernel:
    """As much of Windows' ``kernel32`` as is asked: processes by number with their start, None if they have ended."""

    def __init__(self, started: dict[int, int | None], somebody_elses: frozenset[int] = frozenset()) -> None:
        self._started, self._somebody_elses, self._open = started, somebody_elses, 0
        self.error = 0
        self.OpenProcess = self._function(self._open_process)

    @staticmethod
    def _function(act: Callable[..., Any]) -> Any:
        def function(*arguments: Any) -> Any:
            return act(*arguments)

        return function

    def _open_process(self, _access: int, _inherited: bool, pid: int) -> int:
        self.error = 5 if pid in self._somebody_elses else 87
        if pid not in self._started:
            return 0
        self._open += 1
        return pid

    def GetProcessTimes(self, handle: Any, started: Any, *_others: Any) -> int:
        value = self._started[handle.value] or 0
        started._obj.dwHighDateTime, started._obj.dwLowDateTime = value >> 32, value & 0xFFFFFFFF
        return 1

    def GetExitCodeProcess(self, handle: Any, code: Any) -> int:
        code._obj.value = 0 if self._started[handle.value] is None else 259
        return 1

    def CloseHandle(self, _handle: Any) -> int:
        self._open -= 1
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert status._obj.length == ctypes.sizeof(status._obj) == 64  # or Windows answers nothing
        status._obj.sizes[0], status._obj.sizes[1] = 16 * 2**30, 5 * 2**30
        return 1

    def all_closed(self) -> bool:
        return self._open == 0


@pytest.fixture
def windows(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel({7: 0x1D0_0000_0001, 8: None}, frozenset({9}))
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel.error, raising=False)
    for module in (processes, memory):
        monkeypatch.setattr(module, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows that sends Ctrl-C, or ends the process"))
    return kernel


def test_windows_is_asked_about_a_process_and_nothing_is_sent_to_it(windows: Kernel) -> None:
    process = Process.of(7)
    assert process == Process(7, str(0x1D0_0000_0001))
    assert lives(process)
    assert not lives(Process(7, "another start"))
    assert not lives(Process(8, ""))  # ended, and somebody still holds it
    assert not lives(Process(6, ""))  # there is none
    assert lives(Process(9, ""))  # of somebody else, who does not tell
    assert windows.all_closed()


def test_memory_on_windows_is_what_is_free(windows: Kernel) -> None:
    assert free_memory() == 5 * 2**30
