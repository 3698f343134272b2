"""Work on many items in processes: few wait in memory, and a process that dies costs its item at most."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, Generic, TypeVar

from nnssl_mae.errors import ResumableError

Item = TypeVar("Item")
Result = TypeVar("Result")

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors after which nothing more can be stored."""

_ATTEMPTS = 2
_SECONDS_TO_FINISH = 30
_SECONDS_TO_FINISH_EARLY = 1  # somebody pressed Ctrl-C, and what is cut off is done again
_MOST_ON_WINDOWS = 60  # its system waits for 64 things at once, and Python needs some of them


@dataclass(frozen=True)
class Failure:
    """Why there is no result: the work raised, or its process died each time.

    ``summary`` is for the user, ``details`` is the traceback, if there is one. ``errno`` is that of an ``OSError``.
    """

    summary: str
    details: str = ""
    errno: int | None = None

    @property
    def disk_is_full(self) -> bool:
        """Whether no item after this one can be stored either."""
        return self.errno in FULL_DISK


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of one item: its result, or why there is none."""

    item: Item
    result: Result | None = None
    failure: Failure | None = None


def possible_workers(wanted: int) -> int:
    """How many processes a pool may have on this system, at most ``wanted``."""
    return min(wanted, _MOST_ON_WINDOWS) if sys.platform == "win32" else wanted


def in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    cost: Callable[[Item], float] | None = None,
    budget: float = float("inf"),
) -> Iterator[Outcome[Item, Result]]:
    """Outcomes as they come, in any order. An item is taken from ``items`` only when a process is free for it.

    A process that dies (killed for its memory, crashed in a library) is replaced. Its item is tried once more with no
    other item at work, and fails if it dies again; the failure names the signal.

    Args:
        work: a function that can be pickled. What it raises becomes a :class:`Failure` of its item.
        items: any number; they are not held.
        workers: processes. They are spawned: torch and blosc2 hold threads that do not survive a fork.
        cost: what an item costs while it is worked on, for instance bytes of memory.
        budget: items whose costs sum up to more are not worked on at the same time; a single one always is.

    Raises:
        ResumableError: the processes die before they start working.
    """
    pool = _Pool(work, workers)
    seconds = _SECONDS_TO_FINISH_EARLY
    try:
        yield from pool.outcomes(iter(items), cost or (lambda _: 0.0), budget)
        seconds = _SECONDS_TO_FINISH
    finally:
        pool.close(seconds)


class _Pool(Generic[Item, Result]):
    def __init__(self, work: Callable[[Item], Result], workers: int) -> None:
        self._work = work
        self._workers = [_Worker[Item](work) for _ in range(possible_workers(workers))]

    def outcomes(
        self, items: Iterator[Item], cost: Callable[[Item], float], budget: float
    ) -> Iterator[Outcome[Item, Result]]:
        waiting: deque[_Task[Item]] = deque()
        while True:
            self._hand_out(waiting, items, cost, budget)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready and (outcome := self._outcome(worker, waiting)) is not None:
                    yield outcome

    def _hand_out(
        self, waiting: deque[_Task[Item]], items: Iterator[Item], cost: Callable[[Item], float], budget: float
    ) -> None:
        """Gives tasks to idle workers as long as their costs fit; the first that does not fit waits for its turn."""
        for worker in self._workers:
            if worker.task is not None:
                continue
            if not waiting:
                for item in items:
                    waiting.append(_Task(item, cost(item)))
                    break
            busy = [other.task for other in self._workers if other.task is not None]
            if not waiting or (busy and sum(task.cost for task in busy) + waiting[0].cost > budget):
                return
            if (waiting[0].died and busy) or any(task.died for task in busy):
                return
            worker.start(waiting.popleft())

    def _outcome(self, worker: _Worker[Item], waiting: deque[_Task[Item]]) -> Outcome[Item, Result] | None:
        """What a worker has to say; none if it only became ready, or died and its item is tried again."""
        assert worker.task is not None
        task = worker.task
        try:
            said = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._replace(worker, task, waiting)
        if said is None:
            worker.is_ready = True
            return None
        worker.task = None
        return Outcome(task.item, failure=said) if isinstance(said, Failure) else Outcome(task.item, said[0])

    def _replace(
        self, worker: _Worker[Item], task: _Task[Item], waiting: deque[_Task[Item]]
    ) -> Outcome[Item, Result] | None:
        cause = worker.cause_of_death()
        if not worker.is_ready:
            raise ResumableError(
                f"A worker process ended before it could start ({cause}), most likely because memory ran out; run the "
                "same command again with fewer processes (-np 1)"
            )
        self._workers[self._workers.index(worker)] = _Worker(self._work)
        task.died += 1
        if task.died < _ATTEMPTS:
            waiting.appendleft(task)
            return None
        summary = f"ended its process each of {_ATTEMPTS} times ({cause})"
        return Outcome(task.item, failure=Failure(summary))

    def close(self, seconds: float) -> None:
        for worker in self._workers:
            worker.connection.close()  # an idle worker ends, a busy one after its item
        deadline = monotonic() + seconds
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


@dataclass
class _Task(Generic[Item]):
    item: Item
    cost: float
    died: int = 0


class _Worker(Generic[Item]):
    def __init__(self, work: Callable[[Item], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _ctrl_c_held():
            self.process.start()
        theirs.close()  # so that its death closes the pipe
        self.task: _Task[Item] | None = None
        self.is_ready = False

    def start(self, task: _Task[Item]) -> None:
        self.task = task
        # If it died while it was idle, reading from it says so, and the item is tried again.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(task.item)

    def cause_of_death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        if hasattr(signal, "SIGKILL") and code == -signal.SIGKILL:  # Windows has no such signal
            return "SIGKILL, as the system does when memory runs out"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Processes that are started meanwhile never hear of Ctrl-C, which they would answer with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting a process does this first, and it would undo the next line
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker process: until nobody is there any more to give it items."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    try:
        connection.send(None)
        while True:
            connection.send(_attempt(work, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _attempt(work: Callable[[Any], Any], item: Any) -> tuple[Any] | Failure:
    try:
        return (work(item),)
    except MemoryError:
        return Failure("needs more memory than there is", traceback.format_exc())
    except Exception as error:  # one item must not end the work on 40,000 others; the text goes to the user
        number = error.errno if isinstance(error, OSError) else None
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), number)
