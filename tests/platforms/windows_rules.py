"""What other systems lack or refuse, taken away or refused here.

Windows neither renames nor removes a file that is open or mapped. This file imports little: processes that are spawned
read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

_PATHS_OF = {"replace": 2, "rename": 2, "unlink": 1, "remove": 1}


def refuse_open_files(monkeypatch: pytest.MonkeyPatch, below: Path) -> None:
    """Makes renames, replacements and removals of what this process holds open below a folder raise an error.

    Raises:
        PermissionError: later, as Windows does.
    """
    for name, count in _PATHS_OF.items():
        monkeypatch.setattr(os, name, _refusing(getattr(os, name), count, below))


def _refusing(act: Callable[..., Any], count: int, below: Path) -> Callable[..., Any]:
    def checked(*arguments: Any, **options: Any) -> Any:
        held = _held(below)
        for argument in () if options.get("dir_fd") else arguments[:count]:
            path = str(Path(argument).absolute())
            if any(name == path or name.startswith(f"{path}/") for name in held):
                raise PermissionError(13, "this process holds it open", path)
        return act(*arguments, **options)

    return checked


def _held(below: Path) -> list[str]:
    """Files below a folder that are open (file descriptors) or mapped into memory."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    names += [words[5] for line in maps if len(words := line.split(None, 5)) == 6]
    return [name for name in names if name.startswith(str(below))]


def without(module: ModuleType, *names: str) -> SimpleNamespace:
    """A module as a system has it that lacks some names."""
    return SimpleNamespace(**{name: getattr(module, name) for name in dir(module) if name not in names})


def die_at_one(number: int) -> int:
    """Item 1 ends its process each time, as a crash in a library does."""
    if number == 1:
        os._exit(7)
    return number
