"""Commands as typed into programs to start; for the study and the demonstration."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from nnssl_mae.errors import UserError

_SECONDS_TO_END = 20.0  # a training that is asked to end closes its workers first


def resolve(command: Sequence[str]) -> list[str]:
    """The program file for the command's name: beside this Python, or else on the path.

    Raises:
        UserError: there is no such program.
    """
    name, *arguments = command
    if name == "nnssl-mae":
        return [sys.executable, "-m", "nnssl_mae", *arguments]
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if program is None:
        raise UserError(f"The command {name} is not installed beside {sys.executable}; run pip install nnunetv2")
    return [program, *arguments]


def start(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts a program that writes to a log by itself, so that it goes on undisturbed if its runner is killed.

    It gets a process group of its own: Ctrl-C reaches the runner only, which ends the whole group.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
    )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends programs with all that they started: first asks, then insists."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, number)
        return
    with contextlib.suppress(OSError):  # Windows ends no groups, but knows who started whom, and does not ask
        quiet = subprocess.DEVNULL
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], stdout=quiet, stderr=quiet, check=False)
    process.terminate()
