"""Which versions of torch read a checkpoint of a stranger without harm, when told to read weights only."""

from __future__ import annotations

from packaging.version import Version

_RUNS_CODE_BELOW = (2, 6)  # CVE-2025-32434
_CORRUPTS_MEMORY_BELOW = (2, 10)  # CVE-2026-24747


def runs_code(torch: Version) -> bool:
    """Whether a hostile file can run a program (CVE-2025-32434)."""
    return torch.release[:2] < _RUNS_CODE_BELOW


def corrupts_memory(torch: Version) -> bool:
    """Whether a hostile file can damage the memory of the process that reads it (CVE-2026-24747)."""
    return torch.release[:2] < _CORRUPTS_MEMORY_BELOW
