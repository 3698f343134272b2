import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.downstream.adapt import adapt
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.finetuning import finetune_recipe
from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
from tests.labelled import write_labelled_with_plans
from tests.training.trainers import assert_same_weights, make_trainer, weights


@pytest.fixture(scope="module")
def _adapted_once(_prepared_once: Path, _pretrained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = tmp_path_factory.mktemp("adapted")
    prepared = _prepared_once / "preprocessed" / "Dataset900_Brains"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folders / name))
        write_labelled_with_plans(folders, prepared)
        checkpoint = read_checkpoint(_pretrained_once)
        adapt(checkpoint, 4, "Treatment", finetune_recipe(False, 4, 2), "encoder", batch_size=2)
        adapt(checkpoint, 4, "Control", finetune_recipe(True, 4, 2), None, batch_size=2)
        preprocess([4], "Treatment", (CONFIGURATION,), num_processes=(2,))
    return folders


@pytest.fixture
def dataset(_adapted_once: Path, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed labelled dataset with the plans Treatment and Control, four epochs of two steps."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # stock's worker processes are slow to end
    name = "Dataset004_Tiny"
    return Path(shutil.copytree(_adapted_once / "preprocessed" / name, nnunet_folders / "preprocessed" / name))


def trainer(dataset: Path, plans: str = "Treatment") -> nnUNetTrainerMAEFinetune:
    made = make_trainer(nnUNetTrainerMAEFinetune, dataset, plans)
    assert isinstance(made, nnUNetTrainerMAEFinetune)
    return made


def log_of(made: nnUNetTrainer) -> str:
    return Path(made.log_file).read_text()


def test_a_fresh_run_starts_from_the_pretrained_encoder_and_says_what_it_took(dataset: Path) -> None:
    run = trainer(dataset)
    maybe_load_checkpoint(run, continue_training=False, validation_only=False)
    run.on_train_start()
    state = run.network.state_dict()
    for name, tensor in safetensors.torch.load_file(dataset / "Treatment_init.safetensors").items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[f"decoder.{name}"], tensor)
    log = log_of(run)
    assert "encoder of recipe 'tiny' after 3 epochs" in log
    assert "adapted 1 of them to the input channels: encoder.stem.convs.0.conv.weight" in log
    assert "left random" in log
    assert "decoder.transpconvs (" in log
    assert run.enable_deep_supervision is False


def test_the_control_starts_from_random_weights_and_says_so(dataset: Path) -> None:
    run = trainer(dataset, "Control")
    run.initialize()
    before = weights(run)
    run.on_train_start()
    assert_same_weights(before, weights(run))
    assert "from scratch: no weights are transferred" in log_of(run)


@pytest.mark.parametrize("plans", ["Treatment", "Control"])
def test_other_weights_given_as_well_stop_the_run(dataset: Path, pretrained: Path, plans: str) -> None:
    run = trainer(dataset, plans)
    run.initialize()
    # What nnU-Net's -pretrained_weights does to the network, with weights that fit it.
    state = {name: tensor + 0.1 for name, tensor in run.network.state_dict().items()}
    run.network.load_state_dict(state)
    with pytest.raises(UserError, match="Leave -pretrained_weights out"):
        run.on_train_start()


def test_continue_with_no_checkpoint_yet_starts_from_the_pretrained_weights(dataset: Path) -> None:
    run = trainer(dataset)
    maybe_load_checkpoint(run, continue_training=True, validation_only=False)
    run.on_train_start()
    assert "Pre-trained weights: encoder" in log_of(run)


class Interrupted(Exception):
    pass


class FixedBatches:
    """Delivers one batch a epoch, the same for the same epoch, in the form of the stock loader."""

    def __init__(self, run: nnUNetTrainer) -> None:
        self.run = run

    def __next__(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.run.current_epoch)
        data = torch.randn(2, 2, 32, 32, 32, generator=generator)
        return {"data": data, "target": (data[:, :1] > 0).long() + (data[:, 1:] > 1).long()}


def with_fixed_batches(run: nnUNetTrainerMAEFinetune) -> nnUNetTrainerMAEFinetune:
    run.save_every = 1
    run.get_dataloaders = lambda: (FixedBatches(run), FixedBatches(run))
    return run


def test_continuing_is_equal_in_rate_groups_optimiser_epoch_and_weights(dataset: Path) -> None:
    torch.manual_seed(0)
    whole = with_fixed_batches(trainer(dataset))
    whole.run_training()

    torch.manual_seed(0)
    broken = with_fixed_batches(trainer(dataset))
    step = broken.train_step

    def die(batch):
        if broken.current_epoch == 2:
            raise Interrupted
        return step(batch)

    broken.train_step = die
    with pytest.raises(Interrupted):
        broken.run_training()
    # The finished run left its final checkpoint in the same folder; --c would prefer it.
    Path(broken.output_folder, "checkpoint_final.pth").unlink()
    # From here on the source is not needed any more.
    (dataset / "Treatment_init.safetensors").unlink()

    resumed = with_fixed_batches(trainer(dataset))
    maybe_load_checkpoint(resumed, continue_training=True, validation_only=False)
    assert resumed.current_epoch == 2
    resumed.run_training()

    assert_same_weights(weights(whole), weights(resumed))
    one, other = whole.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for index, state in one["state"].items():
        assert torch.equal(state["momentum_buffer"], other["state"][index]["momentum_buffer"])
    assert whole.logger.get_value("lrs", step=None) == resumed.logger.get_value("lrs", step=None)


def test_validation_alone_works_with_the_source_gone_and_the_result_is_a_stock_model(dataset: Path) -> None:
    run = trainer(dataset)
    run.on_train_start()
    run.save_checkpoint(str(Path(run.output_folder, "checkpoint_final.pth")))
    (dataset / "Treatment_init.safetensors").unlink()
    again = trainer(dataset)
    maybe_load_checkpoint(again, continue_training=False, validation_only=True)
    again.perform_actual_validation()
    assert Path(again.output_folder, "validation", "summary.json").is_file()
    content = torch.load(Path(run.output_folder, "checkpoint_final.pth"), weights_only=True)
    assert content["trainer_name"] == "nnUNetTrainer"


def test_missing_changed_or_damaged_weights_stop_with_a_sentence(dataset: Path) -> None:
    file = dataset / "Treatment_init.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8] + b"12345678")
    with pytest.raises(UserError, match="not the file these plans were written with"):
        trainer(dataset).on_train_start()
    file.unlink()
    with pytest.raises(UserError, match="is missing; it belongs to these plans"):
        trainer(dataset).on_train_start()


def test_forgetting_to_preprocess_is_said_with_the_command(dataset: Path) -> None:
    run = trainer(dataset)
    shutil.rmtree(run.preprocessed_dataset_folder)
    with pytest.raises(UserError, match="nnUNetv2_preprocess -d 004 -plans_name Treatment"):
        run.initialize()


def test_weights_that_do_not_fit_the_network_stop_with_a_sentence(dataset: Path) -> None:
    plans = json.loads((dataset / "Treatment.json").read_text())
    plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 16]
    (dataset / "Treatment.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match="do not fit the network"):
        trainer(dataset).on_train_start()
