import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_mae.errors import UserError
from nnssl_mae.training.state import refuse_changed_plans, write_checkpoint

BEFORE = {"recipe": {"seed": 1, "schedule": {"epochs": 10, "iterations": 5}}, "initialisation": {"sha256": "a"}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "x.pth", {"nnssl_mae": {"version": "1", **BEFORE}})
    return tmp_path / "x.pth"


def test_a_checkpoint_names_no_machine_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "reading-room-pc-17")
    monkeypatch.setattr(os, "getpid", lambda: 987654321)
    write_checkpoint(tmp_path / "x.pth", {"weights": torch.arange(3)})
    content = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pth") as packed:
        content += b"".join(name.encode() + packed.read(name) for name in packed.namelist())
    assert not [word for word in (b"reading-room", b"987654321", b".tmp") if word in content]
    assert torch.equal(torch.load(tmp_path / "x.pth", weights_only=True)["weights"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_the_same_plans_may_go_on_and_a_run_may_get_longer(checkpoint: Path) -> None:
    refuse_changed_plans(checkpoint, BEFORE)
    longer = {**BEFORE["recipe"], "schedule": {"epochs": 20, "iterations": 5}, "a_newer_key": 1}
    refuse_changed_plans(checkpoint, {**BEFORE, "recipe": longer})


def test_other_plans_are_refused_with_the_keys(checkpoint: Path) -> None:
    other = {**BEFORE["recipe"], "seed": 2}
    with pytest.raises(UserError, match=r"x\.pth belongs to a run with other plans: recipe\.seed changed since"):
        refuse_changed_plans(checkpoint, {**BEFORE, "recipe": other})
    with pytest.raises(UserError, match="initialisation changed since"):
        refuse_changed_plans(checkpoint, {**BEFORE, "initialisation": None})


def test_checkpoints_of_others_are_left_to_nnunet(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "_best_ema": np.float64(0.5)}, tmp_path / "y.pth")
    refuse_changed_plans(tmp_path / "y.pth", BEFORE)
