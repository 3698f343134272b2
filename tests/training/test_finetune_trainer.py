import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.downstream.adapt import adapt
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.finetuning import finetune_recipe, load_finetune_recipe
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
        adapt(checkpoint, 4, "Treatment", finetune_recipe(False, 4, 2), Wish(part="encoder", batch=2))
        adapt(checkpoint, 4, "Control", finetune_recipe(True, 4, 2), Wish(part=None, batch=2))
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
    return Path(made.log_file).read_text(encoding="utf-8")


def test_a_fresh_run_starts_from_the_pretrained_encoder_and_says_what_it_took(dataset: Path) -> None:
    run = trainer(dataset)
    maybe_load_checkpoint(run, continue_training=False, validation_only=False)
    run.on_train_start()
    state = run.network.state_dict()
    for name, tensor in safetensors.torch.load_file(dataset / "Treatment_init.safetensors").items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[f"decoder.{name}"], tensor)
    log = log_of(run)
    assert "encoder of checkpoint_final.pth (nnssl_mae, tiny, 3 epochs" in log
    assert "loaded and adapted, 1 of " in log
    assert "encoder.stem (1): " in log
    assert "left random" in log
    assert "decoder.transpconvs.0 (" in log
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
    run.logger.plot_progress_png = lambda folder: None  # takes longer than the epoch
    return run


def set_recipe(dataset: Path, name: str, epochs: int, changes: Sequence[str] = (), plans: str = "Treatment") -> None:
    """Replaces the fine-tuning recipe in plans, as ``adapt --schedule`` would have written it."""
    file = dataset / f"{plans}.json"
    content = json.loads(file.read_text())
    block = content["configurations"][CONFIGURATION]["nnssl_mae"]
    block["recipe"] = load_finetune_recipe(name, epochs, 2, changes).model_dump(mode="json")
    file.write_text(json.dumps(content))


def encoder_weights(run: nnUNetTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights(run).items() if name.startswith("encoder.")}


def interrupted_at(run: nnUNetTrainerMAEFinetune, epoch: int) -> None:
    """Runs until the second step of this epoch, and dies there."""
    step, taken = run.train_step, []

    def die(batch):
        if run.current_epoch == epoch and len(taken) % 2 == 1:
            raise Interrupted
        taken.append(run.current_epoch)
        return step(batch)

    run.train_step = die
    with pytest.raises(Interrupted):
        run.run_training()


def resumed(dataset: Path) -> nnUNetTrainerMAEFinetune:
    """What ``--c`` makes."""
    run = with_fixed_batches(trainer(dataset))
    maybe_load_checkpoint(run, continue_training=True, validation_only=False)
    return run


TEETH = ["decoder_rise_epochs=2", "decoder_fall_epochs=2", "warmup_epochs=2"]


@pytest.mark.parametrize(
    ("name", "changes", "epochs", "interruptions"),
    [
        ("warmup", [], 4, [2]),
        ("sawtooth", TEETH, 8, [1, 3, 5, 7]),  # the second epoch of each phase
        ("sawtooth", TEETH, 8, [2, 4, 6]),  # the first of each but the first
        ("valley", ["optimiser=adamw", "layer_decay=0.5", "decay=cosine"], 6, [1, 2]),
        ("frozen", [], 3, [1]),
    ],
)
def test_a_run_that_died_in_any_phase_continues_as_if_it_had_not(
    dataset: Path, name: str, changes: list[str], epochs: int, interruptions: list[int]
) -> None:
    set_recipe(dataset, name, epochs, changes)
    torch.manual_seed(0)
    whole = with_fixed_batches(trainer(dataset))
    whole.run_training()

    for epoch in interruptions:
        # --c would prefer what an earlier run has finished.
        shutil.rmtree(whole.output_folder)
        torch.manual_seed(0)
        interrupted_at(with_fixed_batches(trainer(dataset)), epoch)
        source = dataset / "Treatment_init.safetensors"
        source.rename(source.with_suffix(".gone"))  # not needed any more
        again = resumed(dataset)
        assert again.current_epoch == epoch
        again.run_training()
        source.with_suffix(".gone").rename(source)

        assert_same_weights(weights(whole), weights(again))
        for one, other in zip(whole.optimizer.param_groups, again.optimizer.param_groups, strict=True):
            assert {**one, "params": None} == {**other, "params": None}
            for tensor, its_other in zip(one["params"], other["params"], strict=True):
                state, other_state = whole.optimizer.state.get(tensor, {}), again.optimizer.state.get(its_other, {})
                assert state.keys() == other_state.keys()
                assert all(torch.equal(state[key], other_state[key]) for key in state)
        assert whole.logger.get_value("lrs", step=None) == again.logger.get_value("lrs", step=None)


