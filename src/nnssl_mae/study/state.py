"""The state of a study on disk: a small file a step, and claims, so that no two runners do the same step.

A record tells with which key a step was started, and how it ended. A claim exists while somebody works on a step: it
names the machine, the runner and the program that it started, each with the time at which the system started it, as
numbers of processes are used again. A claim of this machine none of whose processes lives is stale and is taken over;
one of another machine cannot be judged, and stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import as_json, lock, sha256, write_first, write_json
from nnssl_mae.study.processes import Process, lives
from nnssl_mae.study.steps import Step

_LOCK = ".lock"


@dataclass(frozen=True)
class Record:
    """What is known of a step."""

    key: str
    command: str
    """As typed."""
    kind: str
    steps: int
    started: float
    """Seconds since 1970."""
    ended: float | None = None
    """None while it has not ended, or was cut off."""
    made: float | None = None
    """When what it made was new: a passing step whose lost files are made again keeps the time of the first ones."""
    seconds: float | None = None
    """Of work, over all runs of this key; none where nothing had to be done."""
    exit_code: int | None = None
    note: str = ""
    """Why nothing had to be done, or what was wrong."""
    contents: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files that others could write, too, as the step left them; by path."""

    @property
    def is_whole(self) -> bool:
        """Whether it ended well."""
        return self.ended is not None and self.exit_code == 0


