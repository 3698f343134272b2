"""GPU memory by nnU-Net's own estimate, and sizes that fit it."""

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnssl_mae.checkpoints.nnssl import resenc_l
from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.memory import feature_map_values, gpu_memory
from nnssl_mae.downstream.plan import Planned, plan_finetuning
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from nnssl_mae.folders import planner_environment
from nnssl_mae.networks.planned import planned_network
from tests.downstream.checkpoints import architecture, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NUMBER, Made

LARGE = {**architecture("resenc"), "arch_kwargs": resenc_l()}


def planned(checkpoint, **wish) -> Planned:
    return plan_finetuning(checkpoint, labelled_dataset(NUMBER, False), Wish(**{"part": "encoder", **wish}), "P")


@pytest.mark.parametrize("kind", ["resenc", "plain"])
@pytest.mark.parametrize(("channels", "heads", "patch"), [(1, 2, (32, 32, 32)), (4, 5, (64, 32, 48))])
def test_the_count_is_nnunets_own(kind: str, channels: int, heads: int, patch) -> None:
    network = architecture(kind, stages=4, width=8, blocks=2)
    with torch.device("meta"), planner_environment():
        expected = ExperimentPlanner.static_estimate_VRAM_usage(
            patch, channels, heads, network["network_class_name"], network["arch_kwargs"],
            network["_kw_requires_import"],
        )  # fmt: skip
    assert feature_map_values(network, channels, heads, patch) == expected


@pytest.mark.parametrize("kind", ["resenc", "plain", "amaes_unet"])
def test_the_count_is_what_the_convolutions_give(kind: str) -> None:
    """Counted while a patch goes through; nnU-Net counts a little otherwise in the skips of residual blocks."""
    described = architecture(kind, stages=3, width=4)
    network, counted = planned_network(described, 1, 2), []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d) and ".skip." not in name:
            module.register_forward_hook(lambda _, __, output: counted.append(output.numel()))
    network(torch.zeros(1, 1, 16, 16, 16))
    found = feature_map_values(described, 1, 2, (16, 16, 16))
    assert found is not None
    assert abs(sum(counted) - found) <= 0.1 * found
    if kind != "resenc":
        assert sum(counted) == found


def test_the_references_are_those_of_the_installed_planners(make: Make) -> None:
    make()
    for planner_class, kind in [
        (ExperimentPlanner, "plain"),
        (nnUNetPlannerResEncM, "resenc"),
        (nnUNetPlannerResEncL, "resenc"),
        (nnUNetPlannerResEncXL, "resenc"),
    ]:
        planner = planner_class(NUMBER)
        network = architecture(kind)
        values = feature_map_values(network, 1, 2, (32, 32, 32))
        # A network whose batch has as many values as the planner's reference needs the GB of the reference.
        batch = planner.UNet_reference_val_3d / values * planner.UNet_reference_val_corresp_bs_3d
        needed = gpu_memory(network, 1, 2, (32, 32, 32), batch)
        assert needed == pytest.approx(planner.UNet_reference_val_corresp_GB)
        assert planner.UNet_min_batch_size == 2


def test_memory_grows_with_patch_batch_and_channels() -> None:
    def needed(channels: int = 1, patch: int = 128, batch: int = 2) -> float:
        return gpu_memory(LARGE, channels, 2, (patch,) * 3, batch) or 0.0

    assert needed(batch=2) < needed(batch=3) < needed(batch=4) < needed(batch=12)
    assert needed(patch=96) < needed() < needed(patch=160)
    # Values of nnU-Net's own comment: 558,319,104 of 680e6 at 128^3 are 8 GB and less.
    assert 6 < needed() < 8
    assert 10 < needed(patch=160) < 16


def test_a_network_that_nnunet_does_not_know_is_unknown() -> None:
    assert gpu_memory({**LARGE, "network_class_name": "somebody.elses.Network"}, 1, 2, (32, 32, 32), 2) is None


