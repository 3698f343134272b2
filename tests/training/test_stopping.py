"""A cluster takes its machine back: the run ends after the step at work, and continued it is as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as torch_processes

from nnssl_mae.stopping import STOPPING, StopAgreement, StopSignal
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.training.trainers import assert_same_weights, make_trainer, weights

LOGGED = ("train_losses", "val_losses", "psnr", "r2", "lrs")
SECONDS = 120
STEPS = 3  # an epoch


def told_during(trainer: nnUNetTrainerMAE, method: str, epoch: int, number: int, whole_job: bool) -> None:
    """The signal comes while the second call of a method in an epoch is at work."""
    work: Callable = getattr(trainer, method)
    calls = []

    def with_signal(batch):
        calls.append(trainer.current_epoch)
        if calls.count(epoch) == 2 and calls[-1] == epoch:
            for worker in multiprocessing.active_children() if whole_job else ():
                os.kill(worker.pid, number)
            os.kill(os.getpid(), number)
        return work(batch)

    setattr(trainer, method, with_signal)


@pytest.mark.parametrize(
    ("number", "method", "epoch", "workers"),
    [
        (signal.SIGTERM, "train_step", 0, "0"),
        (signal.SIGUSR1, "train_step", 2, "2"),
        (signal.SIGTERM, "validation_step", 1, "0"),
    ],
)
def test_a_signal_ends_the_run_after_the_step_at_work_and_nothing_is_lost(
    prepared: Path,
    pretrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    method: str,
    epoch: int,
    workers: str,
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    before = signal.getsignal(number)
    stopped = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    told_during(stopped, method, epoch, number, whole_job=workers != "0")
    with pytest.raises(SystemExit) as ended:
        stopped.run_training()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before
    latest = Path(stopped.output_folder, "checkpoint_latest.pth")
    content = torch.load(latest, weights_only=True)
    assert content["current_epoch"] == content["nnssl_mae"]["epochs_done"] == epoch
    done = 2 if method == "train_step" else STEPS
    assert len(content["nnssl_mae"]["unfinished_epoch"]) == done

    resumed = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    resumed.load_checkpoint(str(latest))
    trained = []
    step = resumed.train_step
    resumed.train_step = lambda batch: trained.append(batch["step"]) or step(batch)
    resumed.run_training()
    assert trained[0] == ((epoch, done) if done < STEPS else (epoch + 1, 0))
    never_stopped = torch.load(pretrained, weights_only=True)
    assert_same_weights(never_stopped["network_weights"], weights(resumed))
    for key in LOGGED:
        assert never_stopped["logging"][key] == resumed.logger.get_value(key, step=None), key


def test_a_whole_epochs_checkpoint_holds_nothing_of_an_unfinished_one(pretrained: Path) -> None:
    assert "unfinished_epoch" not in torch.load(pretrained, weights_only=True)["nnssl_mae"]


def test_a_new_run_is_never_continued_from_an_earlier_one_in_its_folder(prepared: Path) -> None:
    """``checkpoint_best`` of the earlier run has the higher epoch, and nnU-Net would take its ``checkpoint_final``."""
    earlier = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    earlier.run_training()
    folder = Path(earlier.output_folder)
    new = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    told_during(new, "train_step", 0, signal.SIGTERM, whole_job=False)
    with pytest.raises(SystemExit):
        new.run_training()
    assert {file.name for file in folder.glob("checkpoint_*.pth")} == {"checkpoint_latest.pth"}
    kept = torch.load(folder / "earlier_checkpoint_final.pth", weights_only=True)
    assert kept["current_epoch"] == 3


def test_a_signal_after_the_last_step_leaves_the_final_checkpoint(prepared: Path) -> None:
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    end = trainer.on_train_end
    trainer.on_train_end = lambda: (os.kill(os.getpid(), signal.SIGTERM), end())
    with pytest.raises(SystemExit):
        trainer.run_training()
    assert Path(trainer.output_folder, "checkpoint_final.pth").is_file()


def test_signals_are_heard_inside_only() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    stop = StopSignal()
    with stop.heard():
        assert stop.name is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (stop.name, stop.exit_code) == ("SIGUSR1", 128 + signal.SIGUSR1)
    assert [signal.getsignal(number) for number in STOPPING] == before


def hear(folder: Path) -> None:
    """A process that another one started, as nnU-Net starts one for each GPU."""
    stop = StopSignal()
    with stop.heard():
        os.kill(os.getpid(), signal.SIGINT)
        (folder / "heard.txt").write_text(str(stop.name))


def test_the_end_of_nnunets_launcher_stops_its_processes_after_their_step(tmp_path: Path) -> None:
    """torch sends SIGINT to processes whose starter has died."""
    process = multiprocessing.get_context("spawn").Process(target=hear, args=(tmp_path,))
    process.start()
    process.join(SECONDS)
    assert (tmp_path / "heard.txt").read_text() == "SIGINT"


def agree(rank: int, folder: Path) -> None:
    """One of two processes, of which the second is told in its third step; notes the step at which each stops."""
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    agreement = StopAgreement()
    answers = [agreement.ask(rank == 1 and step == 2, torch.device("cpu")) for step in range(5)]
    (folder / f"{rank}.txt").write_text(str(answers.index(True)))
    dist.destroy_process_group()


def test_all_processes_stop_at_the_same_step_when_one_is_told(tmp_path: Path) -> None:
    context = torch_processes.start_processes(agree, args=(tmp_path,), nprocs=2, join=False, start_method="spawn")
    try:
        finished = context.join(timeout=SECONDS) or context.join(timeout=SECONDS)
    finally:
        for process in context.processes:
            process.kill()
    assert finished
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["2", "2"]


_FAILING = """
import torch
from nnssl_mae.patches.loader import BatchStream
class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index): return index
stream = BatchStream(Numbers(), range(1000), {workers}, False)
next(stream)
{end}
"""


@pytest.mark.parametrize("end", ["raise RuntimeError('out of memory')", "", "raise KeyboardInterrupt"])
def test_a_run_that_fails_ends_although_its_loader_processes_hear_no_signal(end: str) -> None:
    program = _FAILING.format(workers=2, end=end)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode == 0) == (end == "")
    errors = [line for line in ended.stderr.splitlines() if "DataLoader worker" in line or "Exception ignored" in line]
    assert not errors
