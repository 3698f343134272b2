"""The contract of backbones.py, kept by every network that a recipe can name."""

from __future__ import annotations

import re
from typing import Any

import dynamic_network_architectures
import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnssl_mae.backbones import BACKBONES, backbone_of, divisors, for_patch, head_scales
from nnssl_mae.errors import UserError
from nnssl_mae.masking import hidden_voxels, sample_hidden
from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.networks.planned import network_shape, planned_network
from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network, visible_blocks
from nnssl_mae.plans import network_configuration
from nnssl_mae.recipes.finetuning import load_finetune_recipe
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import load_recipe, override
from nnssl_mae.training.schedules import parameter_groups
from tests.presets import TRANSFORMERS, tiny_changes

STOCK: dict[str, Any] = {"arch_kwargs": {}}  # what nnU-Net planned; its usual layers where it says nothing
SPACING = (1.0, 1.0, 1.0)
PLAIN = {"network.backbone": "plain"}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resenc": ("mae", {}),
    "plain": ("mae", PLAIN),
    "amaes_unet": ("amaes", {}),
    **{name: (name, {}) for name in TRANSFORMERS},
}
MILLIONS = {
    "mae": (1, 102.35),
    "nnformer": (4, 37.7),
    "nnformer_acdc": (1, 37.2),
    "nnformer_synapse": (1, 150.1),
}