def test_the_batch_is_two_and_grows_only_when_asked_to_fill_a_gpu(make: Make) -> None:
    make(Made(shape=(160, 160, 160), cases=40))
    result = planned(made_checkpoint())
    assert result.configuration["batch_size"] == 2
    assert planned(made_checkpoint(), batch=5).configuration["batch_size"] == 5
    small = result.gpu_memory
    filled = planned(made_checkpoint(), gpu_memory=3.5 * small)
    assert filled.configuration["batch_size"] == 7  # 3.5 times a batch of two
    assert filled.configuration["patch_size"] == [32, 32, 32]
    assert filled.gpu_memory <= 3.5 * small
    assert "a patch of 32x32x32 and a batch of 7" in filled.gpu_memory_how


@pytest.mark.parametrize(("backbone", "share"), [("resenc", 1.0), ("plain", 0.05)])
def test_a_batch_shows_at_most_the_share_of_the_dataset_that_nnunets_planner_allows(
    make: Make, backbone, share
) -> None:
    make()  # 4 cases of 48^3 voxels: 5 % are 0.7 patches of 32^3
    network = architecture(backbone)
    usual = planned(made_checkpoint(network), gpu_memory=800).configuration["batch_size"]
    assert usual == max(2, round(4 * 48**3 * share / 32**3))
    small = planned(made_checkpoint(network), gpu_memory=800, patch=(8, 8, 8)).configuration["batch_size"]
    assert small == round(4 * 48**3 * share / 8**3)


def test_the_patch_shrinks_where_a_batch_of_two_does_not_fit(make: Make) -> None:
    make(Made(shape=(48, 96, 48)))
    whole = planned(made_checkpoint())
    half = planned(made_checkpoint(), gpu_memory=0.55 * whole.gpu_memory)
    assert half.configuration["batch_size"] == 2
    assert half.gpu_memory <= 0.55 * whole.gpu_memory
    patch = half.configuration["patch_size"]
    assert all(edge % 4 == 0 for edge in patch)
    assert patch[1] > max(patch[0], patch[2])  # the axis on which the dataset is larger is shortened last
    assert "made smaller to fit" in " ".join(half.notes) and "instead of 32x32x32" in " ".join(half.notes)
    assert half.configuration["data_identifier"] == whole.configuration["data_identifier"]


def test_with_mode_dataset_the_network_follows_the_smaller_patch(make: Make) -> None:
    make(Made(shape=(64, 64, 64)))
    whole = planned(made_checkpoint(), mode="dataset")
    small = planned(made_checkpoint(), mode="dataset", gpu_memory=0.2 * whole.gpu_memory)
    assert small.gpu_memory <= 0.2 * whole.gpu_memory
    assert small.configuration["architecture"]["arch_kwargs"]["n_stages"] < 5


def test_what_the_user_asks_for_is_respected_or_refused(make: Make) -> None:
    make()
    whole = planned(made_checkpoint(), batch=4).gpu_memory
    shrunk = planned(made_checkpoint(), batch=4, gpu_memory=0.6 * whole).configuration
    assert shrunk["batch_size"] == 4 and shrunk["patch_size"] != [32, 32, 32]
    kept = planned(made_checkpoint(), patch=(32, 32, 32), gpu_memory=0.6 * whole).configuration
    assert kept["batch_size"] == 2 and kept["patch_size"] == [32, 32, 32]
    with pytest.raises(UserError, match=r"patch of 32x32x32 voxels with a batch of 4 needs at least .* GB"):
        planned(made_checkpoint(), patch=(32, 32, 32), batch=4, gpu_memory=0.9 * whole)
    with pytest.raises(UserError, match=r"smallest, \d+x\d+x\d+ voxels with a batch of 2 needs at least 0\.\d+ GB"):
        planned(made_checkpoint(), gpu_memory=1e-5)


def test_the_estimate_needs_no_processes_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own crashes where nnUNet_n_proc_DA is 0, which is fine for training, and changes torch's threads."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    threads = torch.get_num_threads()
    assert gpu_memory(LARGE, 1, 2, (160, 160, 160), 2) is not None
    assert torch.get_num_threads() == threads
