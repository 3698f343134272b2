"""A step of a study: one stock command, what it needs and what proves that it ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import short_hash

Command = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One command. It runs in the study's folder; relative paths are below it."""

    name: str
    """Unique, for files."""
    kind: str
    """``train``, ``preprocess`` ...: steps of a kind cost about the same."""
    command: Command
    """What decides the result, as typed."""
    aside: Command = ()
    """Further arguments that decide nothing about it, such as numbers of processes."""
    needs: tuple[str, ...] = ()
    """Steps whose results go in: a change of them repeats this one."""
    after: tuple[str, ...] = ()
    """Steps that must have ended, although this one need not be repeated when they are."""
    makes: tuple[Path, ...] = ()
    """Files or folders that prove that it ended."""
    clears: tuple[Path, ...] = ()
    """Folders of the study that a fresh start removes first: what an older plan left there is not taken for new."""
    inputs: Any = None
    """What the result depends on besides the command (a JSON value)."""
    resume: Command = ()
    """Arguments that make the command continue a run of its own that was cut off."""
    again: Command = ()
    """Arguments for every run but the first in this study, such as ``--overwrite``."""
    results: Path | None = None
    """``nnUNet_results`` of the command, below the study's folder; none leaves the user's own."""
    steps: int = 0
    """Optimiser steps, for the estimate."""
    uses_gpu: bool = False
    """Whether it wants the device."""
    alone: str = ""
    """No two steps with the same word run at the same time."""
    is_passing: bool = False
    """Its files only serve other steps: once these are done, nobody misses them."""
    unneeded: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """Why nothing has to be done, asked just before it would start; empty where it has to."""
    shared: tuple[Path, ...] = ()
    """Those of ``makes`` that others could write, too: their content is noted, so that a change of it is seen."""
    seal: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Called when the command has ended well, before its result is looked at."""
    unseal: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    """Called before the command starts: takes back what an earlier ``seal`` has left."""
    mend: Callable[[Path], None] | None = field(default=None, repr=False, compare=False)
    """Called with the study's folder before a run that was cut off is continued."""
    proof: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """What else is missing of its result besides ``makes``, in words; empty if nothing is."""


def shown_command(step: Step, extra: Command = ()) -> str:
    """As a person types it, quoted."""
    words = shlex.join((*step.command, *step.aside, *extra))
    return f"nnUNet_results={shlex.quote(step.results.as_posix())} {words}" if step.results else words


def step_keys(steps: Sequence[Step]) -> dict[str, str]:
    """A hash a step, of its command, its inputs and the keys of what it needs; steps must be in order."""
    keys: dict[str, str] = {}
    for step in steps:
        results = None if step.results is None else step.results.as_posix()
        needs = {name: keys[name] for name in step.needs}
        keys[step.name] = short_hash([step.name, step.command, results, step.inputs, needs], 16)
    return keys


def check_order(steps: Sequence[Step]) -> None:
    """Refuses steps of one name; every step must stand after those it needs.

    Raises:
        UserError: two parts of the study have the same name.
    """
    known: set[str] = set()
    files: set[str] = set()
    for step in steps:
        file = step.name.lower() if sys.platform in ("win32", "darwin") else step.name  # disks there take them for one
        if file in files:
            raise UserError(f"Two parts of the study would have the same name, {step.name}; rename one of the arms")
        files.add(file)
        assert known.issuperset((*step.needs, *step.after)), f"{step.name} stands before a step that it needs"
        known.add(step.name)


def depths(steps: Sequence[Step]) -> dict[str, int]:
    """How many steps, one needing the other, come before each; steps must be in order."""
    found: dict[str, int] = {}
    for step in steps:
        found[step.name] = 1 + max((found[name] for name in (*step.needs, *step.after)), default=-1)
    return found
