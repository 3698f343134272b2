"""Every preset in tiny form: the method as published, two steps, into a labelled task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.downstream.adapt import adapt
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.masking import hidden_voxels
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.finetuning import finetune_recipe
from nnssl_mae.scans.planning import write_plans_for
from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from tests.labelled import write_labelled_with_plans
from tests.presets import PRESETS, tiny_preset
from tests.training.trainers import make_trainer


@pytest.fixture(scope="module")
def folders(_prepared_once: Path, tmp_path_factory: pytest.TempPathFactory):
    """nnU-Net's folders with the tiny unlabelled dataset and a labelled one; shared, so that it is prepared once."""
    folders = tmp_path_factory.mktemp("presets")
    prepared = folders / "preprocessed" / "Dataset900_Brains"
    prepared.parent.mkdir()
    source = _prepared_once / "preprocessed" / "Dataset900_Brains"
    prepared.symlink_to(_copy(source, folders / "unlabelled"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folders / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        write_labelled_with_plans(folders, prepared)
        yield folders


def _copy(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_adapts_and_fine_tunes(folders: Path, name: str) -> None:
    recipe = tiny_preset(name)
    unlabelled, labelled = (folders / "preprocessed" / d for d in ("Dataset900_Brains", "Dataset004_Tiny"))
    trainer = make_trainer(nnUNetTrainerMAE, unlabelled, write_plans_for(unlabelled, recipe, None))
    trainer.on_train_start()
    no_leak(trainer)
    trainer.run_training()

    checkpoint = read_checkpoint(Path(trainer.output_folder, "checkpoint_final.pth"))
    assert checkpoint.origin.method == name
    result = adapt(checkpoint, 4, f"Tuned_{name}", finetune_recipe(False, 2, 2), Wish("encoder", batch=2))
    if not (labelled / result.configuration["data_identifier"]).is_dir():
        preprocess([4], result.plans_name, (CONFIGURATION,), num_processes=(1,))
    tuned = make_trainer(nnUNetTrainerMAEFinetune, labelled, result.plans_name)
    maybe_load_checkpoint(tuned, continue_training=False, validation_only=False)
    tuned.num_epochs = 1
    tuned.run_training()
    (log,) = Path(tuned.output_folder).glob("training_log*.txt")
    (left_random,) = [line for line in log.read_text().splitlines() if "left random" in line]
    assert "encoder" not in left_random
    assert torch.isfinite(torch.tensor(tuned.logger.get_value("train_losses", step=-1)))


def test_a_packed_encoder_trains_as_the_masked_one(folders: Path) -> None:
    """The same losses, and the trainer itself says how many blocks of its batches are visible."""
    unlabelled = folders / "preprocessed" / "Dataset900_Brains"
    losses, counts = {}, []
    for sparse in (True, "packed"):
        recipe = tiny_preset("s3d")
        recipe = recipe.model_copy(update={"network": recipe.network.model_copy(update={"sparse": sparse})})
        trainer = make_trainer(nnUNetTrainerMAE, unlabelled, write_plans_for(unlabelled, recipe, f"Sparse{sparse}"))
        trainer.on_train_start()
        if sparse == "packed":
            given = trainer.network.forward
            trainer.network.forward = lambda *a, given=given: counts.append(a) or given(*a)
        trainer.run_training()
        losses[sparse] = [trainer.logger.get_value(key, step=None) for key in ("train_losses", "val_losses")]
    np.testing.assert_allclose(losses["packed"], losses[True], rtol=1e-4)
    assert counts and all(count == int((~hidden).sum()) for _, hidden, count in counts)


def no_leak(trainer: nnUNetTrainerMAE) -> None:
    """Other values in hidden voxels of the augmented volume change nothing that the network computes, exactly."""
    batch = next(trainer.dataloader_train)
    network = trainer.network.double().eval()
    volumes, hidden = batch["data"].double(), batch["hidden"]
    mask = hidden_voxels(hidden, volumes.shape[2:])
    assert mask.any()
    changed = torch.where(mask, volumes.flip(2) + 3, volumes)
    assert not torch.equal(changed, volumes)
    with torch.no_grad():
        one, other = (network.hide(v, hidden) for v in (volumes, changed))
        assert torch.equal(one, other)
        for ours, theirs in zip(network.encode(one, hidden), network.encode(other, hidden), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(network(volumes, hidden), network(changed, hidden))
    trainer.network.float()
