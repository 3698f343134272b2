"""What a run will cost: from real steps, scaled by what the recipe says, with nothing left behind."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nnssl_mae.training.cost import Cost, Memory, pretraining_cost

MEASURED = Cost(
    step_seconds=0.9, wait_seconds=0.1, validation_seconds=8.0, steps=1000, epochs=10, batch=8,
    checkpoint_bytes=10**9, memory=Memory(fixed=2.0, peak=10.0),
)  # fmt: skip


@pytest.mark.parametrize(("processes", "seconds", "memory"), [(1, 1080, 10), (4, 270, 4), (8, 135, 3)])
def test_patches_are_shared_and_weights_are_not(processes: int, seconds: float, memory: float) -> None:
    assert MEASURED.seconds(processes) == pytest.approx(seconds)
    assert MEASURED.bytes_on_device(processes) == pytest.approx(memory)


def test_a_batch_is_shared_by_whole_patches() -> None:
    assert MEASURED.seconds(3) == pytest.approx(1000 * 3 / 8 + 80 / 3)


def test_it_takes_real_steps_and_keeps_nothing(prepared: Path, nnunet_folders: Path) -> None:
    before = sorted(nnunet_folders.rglob("*"))
    console = Console(file=io.StringIO(), width=200)
    cost = pretraining_cost("Dataset900_Brains", "nnsslMAEPlans", torch.device("cpu"), console)
    assert (cost.steps, cost.epochs, cost.batch, cost.memory) == (9, 3, 2, None)
    assert cost.step_seconds > 0 and cost.validation_seconds > 0
    assert sorted(nnunet_folders.rglob("*")) == before
    said = console.file.getvalue()
    assert "tiny: 9 steps of 2 patches in 3 epochs" in said
    assert "the batch of 2 cannot be shared" in said
    assert "extrapolated" in said
