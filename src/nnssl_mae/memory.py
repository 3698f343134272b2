"""How much memory there is, within the limits of a container or job."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SHARE = 0.8  # of what is free
_CGROUPS = Path("/sys/fs/cgroup")


def memory_budget(limit: int | None) -> float:
    """Bytes that all workers together may take: the user's limit, else four fifths of what is free."""
    return float(limit) if limit is not None else _SHARE * free_memory()


def free_memory() -> float:
    """Bytes that can still be had, within the limits of the container or job; infinite where nobody knows."""
    return min([_free_on_machine(), *_free_in_groups(_CGROUPS, _own_group(Path("/proc/self/cgroup")))])


def peak_memory() -> float:
    """Most bytes that this process has held at once; not a number where nobody knows.

    On Linux not by ``ru_maxrss``, which begins with the memory of the process that started this one. Pages of programs
    and of mapped files count, although they are shared and can be dropped: see :func:`own_memory`.
    """
    return _status("VmHWM")


def own_memory() -> float:
    """Bytes that this process holds now without pages of programs and files; not a number where nobody knows."""
    return _status("RssAnon")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        return math.nan


def _free_on_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return 1024.0 * int(values["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    if sys.platform == "win32":
        return _free_on_windows()
    try:  # all there is, as macOS does not say in a file how much is free
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _free_on_windows() -> float:
    if sys.platform != "win32":
        raise AssertionError("for Windows only")  # tells mypy so, too
    import ctypes

    # MEMORYSTATUSEX of Windows' headers: its own size, the load in percent, then seven sizes in bytes: all memory, what
    # is free of it, and more that nobody asks for here.
    class Status(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("sizes", ctypes.c_uint64 * 7))

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
        return math.inf
    return float(status.sizes[1])


def _own_group(file: Path) -> str:
    """The control group (version 2) of this process, such as ``/slurm/job_7``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "/"
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")


def _free_in_groups(root: Path, group: str) -> list[float]:
    """What the limits of a control group and of those above it leave."""
    folders = [root.joinpath(*Path(group).parts[1 : depth + 1]) for depth in range(len(Path(group).parts))]
    version_1 = root / "memory"
    frees = [_left(folder / "memory.max", folder / "memory.current", folder / "memory.stat") for folder in folders]
    frees.append(
        _left(version_1 / "memory.limit_in_bytes", version_1 / "memory.usage_in_bytes", version_1 / "memory.stat")
    )
    return [free for free in frees if free is not None]


def _left(limit: Path, used: Path, statistics: Path) -> float | None:
    try:
        allowed, taken = float(limit.read_text(encoding="utf-8")), float(used.read_text(encoding="utf-8"))
        values: Mapping[str, str] = dict(
            line.split(None, 1) for line in statistics.read_text(encoding="utf-8").splitlines()
        )
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    return max(0.0, allowed - taken + float(values.get("inactive_file", 0)))  # the system gives up cached files
