"""What only a GPU can show. Skipped elsewhere; the same code runs on CPU in the other tests."""

from pathlib import Path

import pytest
import torch

from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.training.trainers import make_trainer

pytestmark = pytest.mark.gpu


def cuda_trainer(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> nnUNetTrainerMAE:
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans", device=torch.device("cuda"))
    assert isinstance(trainer, nnUNetTrainerMAE)
    trainer.on_train_start()
    return trainer


def test_a_step_never_waits_for_the_device(prepared: Path, monkeypatch) -> None:
    trainer = cuda_trainer(prepared, monkeypatch)
    on_device = trainer._on_device(next(trainer.dataloader_train))
    trainer.train_step(on_device)  # the first step chooses algorithms and creates the optimiser's state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_half_precision_loss_is_close_to_single_precision_on_cpu(prepared: Path, monkeypatch) -> None:
    trainer = cuda_trainer(prepared, monkeypatch)
    reference = make_trainer(nnUNetTrainerMAE, prepared, "nnsslMAEPlans")
    reference.initialize()
    reference.network.load_state_dict({k: v.cpu() for k, v in trainer.network.state_dict().items()})
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        half, single = (
            made.loss(made._reconstruct(on), on["data"], on["hidden"], excluded=on.get("excluded")).item()
            for made in (trainer, reference)
            for on in [made._on_device(batch)]
        )
    assert half == pytest.approx(single, rel=5e-3)


def test_a_whole_run_on_cuda_learns(prepared: Path, monkeypatch) -> None:
    trainer = cuda_trainer(prepared, monkeypatch)
    trainer.run_training()
    trainer.perform_actual_validation()
    losses = trainer.logger.get_value("train_losses", step=None)
    assert losses[-1] < losses[0]
