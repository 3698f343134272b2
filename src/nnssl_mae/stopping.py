"""Ending a run at a signal without losing a step: clusters send one before they take a machine back."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import util
from multiprocessing.process import BaseProcess
from types import FrameType

import torch
from torch import distributed as dist

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What Slurm sends before a time limit or a pre-emption, and what ``torchrun`` passes on to its processes."""
_LAG = 2


class StopSignal:
    """Remembers that the process was told to stop; whoever does the work looks when a piece of it is done."""

    def __init__(self) -> None:
        self._received: int | None = None

    @property
    def name(self) -> str | None:
        """Of the signal that came, or None."""
        return None if self._received is None else signal.Signals(self._received).name

    @property
    def exit_code(self) -> int:
        """As a shell gives for a process that the signal ended; SIGTERM's if only another process was told."""
        return 128 + (signal.SIGTERM if self._received is None else self._received)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Signals are remembered inside, and do afterwards what they did before."""
        if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread only
            yield
            return
        # nnU-Net's start of several GPUs does not hear the signal; its end sends this one to the processes it started.
        started = (signal.SIGINT,) if multiprocessing.parent_process() is not None else ()
        before = {number: signal.signal(number, self._remember) for number in (*STOPPING, *started)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self._received = number


class StopAgreement:
    """Whether any of several processes was told to stop, answered at the same step in all of them.

    On a GPU the answer is read some steps later, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def ask(self, told: bool, device: torch.device) -> bool:
        """Called by every process of the group after each step, with the device on which it trains.

        Args:
            told: whether this process was.
            device: of the group's tensors.
        """
        answer = torch.full((1,), int(told), device=device, dtype=torch.int32)
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        if device.type != "cuda":
            return bool(answer)
        arrived, copy = torch.cuda.Event(), torch.empty(1, dtype=torch.int32, pin_memory=True)
        copy.copy_(answer, non_blocking=True)
        arrived.record()
        self._answers.append((copy, arrived))
        if len(self._answers) <= _LAG:
            return False
        copy, arrived = self._answers.popleft()
        arrived.synchronize()
        return bool(copy)


def leave_stopping_to_the_main_process(_: int) -> None:
    """For workers of a data loader: a signal to the whole job must not take the batches away before the last step.

    Their processes need :func:`end_with_this_process`.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_with_this_process(workers: Sequence[BaseProcess]) -> None:
    """Workers that ignore signals are killed when this process ends, in whatever way.

    At its end ``multiprocessing`` sends SIGTERM to those that are left, after an error for instance, and then waits
    for them: for ever, if they ignore it.
    """
    util.Finalize(None, _kill, args=(tuple(workers),), exitpriority=10)


def _kill(workers: Sequence[BaseProcess]) -> None:
    alive = [worker for worker in workers if worker.is_alive()]
    if alive and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each of them
    for worker in alive:
        worker.kill()
