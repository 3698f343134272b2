"""Second tier: torchrun with four processes, as one machine or two, killed and stopped in the middle.

gloo on the CPU stands for several GPUs, and two launchers on one machine for two machines: there are no others here.
Whatever happens on the way, the weights are those of a run to which nothing happened.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import TINY_RECIPE
from tests.end_to_end.shell import Shell
from tests.tiny_scans import write_unlabelled

pytestmark = [pytest.mark.end_to_end, pytest.mark.soak]
EPOCHS, STEPS = 3, 40
SCHEDULE = {
    "epochs": EPOCHS,
    "iterations": STEPS,
    "validation_cases": 5,
    "checkpoint_every": 1,
    "preview_every": EPOCHS,
}
RUN = "Dataset900_Brains/nnUNetTrainerMAE__nnsslMAEPlans__3d_fullres_mae/fold_all"
PRETRAIN = ("-m", "nnssl_mae", "pretrain", "-d", "900", "--device", "cpu")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("processes")
    write_unlabelled(folder / "scans", count=8)
    recipe = TINY_RECIPE | {"network": TINY_RECIPE["network"] | {"batch_size": 4}, "schedule": SCHEDULE}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    shell = Shell(folder)
    shell.environment |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}
    shell("nnssl-mae", "prepare", folder / "scans", "-d", 900, "-n", "Brains", "--recipe", "tiny.yaml",
          "--spacing", 4, 4, 4, "-np", 2)  # fmt: skip
    return shell


@pytest.fixture
def fold(shell: Shell, tmp_path: Path) -> Path:
    """Where the run of a test leaves its files."""
    shell.environment["nnUNet_results"] = str(tmp_path)
    return tmp_path / RUN


@pytest.fixture(scope="module")
def undisturbed(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run of four processes to which nothing happens."""
    results = tmp_path_factory.mktemp("undisturbed")
    shell.environment["nnUNet_results"] = str(results)
    shell("torchrun", "--nproc-per-node", 4, *PRETRAIN)
    return final_weights(results / RUN)


def final_weights(fold: Path) -> dict[str, torch.Tensor]:
    content = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert content["current_epoch"] == EPOCHS
    return content["network_weights"]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=name)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]


def process_of_rank(rank: int, parent: int) -> int:
    """The process that the launcher started with this rank."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in status.read_text()
            environment = (status.parent / "environ").read_bytes().split(b"\0") if is_child else []
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if f"RANK={rank}".encode() in environment:
            return int(status.parent.name)
    raise AssertionError(f"{parent} has no process of rank {rank}")


def test_two_machines_with_two_processes_each_are_one_with_four(shell: Shell, fold: Path, undisturbed) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    launch = ("--nnodes", 2, "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting,
              "--rdzv-id", 7, *PRETRAIN)  # fmt: skip
    machines = [shell.start("torchrun", *launch) for _ in range(2)]
    for machine in machines:
        output = machine.communicate()[0]
        assert machine.returncode == 0, output
    assert_same(final_weights(fold), undisturbed)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_killed_process_is_started_again_and_nothing_is_different(
    shell: Shell, fold: Path, undisturbed, rank: int
) -> None:
    launcher = shell.start("torchrun", "--nproc-per-node", 4, "--max-restarts", 1, *PRETRAIN)
    wait_until((fold / "checkpoint_latest.pth").is_file, launcher)
    os.kill(process_of_rank(rank, launcher.pid), signal.SIGKILL)
    output = launcher.communicate()[0]
    assert launcher.returncode == 0, output
    logs = "".join(log.read_text() for log in fold.glob("training_log_*.txt"))
    assert logs.count("processes share the batch") == 2, "it was started twice"
    assert_same(final_weights(fold), undisturbed)


@pytest.mark.parametrize("told", ["all", "one"])
def test_a_signal_stops_all_processes_after_their_step_and_the_run_goes_on_there(
    shell: Shell, fold: Path, undisturbed, told: str
) -> None:
    """Slurm tells the launcher of each machine; the launcher tells its processes."""
    launcher = shell.start("torchrun", "--nproc-per-node", 4, *PRETRAIN)
    wait_until((fold / "checkpoint_latest.pth").is_file, launcher)
    os.kill(launcher.pid if told == "all" else process_of_rank(2, launcher.pid), signal.SIGTERM)
    output = launcher.communicate()[0]
    assert launcher.returncode != 0, output
    content = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    assert 0 < len(content["nnssl_mae"]["unfinished_epoch"]) <= STEPS
    assert not (fold / "checkpoint_final.pth").exists()
    assert "holds all of them; continue with --c" in output
    shell("torchrun", "--nproc-per-node", 4, *PRETRAIN, "--c")
    assert_same(final_weights(fold), undisturbed)
