"""What a whole pre-training will cost: a few real steps, scaled up."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from rich.console import Console
from rich.table import Table

from nnssl_mae.folders import environment
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.progress import duration, track
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE

_STEPS, _WARM_UP = 10, 3
_VALIDATED = 3
_CHECKPOINTS = 3  # final, best, latest
_PROCESSES = (1, 4, 8)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    fixed: float
    """Weights, gradients and what the optimiser keeps, before a step."""
    peak: float
    """The most that a step held."""


@dataclass(frozen=True)
class Cost:
    """What was measured on this machine with the whole batch, and how much of it a run needs."""

    step_seconds: float
    """Median of a step whose batch is there."""
    wait_seconds: float
    """Median of the wait for the next batch while steps run."""
    validation_seconds: float
    """Of all validation of an epoch."""
    steps: int
    """Of the run."""
    epochs: int
    batch: int
    checkpoint_bytes: int
    memory: Memory | None
    """None on a CPU."""

    def seconds(self, processes: int) -> float:
        """Of the run on so many devices of this kind, by whole patches of the batch; their talk costs nothing here."""
        share = math.ceil(self.batch / processes) / self.batch
        step = self.step_seconds * share + self.wait_seconds * share
        return self.steps * step + self.epochs * self.validation_seconds / processes

    def bytes_on_device(self, processes: int) -> float | None:
        """The most that each of so many devices holds."""
        if self.memory is None:
            return None
        share = math.ceil(self.batch / processes) / self.batch
        return self.memory.fixed + (self.memory.peak - self.memory.fixed) * share


def pretraining_cost(dataset: str, plans_name: str, device: torch.device, console: Console) -> Cost:
    """Takes a few steps of the real run, with its loader, and tells what all of it takes. Nothing is kept.

    Args:
        dataset: ``Dataset900_Brains``.
        plans_name: plans with our configuration.
        device: to train on.
        console: for progress and the result.
    """
    with tempfile.TemporaryDirectory() as results, environment(nnUNet_results=results):
        with _silent():
            trainer = get_trainer_from_args(
                dataset, CONFIGURATION, "all", nnUNetTrainerMAE.__name__, plans_name, False, device
            )
            trainer.on_train_start()
            trainer.on_train_epoch_start()
        try:
            cost = _measured(trainer, console)
        finally:
            trainer.dataloader_train.close()
            trainer.dataloader_val.close()
    _print(cost, trainer, console)
    return cost


def _measured(trainer: Any, console: Console) -> Cost:
    waits, steps = [], []
    fixed = 0.0
    whole_run = trainer.num_epochs * trainer.num_iterations_per_epoch
    count = min(_WARM_UP + _STEPS, whole_run)
    warm_up = min(_WARM_UP, count - 1)
    for number in track(range(count), "Steps", count, console):
        if number == warm_up:
            fixed = _start_of_memory(trainer.device)
        batch, wait = _timed(lambda: next(trainer.dataloader_train), trainer.device)
        _, step = _timed(partial(trainer.train_step, batch), trainer.device)
        if number >= warm_up:
            waits.append(wait)
            steps.append(step)
    memory = None
    if trainer.device.type == "cuda":
        memory = Memory(fixed, torch.cuda.max_memory_allocated(trainer.device))
    return Cost(
        statistics.median(steps),
        statistics.median(waits),
        _validation_seconds(trainer),
        whole_run,
        trainer.num_epochs,
        trainer.configuration_manager.batch_size,
        _checkpoint_bytes(trainer),
        memory,
    )


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    start = perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, perf_counter() - start


def _start_of_memory(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return float(torch.cuda.memory_allocated(device))


def _validation_seconds(trainer: Any) -> float:
    trainer.network.eval()
    times = []
    with torch.no_grad():
        for _ in range(min(1 + _VALIDATED, trainer.num_val_iterations_per_epoch)):
            batch = next(trainer.dataloader_val)
            times.append(_timed(partial(trainer.validation_step, batch), trainer.device)[1])
    return statistics.median(times[1:] or times) * int(trainer.num_val_iterations_per_epoch) if times else 0.0


def _checkpoint_bytes(trainer: Any) -> int:
    file = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    return file.stat().st_size


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """nnU-Net prints its plans and citation."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print(cost: Cost, trainer: Any, console: Console) -> None:
    kind = "GPU" if cost.memory else "CPU"
    table = Table(f"{kind}s", "patches each", "time", f"{kind}-hours", f"memory of a {kind}")
    for processes in _PROCESSES:
        table.add_row(*_row(cost, processes))
    name = torch.cuda.get_device_name(trainer.device) if cost.memory else "this CPU"
    waiting = cost.wait_seconds / (cost.wait_seconds + cost.step_seconds)
    for line in (
        f"{trainer.recipe.name}: {cost.steps:,} steps of {cost.batch} patches in {cost.epochs:,} epochs",
        f"On {name}: {1000 * cost.step_seconds:.0f} ms a step, of every step's time {waiting:.0%} is waiting for the "
        f"batch; {duration(cost.validation_seconds)} of validation an epoch",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    disk = _CHECKPOINTS * cost.checkpoint_bytes / 1e9
    for line in (
        f"Disk: {disk:.2g} GB for {_CHECKPOINTS} checkpoints; volumes are not in it.",
        f"All of it is extrapolated from a few steps on one {kind}. Several are taken to be alike, with as many "
        "processes that load batches each; the time in which they talk to each other is not in it.",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if cost.memory is None:
        console.print("A GPU is many times faster: measure there with --device cuda.", soft_wrap=True)


def _row(cost: Cost, processes: int) -> tuple[str, ...]:
    if processes > cost.batch:
        return str(processes), "-", f"the batch of {cost.batch} cannot be shared", "-", "-"
    seconds, memory = cost.seconds(processes), cost.bytes_on_device(processes)
    return (
        str(processes),
        str(math.ceil(cost.batch / processes)),
        duration(seconds),
        f"{processes * seconds / 3600:,.1f}",
        "-" if memory is None else f"{memory / 2**30:.1f} GiB",
    )