def test_the_encoder_stands_still_in_the_first_tooth_and_the_log_says_so(dataset: Path) -> None:
    set_recipe(dataset, "sawtooth", 5)
    run = with_fixed_batches(trainer(dataset))
    encoders = []
    step = run.train_step

    def remember(batch):
        encoders.append((run.current_epoch, encoder_weights(run)))
        return step(batch)

    run.train_step = remember
    run.run_training()
    start = encoders[0][1]
    still = [epoch for epoch, encoder in encoders if all(torch.equal(start[name], encoder[name]) for name in start)]
    assert still == [0, 0, 1, 1, 2]  # before each step, so up to the first of the whole network
    log = log_of(run)
    for line in (
        "Phase 1 of 4, decoder warm-up, epochs 0 to 0: trains the decoder only",
        "Phase 2 of 4, decoder decay, epochs 1 to 1: trains the decoder only",
        "Phase 3 of 4, warm-up, epochs 2 to 2: trains the whole network",
        "Phase 4 of 4, decay, epochs 3 to 4: trains the whole network; learning rate 0.001 to 0.000536",
        "Learning rates of epoch 0: decoder 0.001, encoder 0",
        "Learning rates of epoch 3: decoder 0.001, encoder 0.001",
    ):
        assert log.count(line) == 1, line


def test_a_frozen_encoder_ends_as_it_was_pretrained(dataset: Path) -> None:
    set_recipe(dataset, "frozen", 3)
    run = with_fixed_batches(trainer(dataset))
    run.run_training()
    pretrained = safetensors.torch.load_file(dataset / "Treatment_init.safetensors")
    content = torch.load(Path(run.output_folder, "checkpoint_final.pth"), weights_only=True)
    for name, tensor in pretrained.items():
        assert torch.equal(content["network_weights"][name], tensor)


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("warmup", ["momentum=0.5", "weight_decay=0.01"], torch.optim.SGD),
        ("amaes_finetuning", [], torch.optim.AdamW),
        ("sawtooth", ["layer_decay=0.5"], torch.optim.SGD),
    ],
)
def test_the_optimiser_is_that_of_the_recipe_and_stock_reads_its_state(dataset: Path, name, changes, kind) -> None:
    set_recipe(dataset, name, 4, changes)
    run = with_fixed_batches(trainer(dataset))
    run.num_epochs = 2
    run.run_training()
    assert type(run.optimizer) is kind
    for group in run.optimizer.param_groups:
        assert group["weight_decay"] == run.recipe.weight_decay
        assert group.get("momentum", run.recipe.momentum) == run.recipe.momentum

    file = str(Path(run.output_folder, "checkpoint_final.pth"))
    torch.load(file, weights_only=True)
    stock = make_trainer(nnUNetTrainer, dataset, "Treatment")
    stock.load_checkpoint(file)
    theirs = dict(stock.network.named_parameters())
    remembered = 0
    for tensor_name, tensor in run.network.named_parameters():
        for key, value in run.optimizer.state.get(tensor, {}).items():
            assert torch.equal(stock.optimizer.state[theirs[tensor_name]][key], value)
            remembered += 1
    assert remembered > 0


# ---------------------------------------------------------------------- early stop


def with_dice(run: nnUNetTrainerMAEFinetune, dice: Sequence[float]) -> nnUNetTrainerMAEFinetune:
    """Logs these pseudo Dice values, one an epoch, whatever the network does."""
    finish = run.on_validation_epoch_end

    def on_validation_epoch_end(outputs):
        finish(outputs)
        # The moving average, too, takes these values as they are.
        for key in ("mean_fg_dice", "ema_fg_dice"):
            run.logger.local_logger.my_fantastic_logging[key][-1] = dice[run.current_epoch]

    run.on_validation_epoch_end = on_validation_epoch_end
    return run


def test_a_run_stops_after_patience_epochs_without_a_new_best_and_stays_stopped(dataset: Path) -> None:
    set_recipe(dataset, "default", 10, ["patience=3"])
    dice = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9, 0.9, 0.9, 0.9, 0.9]  # best in epoch 1; its equal in epoch 3 is no new best
    run = with_dice(with_fixed_batches(trainer(dataset)), dice)
    run.run_training()
    assert run.current_epoch == 5
    reason = "Stopped early after 5 of 10 epochs"
    assert log_of(run).count(reason) == 1
    names = {path.name for path in Path(run.output_folder).glob("checkpoint*")}
    assert names == {"checkpoint_final.pth", "checkpoint_best.pth"}
    final = torch.load(Path(run.output_folder, "checkpoint_final.pth"), weights_only=True)
    assert final["current_epoch"] == 5
    assert_same_weights(weights(run), final["network_weights"])

    again = with_dice(resumed(dataset), dice)
    again.run_training()
    assert again.current_epoch == 5
    assert_same_weights(weights(run), weights(again))
    assert reason in log_of(again)
    assert len(again.logger.get_value("lrs", step=None)) == 5


