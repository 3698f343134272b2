"""Runs the stages of the demonstration one after the other, and skips those that are done.

A stage is done when its marker in ``OUT/stages`` holds its key: a hash of its commands, its inputs and the
keys of all stages before it. A changed parameter therefore repeats its stage and everything after it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nnssl_mae.errors import UserError
from nnssl_mae.files import short_hash, write_json
from nnssl_mae.study.programs import resolve

Command = tuple[str, ...]
OnLine = Callable[[str], None]
_SHOWN_LINES = 8


@dataclass(frozen=True)
class Stage:
    """One step of the demonstration."""

    name: str
    """Short, for files."""
    title: str
    """For people."""
    commands: tuple[Command, ...] = ()
    """Public commands as typed in the output folder, run one after the other."""
    work: Callable[[OnLine], None] | None = field(default=None, repr=False)
    """Instead of commands: a function of this package, given a receiver of progress lines."""
    inputs: Any = None
    """What the result depends on besides the commands (a JSON value)."""
    makes: tuple[Path, ...] = ()
    """What appears, relative to ``OUT``: removed before a fresh start, and must exist afterwards."""
    resume: Command = ()
    """Arguments that make the (only) command continue an interrupted run of its own."""


@dataclass(frozen=True)
class Record:
    """The marker of a stage: ``seconds`` is None while it has not finished."""

    key: str
    seconds: float | None


def stage_keys(stages: Sequence[Stage]) -> list[str]:
    """One hash a stage; each includes the one before."""
    keys: list[str] = []
    for stage in stages:
        before = keys[-1] if keys else ""
        keys.append(short_hash([before, stage.name, stage.commands, stage.inputs], 16))
    return keys


def read_record(out: Path, stage: Stage) -> Record | None:
    """The marker of a stage, or None where there is none that can be read."""
    try:
        content = json.loads(_marker(out, stage).read_text(encoding="utf-8"))
        return Record(str(content["key"]), content["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _marker(out: Path, stage: Stage) -> Path:
    return out / "stages" / f"{stage.name}.json"


def log_file(out: Path, stage: Stage) -> Path:
    """Where everything that a stage prints goes."""
    return out / "logs" / f"{stage.name}.log"


def run_stages(stages: Sequence[Stage], out: Path, environment: dict[str, str], console: Console) -> None:
    """Run what is not done yet.

    Raises:
        UserError: a stage failed; names it, its log file and the last lines.
    """
    for folder in ("stages", "logs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    keys = stage_keys(stages)
    for number, (stage, key) in enumerate(zip(stages, keys, strict=True)):
        heading = f"[{number + 1}/{len(stages)}] {stage.title}"
        record = read_record(out, stage)
        whole = all((out / path).exists() for path in stage.makes)
        if record and record.key == key and record.seconds is not None and whole:
            console.print(f"{escape(heading)}: already done", highlight=False)
            continue
        interrupted = record is not None and record.key == key and record.seconds is None
        resume = interrupted and whole and bool(stage.resume)
        _clear(stages[number:], out, keep_first=resume)
        write_json(_marker(out, stage), {"key": key, "seconds": None})
        seconds = _run_stage(stage, heading, out, environment, console, resume)
        write_json(_marker(out, stage), {"key": key, "seconds": round(seconds, 1)})


def _clear(stages: Sequence[Stage], out: Path, keep_first: bool) -> None:
    """Remove the results of these stages: later ones rest on what is about to change."""
    for stage in stages:
        _marker(out, stage).unlink(missing_ok=True)
    for stage in stages[1:] if keep_first else stages:
        for path in stage.makes:
            if (out / path).is_dir():
                shutil.rmtree(out / path)
            else:
                (out / path).unlink(missing_ok=True)


def _run_stage(
    stage: Stage, heading: str, out: Path, environment: dict[str, str], console: Console, resume: bool
) -> float:
    """Run one stage with a live line; returns its duration in seconds."""
    started = time.monotonic()
    if not console.is_terminal:  # there the live line does not show
        console.print(f"{escape(heading)} ...", highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    lines: deque[str] = deque(maxlen=_SHOWN_LINES)
    log_path = log_file(out, stage)
    with (
        Progress(*columns, console=console, transient=True) as progress,
        log_path.open("a" if resume else "w", encoding="utf-8") as log,
    ):
        task = progress.add_task(escape(heading))

        def on_line(line: str) -> None:
            log.write(line + "\n")
            log.flush()
            if line.strip():
                lines.append(line)
                shown = line.strip()[: max(20, console.width - len(heading) - 20)]
                progress.update(task, description=f"{escape(heading)} [dim]{escape(shown)}[/dim]")

        _work(stage, out, environment, log, on_line, lines, resume)
    missing = [path.as_posix() for path in stage.makes if not (out / path).exists()]
    if missing:
        raise _failure(stage, log_path, lines, f"ended without writing {', '.join(missing)}")
    seconds = time.monotonic() - started
    console.print(f"{escape(heading)}: {seconds:.0f} s", highlight=False)
    return seconds


def _work(
    stage: Stage,
    out: Path,
    environment: dict[str, str],
    log: TextIO,
    on_line: OnLine,
    lines: deque[str],
    resume: bool,
) -> None:
    if stage.work is not None:
        stage.work(on_line)
    for command in stage.commands:
        full = command + (stage.resume if resume else ())
        log.write(f"$ {shlex.join(full)}\n")
        code = stream(resolve(full), out, environment, on_line)
        if code != 0:
            raise _failure(stage, log_file(out, stage), lines, f"`{shlex.join(full)}` ended with exit code {code}")


def _failure(stage: Stage, log: Path, lines: Sequence[str], what: str) -> UserError:
    tail = "".join(f"\n  {line}" for line in lines)
    return UserError(f"The demonstration stopped in '{stage.title}': {what}. The whole output is in {log}.{tail}")


def stream(command: Sequence[str], folder: Path, environment: dict[str, str], on_line: OnLine) -> int:
    """Run a program and hand over each line (a progress bar's too) as it comes; returns its exit code."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        bufsize=1,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_line(line.rstrip("\n"))
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def stage_environment(out: Path, workers: int) -> dict[str, str]:
    """This process's environment with nnU-Net's folders inside ``out``."""
    environment = dict(os.environ)
    # One torch thread pool over all cores; a leftover limit, or a busy second pool, makes epochs many times
    # longer.
    environment.pop("OMP_NUM_THREADS", None)
    environment.update(
        {name: str(out / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        OMP_WAIT_POLICY="PASSIVE",
        nnUNet_def_n_proc=str(workers),
        nnUNet_n_proc_DA=str(workers),
        nnUNet_wandb_enabled="0",
        MPLBACKEND="Agg",
        PYTHONUNBUFFERED="1",
    )
    return environment
