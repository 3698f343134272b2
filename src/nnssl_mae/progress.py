"""Shows how far long work has come: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from nnssl_mae.console import say

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 60.0


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def track(items: Iterable[Item], label: str, total: int, console: Console) -> Iterator[Item]:
    """Yields the items and shows how many of ``total`` have come, how fast, and how long the rest takes."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(label, total=total)
            for item in items:
                progress.advance(task)
                yield item
        return
    start = said = monotonic()
    done = 0
    for item in items:
        done += 1
        now = monotonic()
        if now - said > _SECONDS_BETWEEN_LINES:
            said = now
            say(console, f"{label}: {done} of {total}, {_rate(done, total, now - start)}")
        yield item
    say(console, f"{label}: {done} done in {duration(monotonic() - start)}.")


def _rate(done: int, total: int, seconds: float) -> str:
    speed = done / max(seconds, 1e-9)
    shown = f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"
    return f"{shown}, {duration((total - done) / max(speed, 1e-9))} left"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.completed or task.total is None:
            return Text("")
        return Text(_rate(int(task.completed), int(task.total), task.elapsed or 0.0))
