"""Which process a number of the system means, and whether it lives: numbers are used again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SECONDS = 10.0  # for a program that answers at once
_DEAD = "Z"  # has ended, and its starter has not looked yet


@dataclass(frozen=True)
class Process:
    """A process of this machine; ``since`` is when it was started, in the system's words, empty if it tells nobody."""

    pid: int
    since: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The one that has this number now."""
        return cls(pid, _described(pid)[1])


def lives(process: Process) -> bool:
    """Whether it has not ended. Where the system says no times, another one of the same number counts as well."""
    if not _exists(process.pid):
        return False
    state, since = _described(process.pid)
    return since == process.since and state != _DEAD


def _exists(pid: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 is Ctrl-C, and is sent
        return _on_windows(pid) is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's: it may have been given this number later
        pass
    return True


def _described(pid: int) -> tuple[str, str]:
    """State and time of the start; empty where nobody tells."""
    if sys.platform == "win32":
        return "", _on_windows(pid) or ""
    if not (_PROC / "self").exists():  # macOS
        return _by_ps(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    words = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return (words[0], words[19]) if len(words) > 19 else ("", "")


def _by_ps(pid: int) -> tuple[str, str]:
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    settings = {**os.environ, "LC_ALL": "C", "TZ": "UTC0"}  # the same words whoever asks
    try:
        done = subprocess.run(
            command, env=settings, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    state, *since = done.stdout.split() or [""]
    return state[:1], " ".join(since)


def _on_windows(pid: int) -> str | None:
    """When a living process was started, empty if it is somebody else's; None if there is none."""
    if sys.platform != "win32":
        raise AssertionError("for Windows only")  # tells mypy so, too
    import ctypes
    from ctypes import wintypes

    may_ask, refused, still_active = 0x1000, 5, 259  # PROCESS_QUERY_LIMITED_INFORMATION, ERROR_ACCESS_DENIED
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    handle = kernel.OpenProcess(may_ask, False, pid)
    if not handle:
        return "" if ctypes.get_last_error() == refused else None
    handle = wintypes.HANDLE(handle)
    started, *others = (wintypes.FILETIME() for _ in range(4))
    code = wintypes.DWORD()
    try:
        kernel.GetProcessTimes(handle, ctypes.byref(started), *map(ctypes.byref, others))
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    finally:
        kernel.CloseHandle(handle)
    # Somebody who holds it may keep one that has ended.
    return str(started.dwHighDateTime << 32 | started.dwLowDateTime) if code.value == still_active else None
