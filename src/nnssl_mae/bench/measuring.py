"""Times pieces of work fairly: alternately, several times, on one core."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from time import perf_counter, process_time

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

_PACKAGES = ("nnssl_mae", "nnunetv2", "torch", "numpy")


@dataclass(frozen=True)
class Timing:
    """Seconds of each run of one piece of work."""

    wall: tuple[float, ...]
    """By the clock on the wall: what a user waits; neighbours on the machine make it longer."""
    cpu: tuple[float, ...]
    """Of all threads of this process together."""

    @property
    def median(self) -> float:
        """Of the wall-clock seconds."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """Of the processor seconds: nearly the same on a machine with nothing else to do, fairer on a busy one."""
        return statistics.median(self.cpu)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which the middle half of the wall-clock seconds lies."""
        return middle_half(self.wall)

    @property
    def per_hour(self) -> float:
        """How often the work fits into an hour."""
        return 3600 / self.median

    @property
    def text(self) -> str:
        """Median, smallest and largest, for people."""
        return f"{seconds(self.median)} ({seconds(min(self.wall))} to {seconds(max(self.wall))})"


def middle_half(numbers: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of a single number, the number itself."""
    if len(numbers) == 1:
        return numbers[0], numbers[0]
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, high


def seconds(number: float) -> str:
    """``3.20 s`` or ``41.3 ms``."""
    return f"{number:.2f} s" if number >= 1 else f"{1000 * number:.1f} ms"


def alternately(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: bool = True,
    *,
    settle: Callable[[], object] | None = None,
    announce: Callable[[int, str], object] | None = None,
    survivable: tuple[type[Exception], ...] = (),
    lost: Callable[[str, Exception], object] | None = None,
) -> dict[str, Timing]:
    """Runs each piece of work ``repeats`` times, taking turns, so that a slow minute of the machine hits all of them.

    Args:
        works: what to time, by name; results are dropped.
        repeats: at least 1.
        warm_up: run each once before, untimed: imports, caches and the disk's read cache belong to no run.
        settle: called before each reading of the clock; waits for a device that works on its own.
        announce: told the number of the round, from 1, and the name of the work before each timed run.
        survivable: errors that take a work out, while the others go on; it is then missing in the result.
        lost: told the name and the error of such a work.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least 1 run is needed")
    left = dict(works)
    if warm_up:
        for work in works.values():
            work()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(1, repeats + 1):
        for name, work in list(left.items()):
            if announce is not None:
                announce(number, name)
            try:
                times[name].append(_timed(work, settle or _nothing))
            except survivable as error:
                del left[name]
                if lost is not None:
                    lost(name, error)
    return {name: Timing(*zip(*times[name], strict=True)) for name in left}


def _timed(work: Callable[[], object], settle: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one run, by the clock on the wall and of the processor."""
    settle()
    start, start_cpu = perf_counter(), process_time()
    work()
    settle()
    return perf_counter() - start, process_time() - start_cpu


def _nothing() -> None:
    pass


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Limits this process to one thread in numerical libraries and, where the system can, to one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), _pinned():
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):  # macOS and Windows
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def environment() -> str:
    """Machine, versions and date in one line, to stand beside numbers."""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    day = datetime.now(timezone.utc).date().isoformat()
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; {day}"


def versions() -> dict[str, str]:
    """Of the packages that decide about speed, by name."""
    return {name: metadata.version(name) for name in _PACKAGES}


def processor() -> str:
    """What the processor is called."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> None:
    """A table whose first column is words and whose others are numbers, and a sentence below it."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        values = [row[index] for row in rows]
        parts = values if index else [word for value in values for word in value.split()]  # numbers keep their unit
        width = max(map(len, parts), default=0)
        table.add_column(column, justify="right" if index else "left", min_width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
