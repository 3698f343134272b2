"""Runs the steps of a study that are ready, several at a time if asked; others may run the same study beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.folders import VARIABLES
from nnssl_mae.progress import duration
from nnssl_mae.study.board import Board
from nnssl_mae.study.programs import end, resolve, start
from nnssl_mae.study.state import Record, State, Status, statuses
from nnssl_mae.study.steps import Step, check_order, shown_command, step_keys
from nnssl_mae.study.waiting import Waiting

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LOOKS_AT_OTHERS = 2.0
_SECONDS_BETWEEN_SIGNS = 30.0
_OFTEN = 3  # a person removes a file once while a study runs


@dataclass(frozen=True)
class Resources:
    """What a runner may use."""

    jobs: int = 1
    """Steps at a time."""
    devices: tuple[str, ...] = ()
    """Values of ``CUDA_VISIBLE_DEVICES`` that steps with a GPU are spread over; none leaves the variable as it is."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables."""
    patience: float = 600.0
    """Seconds to wait for a step that another machine has claimed and gives no sign of working on."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    failed: dict[str, str]
    """What was wrong, by step."""
    left: tuple[str, ...]
    """Steps that were not run because a failed one comes before them."""


@dataclass
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    record: Record
    continued: bool
    device: str | None


def run_steps(
    steps: Sequence[Step],
    state: State,
    resources: Resources,
    console: Console,
    only: Collection[str] | None = None,
) -> Outcome:
    """Runs all that is not done. A step that fails stops those that need it; the others go on.

    Args:
        steps: in order.
        state: of the study's folder.
        resources: what may be used.
        console: for progress.
        only: steps to run; none runs all.

    Raises:
        UserError: the folder cannot be used.
    """
    check_order(steps)
    state.prepare()
    with Board(console, len(steps)) as board, _end_when_asked():
        return _Runner(steps, state, resources, board, only).run()


@contextmanager
def _end_when_asked() -> Iterator[None]:
    """SIGTERM, as Slurm sends it at the time limit, ends the run like Ctrl-C: programs are ended, claims given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Runner:
    def __init__(
        self, steps: Sequence[Step], state: State, resources: Resources, board: Board, only: Collection[str] | None
    ) -> None:
        self._steps, self._state, self._resources, self._board = steps, state, resources, board
        self._keys = step_keys(steps)
        self._only = {step.name for step in steps} if only is None else set(only)
        self._began = time.time()
        self._running: dict[str, _Running] = {}
        self._failed: dict[str, str] = {}
        self._times_made: Counter[str] = Counter()
        self._looked = -_SECONDS_BETWEEN_LOOKS_AT_OTHERS
        self._signed = time.monotonic()
        self._statuses: dict[str, Status] = {}
        self._waiting = Waiting(state, resources.patience)

    def run(self) -> Outcome:
        try:
            while True:
                self._reap()
                self._show_life()
                others_work = self._start_ready() if self._is_time_to_look() else True
                if not self._running and not others_work:
                    return self._outcome()
                self._board.show({name: self._state.log(name) for name in self._running})
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            end([running.process for running in self._running.values()])
            for name in list(self._running):
                self._let_go(self._running.pop(name))
            raise

    def _show_life(self) -> None:
        """Renews the claims, so that runners on other machines know that this one lives."""
        if time.monotonic() - self._signed < _SECONDS_BETWEEN_SIGNS:
            return
        self._signed = time.monotonic()
        for running in self._running.values():
            for claim in _claims_of(running.step):
                self._state.renew(claim)

    def _is_time_to_look(self) -> bool:
        """Whether something ended here, or enough time has passed to see what other runners have done."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS_AT_OTHERS:
            return False
        self._looked = time.monotonic()
        return True

    def _look(self) -> None:
        self._statuses = statuses(self._steps, self._keys, self._state)
        for step in self._steps:
            record = self._state.record(step.name)
            is_ours = step.name in self._failed or step.name in self._running
            if is_ours or record is None or record.key != self._keys[step.name] or record.ended is None:
                continue
            if not record.is_whole and record.ended > self._began:  # by another runner, meanwhile
                self._failed[step.name] = record.note

    def _start_ready(self) -> bool:
        """Starts what can be started; returns whether anything waits for another runner's work."""
        others_work, has_changed = False, True
        while has_changed:
            self._look()
            self._board.count(sum(status.is_done for status in self._statuses.values()))
            others_work, has_changed = False, False
            for step in self._ready():
                if len(self._running) >= self._resources.jobs:
                    return True
                started = self._try(step)
                others_work |= started is None and self._is_hopeful(step)
                has_changed |= started is False
        return others_work

    def _is_hopeful(self, step: Step) -> bool:
        """Whether to wait for who holds a step; one that seems to be dead makes it a failed one."""
        claims = _claims_of(step)
        for words in filter(None, map(self._waiting.words, claims)):
            self._board.note(words)
        given_up = next(filter(None, map(self._waiting.given_up, claims)), "")
        if given_up:
            self._failed[step.name] = given_up
        return not given_up

    def _ready(self) -> list[Step]:
        return [
            step
            for step in self._steps
            if step.name in self._only
            and step.name not in self._running
            and step.name not in self._failed
            and not self._statuses[step.name].is_done
            and all(self._statuses[name].is_done for name in (*step.needs, *step.after))
        ]

    def _try(self, step: Step) -> bool | None:
        """Starts a step: True; None where another runner, or a step that wants to be alone, holds it; False where it
        ended at once."""
        state, alone = self._state, f"alone-{step.alone}"
        if step.alone and not state.claim(alone):
            return None
        if not state.claim(step.name):
            self._give_back(step, alone_only=True)
            return None
        status = statuses(self._steps, self._keys, state)[step.name]
        if status.is_done:  # another runner ended it since we looked
            self._give_back(step)
            return False
        before = state.record(step.name)
        made = before.made if step.is_passing and status.is_gone and before else None
        record = Record(self._keys[step.name], "", step.kind, step.steps, time.time(), made=made)
        if before is not None and (changed := state.changed_by_others(step, before)):
            self._finish(step, replace(record, contents=before.contents), 1, changed)
            return False
        try:
            reason = step.unneeded() if step.unneeded else ""
        except UserError as error:
            self._finish(step, record, 1, str(error))
            return False
        if self._times_made[step.name] >= _OFTEN:
            again = f"{status.why}, although this run has made it {_OFTEN} times: another step takes it away"
            self._finish(step, record, 1, again)
            return False
        if reason:
            made = before.made if before is not None and before.key == record.key else None
            self._finish(step, replace(record, made=made or record.started), 0, reason)
            return False
        return self._launch(step, record, status, before)

    def _launch(self, step: Step, record: Record, status: Status, before: Record | None) -> bool:
        extra = (*(step.again if before else ()), *(step.resume if status.continues else ()))
        record = replace(record, command=shown_command(step, extra))
        device = self._device() if step.uses_gpu else None
        log = None
        try:
            if not status.continues:
                self._state.clear(step)
            elif step.mend is not None:
                step.mend(self._state.out)
            if step.unseal is not None:
                step.unseal()
            self._state.write(step.name, record)
            log = self._state.log(step.name).open("ab" if status.continues else "wb", buffering=0)
            log.write(f"$ {record.command}\n".encode())
            program = resolve((*step.command, *step.aside, *extra))
            process = start(program, self._state.out, self._environment(step, device), log)
        except (UserError, OSError) as error:
            if log is not None:
                log.close()
            self._finish(step, record, 1, str(error))
            return False
        for claim in _claims_of(step):
            self._state.add_process(claim, process.pid)
        self._running[step.name] = _Running(step, process, log, record, status.continues, device)
        self._board.started(step.name, status.why, status.continues)
        return True

    def _device(self) -> str | None:
        """The device with fewest steps."""
        used = [running.device for running in self._running.values()]
        return min(self._resources.devices, key=used.count, default=None)

    def _environment(self, step: Step, device: str | None) -> dict[str, str]:
        folders = {name: str(Path(os.environ[name]).resolve()) for name in VARIABLES if os.environ.get(name)}
        environment = {
            **os.environ,
            **folders,  # the program runs in another folder
            "OMP_WAIT_POLICY": "PASSIVE",  # or thread pools that spin make epochs many times longer
            "MPLBACKEND": "Agg",
            "PYTHONUNBUFFERED": "1",
            **self._resources.environment,
        }
        if step.results is not None:
            environment["nnUNet_results"] = str(self._state.out / step.results)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        return environment

    def _reap(self) -> None:
        for name, running in list(self._running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self._running[name]
            running.log.close()
            self._looked = -_SECONDS_BETWEEN_LOOKS_AT_OTHERS
            note = f"exit code {code}" if code else self._what_is_wrong(running.step)
            seconds = time.time() - running.record.started
            # A run that went on where another was cut off tells nothing about the whole.
            whole = None if running.continued else round(seconds, 2)
            contents = {} if note else self._state.contents(running.step)
            record = replace(running.record, contents=contents)
            self._finish(running.step, record, code or bool(note), note, whole)

    def _what_is_wrong(self, step: Step) -> str:
        """With the result of a program that has ended well; empty if nothing is."""
        try:
            if step.seal is not None:
                step.seal()
            missing = self._state.missing(step)
        except (UserError, OSError) as error:
            return str(error)
        return f"ended, but missing: {', '.join(missing)}" if missing else ""

    def _finish(self, step: Step, record: Record, code: int, note: str, seconds: float | None = None) -> None:
        now = time.time()
        made = record.made if code else record.made or now
        self._state.write(
            step.name, replace(record, ended=now, made=made, seconds=seconds, exit_code=int(code), note=note)
        )
        self._give_back(step)
        if code:
            self._failed[step.name] = note
            self._board.failed(step.name, note, self._state.log(step.name))
        else:
            self._times_made[step.name] += 1
            self._board.ended(step.name, note or f"{duration(now - record.started)}")

    def _let_go(self, running: _Running) -> None:
        running.log.close()
        self._give_back(running.step)

    def _give_back(self, step: Step, alone_only: bool = False) -> None:
        if not alone_only:
            self._state.release(step.name)
        if step.alone:
            self._state.release(f"alone-{step.alone}")

    def _outcome(self) -> Outcome:
        left = [
            step.name
            for step in self._steps
            if step.name in self._only and step.name not in self._failed and not self._statuses[step.name].is_done
        ]
        return Outcome(dict(self._failed), tuple(left))


def _claims_of(step: Step) -> tuple[str, ...]:
    """Names that a runner claims for a step."""
    return (step.name, *([f"alone-{step.alone}"] if step.alone else []))