def tiny(name: str) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and the architecture of its plans."""
    base, changes = NETWORKS[name]
    recipe = override(load_recipe(base), {**tiny_changes(base), **changes})
    configuration = network_configuration(STOCK, recipe.network, SPACING, recipe.masking.block_size)
    return recipe, configuration["architecture"]


def pretraining(name: str) -> tuple[Recipe, PretrainingNetwork]:
    recipe, architecture = tiny(name)
    torch.manual_seed(0)
    return recipe, pretraining_network(architecture, 1, recipe.network, recipe.masking.hidden_value)


def masked(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Volumes (2, 1, D, H, W) and a mask with as many hidden blocks in both."""
    patch, block = recipe.network.patch_size, recipe.masking.block_size
    generator = np.random.default_rng(0)
    grid = [size // block for size in patch]
    hidden = torch.stack([sample_hidden(grid, 0.6, generator) for _ in range(2)])
    return torch.randn(2, 1, *patch), hidden


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name: str) -> None:
    recipe, architecture = tiny(name)
    network: Any = planned_network(architecture, 2, 3).eval()
    volumes = torch.randn(1, 2, *recipe.network.patch_size)
    with torch.no_grad():
        features, logits = network.encoder(volumes), network(volumes)
    strides = np.cumprod(architecture["arch_kwargs"]["strides"], axis=0)
    assert [list(f.shape[2:]) for f in features] == [list(np.array(volumes.shape[2:]) // s) for s in strides]
    assert [f.shape[1] for f in features] == list(network.encoder.output_channels)
    assert list(network.encoder.output_channels) == architecture["arch_kwargs"]["features_per_stage"]
    assert logits.shape == (1, 3, *volumes.shape[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_has_its_place_in_encoder_or_decoder_and_none_in_both(name: str) -> None:
    network = planned_network(tiny(name)[1], 1, 2)
    names = [each for each, _ in network.named_parameters()]
    beside = r"encoder\.(position|norm\.|register_)"
    place = re.compile(rf"encoder\.(stem|stages\.\d+)\.|{beside}|decoder\.(stages|transpconvs|seg_layers)\.\d+\.")
    assert not [each for each in names if not place.match(each)]
    encoder = {id(tensor) for tensor in network.encoder.parameters()}
    own = [tensor for each, tensor in network.named_parameters() if each.startswith("decoder.")]
    assert own
    assert not encoder & {id(tensor) for tensor in own}
    assert len(encoder) + len(own) == len(list(network.parameters()))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_layer_takes_the_channels(name: str) -> None:
    architecture = tiny(name)[1]
    weights = dict(planned_network(architecture, 3, 2).named_parameters())
    assert weights[f"{backbone_of(architecture).first_layer}.weight"].shape[1] == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patch_that_does_not_fit_is_refused_with_one_that_does(name: str) -> None:
    recipe, architecture = tiny(name)
    wrong = override(recipe, {"network.patch_size": [size + 3 for size in recipe.network.patch_size]})
    with pytest.raises(UserError, match="the nearest that fits is") as refusal:
        network_configuration(STOCK, wrong.network, SPACING, recipe.masking.block_size)
    proposed = re.search(r"patch_size=\[([\d,]+)\]", str(refusal.value))
    assert proposed is not None
    patch = [int(edge) for edge in proposed[1].split(",")]
    right = override(recipe, {"network.patch_size": patch})
    network_configuration(STOCK, right.network, SPACING, recipe.masking.block_size)
    network = planned_network(for_patch(architecture, patch), 1, 2).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *patch)).shape[2:] == tuple(patch)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_hidden_is_seen(name: str) -> None:
    recipe, network = pretraining(name)
    volumes, hidden = masked(recipe)
    changed = torch.where(hidden_voxels(hidden, volumes.shape[2:]), torch.randn_like(volumes), volumes)
    network.double().eval()
    count = visible_blocks(recipe.network, hidden)
    with torch.no_grad():
        one, other = (network(each.double(), hidden, count) for each in (volumes, changed))
        assert torch.equal(one, other)
        assert not torch.equal(one, network(volumes.double().flip(2), hidden, count))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_hidden_is_reconstructed_from_what_is_seen(name: str) -> None:
    """A decoder that could not reach hidden voxels would train without ever learning anything."""
    recipe, network = pretraining(name)
    volumes, hidden = masked(recipe)
    mask = hidden_voxels(hidden, volumes.shape[2:])
    torch.nn.init.normal_(network.decoder.seg_layers[-1].weight)
    network.double().eval()
    with torch.no_grad():
        one, other = (network(each, hidden) for each in (volumes.double(), 3 * volumes.double().flip(3)))
    assert (one != other)[mask].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_all_weights_of_a_pretraining_get_a_gradient_or_stand_still(name: str) -> None:
    """Otherwise several processes would wait for each other for ever."""
    recipe, network = pretraining(name)
    volumes, hidden = masked(recipe)
    network.train()
    network(volumes, hidden, visible_blocks(recipe.network, hidden)).square().mean().backward()
    assert not [each for each, p in network.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_have_the_resolutions_that_the_trainer_expects(name: str) -> None:
    recipe, architecture = tiny(name)
    if architecture["arch_kwargs"]["n_stages"] < 3:
        return  # nnU-Net cannot train it with deep supervision, and the trainer refuses it
    network = planned_network(architecture, 1, 2, deep_supervision=True)
    patch = recipe.network.patch_size
    outputs = network(torch.randn(1, 1, *patch))
    scales = head_scales(architecture)
    assert [list(each.shape[2:]) for each in outputs] == [
        [round(e * s) for e, s in zip(patch, c, strict=True)] for c in scales
    ]
    sum(each.square().mean() for each in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())

    alone = freeze_unused_heads(planned_network(architecture, 1, 2))
    alone(torch.randn(1, 1, *patch)).square().mean().backward()
    assert all(p.grad is not None for p in alone.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_go_through_a_file_unchanged(name: str, tmp_path: Any) -> None:
    recipe, architecture = tiny(name)
    volumes = torch.randn(1, 1, *recipe.network.patch_size)
    one, other = (planned_network(architecture, 1, 2).eval() for _ in range(2))
    torch.save(one.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(one(volumes), other(volumes))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_every_tensor_is_in_one_group_of_the_optimiser(name: str, layer_decay: float) -> None:
    network = planned_network(tiny(name)[1], 1, 2)
    recipe = load_finetune_recipe("transformer", changes=[f"layer_decay={layer_decay}"])
    groups = parameter_groups(network, recipe)
    grouped = [id(tensor) for group in groups for tensor in group["params"]]
    assert sorted(grouped) == sorted(map(id, network.parameters()))
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name: str) -> None:
    channels, millions = MILLIONS[name]
    recipe = load_recipe(name)
    planned = network_configuration(STOCK, recipe.network, SPACING, recipe.masking.block_size)
    network = network_shape(planned["architecture"], channels, heads=1 if name == "mae" else 14)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize("name", [each.network_class for each in BACKBONES.values() if not each.is_stock])
def test_where_this_package_is_missing_nnunet_finds_no_other_network_of_the_name(name: str) -> None:
    """It looks for the bare name among its own, and would tell of arguments that do not fit."""
    place = dynamic_network_architectures.__path__[0] + "/architectures"
    package = "dynamic_network_architectures.architectures"
    assert recursive_find_python_class(place, "PlainConvUNet", package) is not None
    assert recursive_find_python_class(place, name.rsplit(".", 1)[-1], package) is None


def test_a_network_of_somebody_else_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="A MedNeXt cannot be pre-trained"):
        backbone_of({"network_class_name": "somewhere.MedNeXt"})


def test_divisors_of_all_axes() -> None:
    assert divisors(tiny("nnformer_acdc")[1]) == (2, 16, 16)
