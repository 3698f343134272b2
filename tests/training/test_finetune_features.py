"""Everything that nnU-Net's own trainer can do, ours can: labels of all kinds, deep supervision, options, processes."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pickle
import shutil
import types
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import multiprocessing
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.training.finetune_trainer import nnUNetTrainerMAEFinetune
from nnssl_mae.training.mae_trainer import nnUNetTrainerMAE
from nnssl_mae.training.state import bare_network
from tests.training.finetuning_data import (
    LABELS,
    LEFT_RANDOM,
    NAME,
    STEM,
    change_plans,
    set_recipe,
    write_dataset,
)
from tests.training.trainers import assert_same_weights, make_trainer, weights

SECONDS = 240
STOCK = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
EVALUATION = importlib.import_module("nnunetv2.evaluation.evaluate_predictions")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda labels: write_dataset(tmp_path_factory.mktemp("features"), labels))


@pytest.fixture
def make_dataset(
    _written: Callable[[str], Path], nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Copies the dataset with the given kind of labels into nnUNet_preprocessed; returns that folder."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # stock's worker processes are slow to start and to end
    return lambda labels: Path(shutil.copytree(_written(labels), nnunet_folders / "preprocessed" / NAME))


@pytest.fixture
def dataset(make_dataset: Callable[[str], Path]) -> Path:
    """With two plain labels."""
    return make_dataset("labels")


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's final validation exports and measures in threads: starting its processes takes longer than the rest."""
    threads = types.SimpleNamespace(get_context=lambda _: types.SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(STOCK, "multiprocessing", threads)
    monkeypatch.setattr(EVALUATION, "multiprocessing", threads)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot of the progress takes longer than an epoch."""
    logger = importlib.import_module("nnunetv2.training.logging.nnunet_logger")
    monkeypatch.setattr(logger.MetaLogger, "plot_progress_png", lambda self, folder: None)


def trainer(dataset: Path, plans: str = "Treatment", fold: int | str = 0) -> nnUNetTrainerMAEFinetune:
    made = make_trainer(nnUNetTrainerMAEFinetune, dataset, plans, fold)
    assert isinstance(made, nnUNetTrainerMAEFinetune)
    return made


def train(plans: str = "Treatment", fold: str = "0", **options: Any) -> None:
    """What ``nnUNetv2_train 5 3d_fullres_mae FOLD -tr nnUNetTrainerMAEFinetune -p PLANS`` does, with its options."""
    run_training("5", CONFIGURATION, fold, "nnUNetTrainerMAEFinetune", plans, device=CPU, **options)


def model_folder(folders: Path, plans: str = "Treatment") -> Path:
    return folders / "results" / NAME / f"nnUNetTrainerMAEFinetune__{plans}__{CONFIGURATION}"


def logs_of(fold: Path) -> list[str]:
    return [file.read_text() for file in sorted(fold.glob("training_log*.txt"))]


def finished(run: nnUNetTrainer, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    content = torch.load(Path(run.output_folder, name), weights_only=True)
    assert isinstance(content, dict)
    return content


# ---------------------------------------------------------------------- labels and options of nnUNetv2_train


@pytest.mark.parametrize("labels", LABELS)
def test_all_kinds_of_labels_train_and_are_validated(
    make_dataset: Callable[[str], Path], nnunet_folders: Path, in_threads: None, labels: str
) -> None:
    dataset = make_dataset(labels)
    if labels == "regions and ignore":
        set_recipe(dataset, "Treatment", "deep_supervision=true")
    train()
    fold = model_folder(nnunet_folders) / "fold_0"
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == ({"(1, 2)", "2"} if "regions" in labels else {"1", "2"})
    assert len(summary["metric_per_case"]) == 1
    heads = torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert heads["decoder.seg_layers.2.weight"].shape[0] == (2 if "regions" in labels else 3)


def test_the_options_of_nnunets_command_work(
    dataset: Path, nnunet_folders: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(export_validation_probabilities=True)  # --npz
    fold = model_folder(nnunet_folders) / "fold_0"
    (probabilities,) = (fold / "validation").glob("*.npz")
    assert np.load(probabilities)["probabilities"].shape[0] == 3
    final = torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]

    (dataset / "Treatment_init.safetensors").unlink()
    used = []
    validate = nnUNetTrainerMAEFinetune.perform_actual_validation

    def remember(run: nnUNetTrainerMAEFinetune, save_probabilities: bool = False) -> None:
        used.append(weights(run))
        validate(run, save_probabilities)

    monkeypatch.setattr(nnUNetTrainerMAEFinetune, "perform_actual_validation", remember)
    for options in ({"only_run_validation": True}, {"only_run_validation": True, "val_with_best": True}):
        shutil.rmtree(fold / "validation")
        train(**options)
        assert (fold / "validation" / "summary.json").is_file()
    best = torch.load(fold / "checkpoint_best.pth", weights_only=True)["network_weights"]
    assert_same_weights(used[0], final)
    assert_same_weights(used[1], best)

    # --c of what is finished only validates; the weights stay, though the source is gone.
    train(continue_training=True)
    assert_same_weights(used[2], final)
    assert sum("Pre-trained weights" in log for log in logs_of(fold)) == 1


def test_without_checkpoints_and_on_all_cases(dataset: Path, nnunet_folders: Path, in_threads: None) -> None:
    train("Control", "all", disable_checkpointing=True)
    fold = model_folder(nnunet_folders, "Control") / "fold_all"
    assert not list(fold.glob("*.pth"))
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) == 5


def test_pretrained_weights_given_to_the_control_too_are_refused(dataset: Path) -> None:
    weights_file = dataset.parent / "other.pth"
    run = trainer(dataset)
    run.initialize()
    torch.save({"network_weights": {n: t + 0.1 for n, t in run.network.state_dict().items()}}, weights_file)
    for plans in ("Treatment", "Control"):
        with pytest.raises(UserError, match="Leave -pretrained_weights out"):
            train(plans, pretrained_weights=str(weights_file))


# ---------------------------------------------------------------------- deep supervision


@pytest.mark.parametrize("deep", [False, True])
def test_deep_supervision_trains_the_coarser_heads_and_stock_predicts_either_way(dataset: Path, deep: bool) -> None:
    set_recipe(dataset, "Treatment", f"deep_supervision={deep}")
    run = trainer(dataset)
    run.initialize()
    before = weights(run)
    run.run_training()
    after = weights(run)
    changed = {
        head for head in range(3) if not torch.equal(*(w[f"decoder.seg_layers.{head}.weight"] for w in (before, after)))
    }
    assert changed == ({1, 2} if deep else {2})  # nnU-Net gives the coarsest no weight

    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(run.output_folder_base, (0,))
    assert predictor.trainer_name == "nnUNetTrainer"
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    volume = torch.randn(1, 2, 16, 16, 16)
    run.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(volume), run.network.eval()(volume))


def test_deep_supervision_may_not_change_within_a_run(dataset: Path) -> None:
    run = trainer(dataset)
    run.num_epochs = 1
    run.run_training()
    set_recipe(dataset, "Treatment", "deep_supervision=true")
    with pytest.raises(UserError, match=r"recipe\.deep_supervision changed since"):
        maybe_load_checkpoint(trainer(dataset), continue_training=True, validation_only=False)


def test_deep_supervision_of_two_stages_is_refused_because_its_loss_would_be_nan(dataset: Path) -> None:
    set_recipe(dataset, "Treatment", "deep_supervision=true")
    plans = json.loads((dataset / "Treatment.json").read_text())
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_blocks_per_stage"):
        architecture["arch_kwargs"][key] = architecture["arch_kwargs"][key][:2]
    change_plans(dataset, "Treatment", architecture=architecture)
    with pytest.raises(UserError, match="needs a network of 3 stages or more, and that of the plans 'Treatment' has 2"):
        trainer(dataset)


# ---------------------------------------------------------------------- what is loaded, and what says so


def test_the_log_says_by_parts_what_was_loaded_adapted_and_left_random(dataset: Path) -> None:
    run = trainer(dataset)
    run.initialize()
    before = weights(run)
    run.on_train_start()
    after = weights(run)
    given = safetensors.torch.load_file(dataset / "Treatment_init.safetensors")
    for name, tensor in run.network.named_parameters():
        assert torch.equal(tensor, given.get(name, before[name])), name
    assert any(name.startswith(LEFT_RANDOM) and torch.equal(before[name], after[name]) for name in after)

    (log,) = logs_of(Path(run.output_folder))
    assert "encoder of hf://somebody/ResEncT (nnssl, mae, 7 epochs, SHA-256 000000000000)" in log
    counts = {part: sum(name.startswith(part) for name in given) for part in ("encoder.stem", "encoder.stages.0")}
    every = f"{len(list(run.network.parameters()))} tensors"
    assert f"as they are, {len(given) - 1} of {every}: encoder.stem ({counts['encoder.stem'] - 1}), encoder.st" in log
    assert f"encoder.stages.0 ({counts['encoder.stages.0']})" in log
    assert f"loaded and adapted, 1 of {every}: encoder.stem (1): 1 channel repeated and divided by 2" in log
    (left_random,) = [line for line in log.splitlines() if "left random" in line]
    for part in ("encoder.stages.3 (", "decoder.stages.0 (", "decoder.transpconvs.2 (", "decoder.seg_layers (6)"):
        assert part in left_random


def test_a_tensor_that_is_missing_without_being_named_as_random_stops_the_run(dataset: Path) -> None:
    plans = json.loads((dataset / "Treatment.json").read_text())
    block = plans["configurations"][CONFIGURATION]["nnssl_mae"]
    block["initialisation"]["left_random"] = block["initialisation"]["left_random"][1:]
    change_plans(dataset, "Treatment", nnssl_mae=block)
    with pytest.raises(UserError, match=r"encoder\.stages\.3\..* is missing"):
        trainer(dataset).on_train_start()


def test_the_model_says_where_its_weights_come_from_and_names_no_folder_of_this_machine(dataset: Path) -> None:
    run = trainer(dataset)
    run.on_train_start()
    run.save_checkpoint(str(Path(run.output_folder, "checkpoint_final.pth")))
    block = finished(run)["nnssl_mae"]["initialisation"]
    assert block["origin"]["label"] == "hf://somebody/ResEncT"
    assert block["sha256"] == run.initialisation["sha256"]
    assert block["adapted"][0]["name"] == STEM
    plans = Path(run.output_folder_base, "plans.json")
    archived = json.loads(plans.read_text())["configurations"][CONFIGURATION]["nnssl_mae"]
    assert archived["initialisation"] == block
    for file in (plans, Path(run.output_folder, "checkpoint_final.pth")):
        assert str(dataset.parents[1]).encode() not in file.read_bytes()


def test_prediction_needs_no_argument_that_stock_does_not_give() -> None:
    arguments = inspect.signature(nnUNetTrainer.__init__).parameters
    for kind in (nnUNetTrainerMAEFinetune, nnUNetTrainerMAE):
        assert list(inspect.signature(kind.__init__).parameters) == list(arguments)
        assert pickle.loads(pickle.dumps(kind)) is kind


# ---------------------------------------------------------------------- refusals


REFUSALS: list[tuple[str, dict[str, Any] | None, str]] = [  # the second is what such plans hold, or nothing
    ("2d", None, "2d is a 2D configuration, and the pre-trained networks are 3D; use 3d_fullres_mae"),
    ("flat", {"patch_size": [16, 16]}, "flat is a 2D configuration"),
    ("3d_cascade_fullres", None, "3d_cascade_fullres is a stage of a cascade"),
    ("second", {"previous_stage": CONFIGURATION}, "second is a stage of a cascade"),
    ("3d_lowres", None, "The plans .Treatment. hold no configuration 3d_lowres, only 3d_fullres_mae"),
]


@pytest.mark.parametrize(("configuration", "content", "sentence"), REFUSALS)
def test_what_cannot_be_fine_tuned_is_refused_before_anything_is_written(
    dataset: Path, nnunet_folders: Path, configuration: str, content: dict[str, Any] | None, sentence: str
) -> None:
    plans = json.loads((dataset / "Treatment.json").read_text())
    if content is not None:
        plans["configurations"][configuration] = {"inherits_from": CONFIGURATION, **content}
        (dataset / "Treatment.json").write_text(json.dumps(plans))
    for kind in (nnUNetTrainerMAEFinetune, nnUNetTrainerMAE):
        with pytest.raises(UserError, match=sentence):
            run_training("5", configuration, "0", kind.__name__, "Treatment", device=CPU)
    assert not list((nnunet_folders / "results").iterdir())


def test_plans_that_are_not_ours_are_refused_before_anything_is_written(dataset: Path, nnunet_folders: Path) -> None:
    plans = json.loads((dataset / "Treatment.json").read_text())
    stock = plans["configurations"][CONFIGURATION]
    del stock["nnssl_mae"]
    plans |= {
        "plans_name": "nnUNetPlans",
        "configurations": {"3d_fullres": stock, "2d": {**stock, "patch_size": [16, 16]}},
    }
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    for configuration, sentence in (
        ("3d_fullres", "'nnUNetPlans' were not made for this trainer; make them with `nnssl-mae adapt`"),
        ("2d", "2d is a 2D configuration.*; use 3d_fullres_mae and plans that nnssl-mae wrote"),
    ):
        with pytest.raises(UserError, match=sentence):
            run_training("5", configuration, "0", "nnUNetTrainerMAEFinetune", "nnUNetPlans", device=CPU)
    assert not list((nnunet_folders / "results").iterdir())


def test_an_own_configuration_that_inherits_ours_trains(dataset: Path) -> None:
    plans = json.loads((dataset / "Treatment.json").read_text())
    plans["configurations"]["larger_batch"] = {"inherits_from": CONFIGURATION, "batch_size": 3}
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    run = nnUNetTrainerMAEFinetune(plans | {"continue_training": False}, "larger_batch", 0, dataset_json, CPU)
    run.on_train_start()
    assert next(run.dataloader_train)["data"].shape[0] == 3
    assert run.initialisation is not None


# ---------------------------------------------------------------------- compiled


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net compiles, as it does on a GPU, with the backend that takes least time."""
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_a_compiled_network_gets_the_weights_trains_continues_and_is_saved_under_plain_names(
    dataset: Path, compiled: None
) -> None:
    set_recipe(dataset, "Treatment", "deep_supervision=true", recipe="frozen")
    run = trainer(dataset)
    run.num_epochs = 1
    run.run_training()
    assert isinstance(run.network, OptimizedModule)
    content = finished(run)
    assert content["network_weights"].keys() == bare_network(run.network).state_dict().keys()
    for name, tensor in safetensors.torch.load_file(dataset / "Treatment_init.safetensors").items():
        assert torch.equal(content["network_weights"][name], tensor)  # frozen

    again = trainer(dataset)
    maybe_load_checkpoint(again, continue_training=True, validation_only=False)
    assert again.current_epoch == 1
    assert_same_weights(bare_network(again.network).state_dict(), content["network_weights"])
    again.num_epochs = 2
    again.run_training()
    assert again.current_epoch == 2


# ---------------------------------------------------------------------- several processes


RUNS = ("Deep", "Shallow", "Control")


def train_as_one_of_two(rank: int, dataset: Path, out: Path) -> None:
    """One of two processes, as ``-num_gpus 2`` starts them, on CPUs."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # they must become equal nevertheless
    dist.init_process_group(
        "gloo", f"file://{out / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    # nnU-Net names the GPU of this process, which the CPU does not have.
    STOCK.DDP = lambda network, device_ids: DistributedDataParallel(network)
    for name in RUNS:
        run = make_trainer(nnUNetTrainerMAEFinetune, dataset, name, fold=0)
        run.device, run.grad_scaler = CPU, None
        run.logger.plot_progress_png = lambda folder: None
        maybe_load_checkpoint(run, continue_training=False, validation_only=False)
        run.on_train_start()
        start = {name: t.clone() for name, t in bare_network(run.network).named_parameters()}
        run.on_train_start = lambda: None
        run.run_training()
        end = dict(bare_network(run.network).named_parameters())
        torch.save({"start": start, "end": end, "batch": run.batch_size}, out / f"{name}_{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(_written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they trained; nnU-Net's results are in it too."""
    folder = tmp_path_factory.mktemp("two_processes")
    dataset = Path(shutil.copytree(_written("labels"), folder / "preprocessed" / NAME))
    for name, source in (("Deep", "Treatment"), ("Shallow", "Treatment"), ("Control", "Control")):
        plans = json.loads((dataset / f"{source}.json").read_text()) | {"plans_name": name}
        (dataset / f"{name}.json").write_text(json.dumps(plans))
    set_recipe(dataset, "Deep", "deep_supervision=true", recipe="valley")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folder / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        context = multiprocessing.start_processes(
            train_as_one_of_two, args=(dataset, folder), nprocs=2, join=False, start_method="spawn"
        )
        assert context is not None
        try:
            # The first join returns when one has ended; an error of either is raised here.
            ended = context.join(timeout=SECONDS) or context.join(timeout=SECONDS)
        finally:
            for process in context.processes:
                process.kill()
    assert ended, "the processes wait for each other"
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_start_and_end_with_the_same_weights(two_processes: Path, name: str) -> None:
    one, other = (torch.load(two_processes / f"{name}_{rank}.pt") for rank in range(2))
    assert one["batch"] == other["batch"] == 1
    for moment in ("start", "end"):
        assert_same_weights(one[moment], other[moment])
    given = safetensors.torch.load_file(two_processes / "preprocessed" / NAME / "Treatment_init.safetensors")
    equal = [tensor_name for tensor_name, tensor in given.items() if torch.equal(one["start"][tensor_name], tensor)]
    assert len(equal) == (0 if name == "Control" else len(given))
    assert not torch.equal(one["start"][STEM], one["end"][STEM])
    heads = [f"decoder.seg_layers.{head}.weight" for head in range(3)]
    # nnU-Net gives the coarsest head hardly any weight then, but not none.
    trained = [not torch.equal(one["start"][head], one["end"][head]) for head in heads]
    assert trained == ([True, True, True] if name == "Deep" else [False, False, True])
    fold = two_processes / "results" / NAME / f"nnUNetTrainerMAEFinetune__{name}__{CONFIGURATION}" / "fold_0"
    saved = torch.load(fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(saved[tensor_name], tensor) for tensor_name, tensor in one["end"].items())