def test_early_phases_never_end_a_run(dataset: Path) -> None:
    set_recipe(dataset, "sawtooth", 9, [*TEETH, "patience=2"])
    run = with_dice(with_fixed_batches(trainer(dataset)), [0.5] + [0.1] * 8)
    run.run_training()
    assert run.current_epoch == 8  # two epochs of the decay, which begins at 6


def test_without_patience_or_with_a_rising_dice_a_run_goes_to_its_end(dataset: Path) -> None:
    for patience, dice in (("null", [0.5, 0.1, 0.1, 0.1]), ("1", [0.1, 0.2, 0.3, 0.4])):
        set_recipe(dataset, "default", 4, [f"patience={patience}"])
        run = with_dice(with_fixed_batches(trainer(dataset)), dice)
        run.run_training()
        assert run.current_epoch == 4
        assert "Stopped early" not in log_of(run)


# ---------------------------------------------------------------------- augmentation


def transforms_of(run: nnUNetTrainerMAEFinetune) -> list[BasicTransform]:
    """As stock asks for them when it makes its loaders; with everything that a dataset can need."""
    rotation, dummy_2d, _, mirror_axes = run.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    made = run.get_training_transforms(
        (32, 32, 32), rotation, [[1.0] * 3, [0.5] * 3], mirror_axes, dummy_2d, use_mask_for_norm=[True, False],
        is_cascaded=True, foreground_labels=[1, 2], regions=[[1, 2], [2]], ignore_label=3,
    )  # fmt: skip
    assert isinstance(made, ComposeTransforms)
    return list(made.transforms)


def names_of(transforms: list[BasicTransform]) -> list[str]:
    return [type(t.transform if isinstance(t, RandomTransform) else t).__name__ for t in transforms]


def test_spatial_augmentation_keeps_rotation_and_scaling_and_whatever_is_no_augmentation(dataset: Path) -> None:
    full = names_of(transforms_of(trainer(dataset)))
    set_recipe(dataset, "amaes_finetuning", 4)
    run = trainer(dataset)
    made = transforms_of(run)
    assert names_of(made) == [
        "SpatialTransform",
        "MaskImageTransform",
        "RemoveLabelTransform",
        "MoveSegAsOneHotToDataTransform",
        "ApplyRandomBinaryOperatorTransform",
        "RemoveRandomConnectedComponentFromOneHotEncodingTransform",
        "ConvertSegmentationToRegionsTransform",
        "DownsampleSegForDSTransform",
    ]
    assert set(full) - set(names_of(made)) == {
        "GaussianNoiseTransform",
        "GaussianBlurTransform",
        "MultiplicativeBrightnessTransform",
        "ContrastTransform",
        "SimulateLowResolutionTransform",
        "GammaTransform",
        "MirrorTransform",
    }
    assert (made[0].p_rotation, made[0].p_scaling) == (0.2, 0.2)
    assert run.inference_allowed_mirroring_axes is None


def test_spatial_augmentation_makes_real_batches_and_its_model_is_not_mirrored_in_prediction(dataset: Path) -> None:
    set_recipe(dataset, "amaes_finetuning", 4)
    run = trainer(dataset)
    run.on_train_start()
    batch = next(run.dataloader_train)
    assert batch["data"].shape == (2, 2, 32, 32, 32)
    assert set(batch["target"].unique().tolist()) <= {0, 1, 2}
    run.save_checkpoint(str(Path(run.output_folder, "checkpoint_final.pth")))
    content = torch.load(Path(run.output_folder, "checkpoint_final.pth"), weights_only=True)
    assert content["inference_allowed_mirroring_axes"] is None


_PREDICT = """
import sys
sys.modules["nnssl_mae"] = None  # as if it were not installed
import numpy, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], ("all",))
predictor.network.load_state_dict(predictor.list_of_parameters[0])
logits = predictor.predict_sliding_window_return_logits(torch.ones(2, 32, 32, 32))
assert torch.isfinite(logits).all() and logits.shape[0] == 3
assert predictor.allowed_mirroring_axes is None
"""


def test_the_model_predicts_where_this_package_is_not_installed(dataset: Path) -> None:
    set_recipe(dataset, "sawtooth", 4, ["optimiser=adamw", "augmentation=spatial", "layer_decay=0.5"])
    run = trainer(dataset)
    run.on_train_start()
    run.save_checkpoint(str(Path(run.output_folder, "checkpoint_final.pth")))
    environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    command = [sys.executable, "-c", _PREDICT, run.output_folder_base]
    subprocess.run(command, check=True, env=environment)


# ---------------------------------------------------------------------- validation and errors


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


def test_preprocessing_that_was_cut_off_stops_with_a_sentence(dataset: Path) -> None:
    made = trainer(dataset)
    properties = sorted(Path(made.preprocessed_dataset_folder).glob("*.pkl"))
    assert len(properties) == 2
    properties[0].unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 cases.*nnUNetv2_preprocess -d 004 -plans_name Treatment"):
        made.initialize()
