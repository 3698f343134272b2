"""What a running study shows: a line a step that starts or ends, and in a terminal what is at work now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from nnssl_mae.console import say

_SHOWN_LINES = 8
_SECONDS_BETWEEN_LINES = 1.0
_TAIL = 4096  # bytes: a few lines


class Board:
    """A context manager; in a terminal it keeps a line for each step at work at the bottom."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console,
            transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._shown = 0.0

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def count(self, done: int) -> None:
        """How many steps are done."""
        self._done = done

    def started(self, name: str, why: str, continued: bool) -> None:
        """A step has begun."""
        more = f" ({'goes on: ' if continued else 'again: '}{why})" if why else ""
        self._tasks[name] = self._progress.add_task(name)
        self._say(f"{name} ...{more}")

    def ended(self, name: str, words: str) -> None:
        """A step has ended well."""
        self._forget(name)
        self._done += 1
        self._say(f"{name}: {words}")

    def failed(self, name: str, note: str, log: Path) -> None:
        """A step has failed; shows the end of what it printed."""
        self._forget(name)
        self._say(f"{name} FAILED: {note}; all that it printed is in {log}", style="red")
        for line in last_lines(log)[-_SHOWN_LINES:]:
            say(self._console, f"  {line}")

    def note(self, words: str) -> None:
        """Something else that people should know."""
        self._say(words, style="yellow")

    def show(self, logs: Mapping[str, Path]) -> None:
        """The last line of each step at work, once a second; only in a terminal."""
        if not self._console.is_terminal or monotonic() - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = monotonic()
        for name, log in logs.items():
            line = (last_lines(log) or [""])[-1]
            room = max(10, self._console.width - len(name) - 14)
            self._progress.update(self._tasks[name], description=f"{name}  {line.strip()[:room]}")

    def _forget(self, name: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def _say(self, text: str, style: str | None = None) -> None:
        say(self._console, f"[{self._done}/{self._total}] {text}", style)


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that are not empty; a progress bar's rewritten line counts as lines."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()]
