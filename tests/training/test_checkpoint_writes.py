"""There is no moment without a whole checkpoint, and every one of them can be read."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from nnssl_mae.training.state import write_checkpoint

KILLS = 20
VALUES = 2_000_000  # 8 MB, some milliseconds to write


def write_for_ever(path: Path, first: int) -> None:
    """Checkpoints whose every number is how many were written before."""
    number = first
    while True:
        write_checkpoint(path, {"epoch": number, "weights": torch.full((VALUES,), float(number))})
        number += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times_while_writing_it_leaves_a_whole_checkpoint_each_time(tmp_path: Path) -> None:
    path, rng = tmp_path / "checkpoint_latest.pth", random.Random(0)
    write_checkpoint(path, {"epoch": 0, "weights": torch.zeros(VALUES)})
    torn, last = 0, 0
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(path, last + 1)
            finally:
                os._exit(1)
        time.sleep(0.05 + rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = torch.load(path, weights_only=True)
        assert content["epoch"] >= last
        assert (content["weights"] == content["epoch"]).all()
        last = content["epoch"]
        torn += len(list(tmp_path.iterdir())) > 1
    assert last > 0 and torn > 0, "no kill met a write"
    write_checkpoint(path, {"epoch": last + 1, "weights": torch.zeros(1)})
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "what a killed write left goes with the next one"
