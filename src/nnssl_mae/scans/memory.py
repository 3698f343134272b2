"""How much memory there is, and how much the preprocessing of a scan takes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SHARE = 0.8  # of what is free
_CGROUPS = Path("/sys/fs/cgroup")
# Growth of a worker's peak resident memory at 1.6 to 8 million voxels, resampled to 0.1 to 7 times as many, isotropic
# and with thick slices: 11 to 15 bytes a voxel that is read and 12 to 16 a voxel that is stored; and a quarter more.
_BYTES_A_WORKER = 450e6  # of its own, besides the libraries that all share
_BYTES_A_VOXEL_READ = 16.0
_BYTES_A_VOXEL_STORED = 20.0


def preprocessing_bytes(row: Any, target_spacing: Sequence[float] | None) -> float:
    """About what one worker process takes at most while it preprocesses a scan.

    Args:
        row: of the catalogue, with sizes and spacings.
        target_spacing: mm; none if the scan is not resampled.
    """
    voxels = float(row.size_x) * float(row.size_y) * float(row.size_z)
    growth = 1.0
    if target_spacing is not None:
        growth = float(row.spacing_x) * float(row.spacing_y) * float(row.spacing_z) / math.prod(target_spacing)
    stored = voxels * (growth if math.isfinite(growth) else 1.0)
    return _BYTES_A_WORKER + _BYTES_A_VOXEL_READ * voxels + _BYTES_A_VOXEL_STORED * stored


def memory_budget(limit: int | None) -> float:
    """Bytes that all workers together may take: the user's limit, else four fifths of what is free."""
    return float(limit) if limit is not None else _SHARE * free_memory()


def free_memory() -> float:
    """Bytes that can still be had, within the limits of the container or job; infinite where nobody knows."""
    return min([_free_on_machine(), *_free_in_groups(_CGROUPS, _own_group(Path("/proc/self/cgroup")))])


def _free_on_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return 1024.0 * int(values["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


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
        allowed, taken = float(limit.read_text()), float(used.read_text())
        values: Mapping[str, str] = dict(line.split(None, 1) for line in statistics.read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    return max(0.0, allowed - taken + float(values.get("inactive_file", 0)))  # the system gives up cached files