class State:
    """``OUT/state`` and ``OUT/logs``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._records, self._claims, self._logs = out / "state", out / "state" / "claims", out / "logs"

    def prepare(self) -> None:
        """Makes the folders.

        Raises:
            UserError: they cannot be made.
        """
        try:
            for folder in (self._claims, self._logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out} cannot be used: {error.strerror}; give another folder with --out") from error

    def log(self, name: str) -> Path:
        """Where everything that a step prints goes."""
        return self._logs / f"{name}.log"

    def record(self, name: str) -> Record | None:
        """Of a step; none where it never started, or what is written cannot be read."""
        try:
            return Record(**json.loads(self._file(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, name: str, record: Record) -> None:
        """Replaces the record of a step."""
        write_json(self._file(name), asdict(record))

    def _file(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def records(self) -> dict[str, Record]:
        """All that can be read, by step."""
        names = sorted(path.stem for path in self._records.glob("*.json")) if self._records.is_dir() else []
        found = {name: self.record(name) for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def where(self, path: Path) -> Path:
        """A path of a step on this machine."""
        return path if path.is_absolute() else self.out / path

    def missing(self, step: Step) -> list[str]:
        """What a step should have made and is not there."""
        gone = [path.as_posix() for path in step.makes if not self.where(path).exists()]
        return gone or ([problem] if step.proof is not None and (problem := step.proof()) else [])

    def contents(self, step: Step) -> dict[str, str]:
        """Digests of what others could write, too."""
        return {path.as_posix(): sha256(self.where(path)) for path in step.shared if self.where(path).is_file()}

    def changed_by_others(self, step: Step, record: Record | None) -> str:
        """A sentence if somebody else has written a file that this step made; empty if not, as far as is known."""
        if record is None:
            return ""
        now = self.contents(step)
        changed = next((path for path, digest in record.contents.items() if now.get(path, digest) != digest), None)
        return (
            f"{changed} was changed by somebody else after this study made it, perhaps by a study of the same name; "
            "give one of them another name, or remove the file to have it made again"
            if changed
            else ""
        )

    def clear(self, step: Step) -> None:
        """Removes what an earlier plan left in the step's own folders, which lie inside the study's folder."""
        for path in step.clears:
            assert not path.is_absolute() and ".." not in path.parts, path
            if (self.out / path).exists():
                shutil.rmtree(self.out / path)

    # ------------------------------------------------------------------ claims

    def claim(self, name: str) -> bool:
        """Whether this process may work on ``name`` now; stale claims of this machine are taken over."""
        with self._locked():
            if self.holder(name) is not None:
                return False
            file = self._claims / f"{name}.json"
            file.unlink(missing_ok=True)
            content = as_json({"host": socket.gethostname(), "processes": [_process(os.getpid())]})
            write_first(file, content)
            return file.read_bytes() == content

    def add_process(self, name: str, pid: int) -> None:
        """Names the program that works on a claimed step: it may outlive its runner."""
        processes = [_process(os.getpid()), _process(pid)]
        write_json(self._claims / f"{name}.json", {"host": socket.gethostname(), "processes": processes})

    def release(self, name: str) -> None:
        """Gives a claim back."""
        (self._claims / f"{name}.json").unlink(missing_ok=True)

    def renew(self, name: str) -> None:
        """Shows other machines that somebody still works on a claim of this process."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._claims / f"{name}.json")

    def renewed(self, name: str) -> int | None:
        """When a claim was renewed, in ns; none if there is none."""
        try:
            return (self._claims / f"{name}.json").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def is_foreign(self, name: str) -> bool:
        """Whether a claim is one of another machine."""
        try:
            content = json.loads((self._claims / f"{name}.json").read_text(encoding="utf-8"))
            return bool(content["host"] != socket.gethostname())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def holder(self, name: str) -> str | None:
        """Who works on ``name``, in words; none if nobody does, as far as can be known."""
        try:
            content = json.loads((self._claims / f"{name}.json").read_text(encoding="utf-8"))
            host, processes = str(content["host"]), list(content["processes"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return f"a claim that cannot be read; remove {self._claims / name}.json if nobody works on it"
        if host != socket.gethostname():
            return f"another machine, {host}; if it is dead, remove {self._claims / name}.json"
        alive = [process["pid"] for process in processes if _is_alive(process)]
        return f"process {alive[-1]} on this machine" if alive else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of this machine looks at claims at a time; disks without locks have only the claims."""
        with (self._claims / _LOCK).open("ab") as file:
            with contextlib.suppress(OSError):
                lock(file, wait=True)
            yield


def _process(pid: int) -> dict[str, Any]:
    return asdict(Process.of(pid))


def _is_alive(process: Mapping[str, Any]) -> bool:
    return lives(Process(int(process["pid"]), process["since"]))


# ---------------------------------------------------------------------- what is done


@dataclass(frozen=True)
class Status:
    """How a step stands."""

    is_done: bool
    continues: bool = False
    """Whether an unfinished run of the same key is there to go on with."""
    is_gone: bool = False
    """It was done, and what it made is not there any more."""
    why: str = ""
    """Why it has to be run although it ran before."""


def statuses(steps: Sequence[Step], keys: Mapping[str, str], state: State) -> dict[str, Status]:
    """Of every step. A step is done if its record has its key, it ended well, what it made is there, and nothing that
    it needs was made anew after it started. The files of passing steps may be gone where all that uses them is done.

    Args:
        steps: in order.
        keys: of :func:`nnssl_mae.study.steps.step_keys`.
        state: on disk.
    """
    records = {step.name: state.record(step.name) for step in steps}
    passing = {step.name for step in steps if step.is_passing}
    found: dict[str, Status] = {}
    for step in steps:
        found[step.name] = _status(step, keys[step.name], records, found, passing, state)
    users: dict[str, list[str]] = {step.name: [] for step in steps}
    for step in reversed(steps):
        status = found[step.name]
        if step.is_passing and status.is_gone and all(found[name].is_done for name in users[step.name]):
            found[step.name] = Status(True)
        for name in (*step.needs, *step.after):
            users[name].append(step.name)
    return found


def _status(
    step: Step,
    key: str,
    records: Mapping[str, Record | None],
    found: Mapping[str, Status],
    passing: Container[str],
    state: State,
) -> Status:
    record = records[step.name]
    if record is None:
        return Status(False)
    if record.key != key:
        return Status(False, why="the study has changed")
    for name in step.needs:
        before = records[name]
        as_it_was = found[name].is_done or (name in passing and found[name].is_gone)
        if before is None or not as_it_was or (before.made or 0) > record.started:
            return Status(False, why=f"{name} is repeated")
    if not record.is_whole:
        failed = record.ended is not None
        why = f"it failed before ({record.note})" if failed else "it was cut off"
        # Where lost files were being made again, what uses them stays as it is.
        is_gone = step.is_passing and record.made is not None
        return Status(False, continues=True, is_gone=is_gone, why=why)
    if missing := state.missing(step):
        return Status(False, is_gone=True, why=f"{missing[0]} is gone")
    if state.changed_by_others(step, record):
        return Status(False, is_gone=True, why="somebody else has changed what it made")
    return Status(True)
