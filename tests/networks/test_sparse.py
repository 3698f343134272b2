"""Visible features must not depend on hidden voxels: the released port of this method leaks 8 to 14 % of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnssl_mae.errors import UserError
from nnssl_mae.masking import hidden_voxels
from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network
from nnssl_mae.networks.sparse import run_masked, visible_at
from nnssl_mae.recipes.pretraining import NetworkRecipe
from tests.networks.architectures import architecture

BACKBONES = ("resenc", "plain", "amaes_unet")


def sparse_network(backbone: str = "resenc", **arch) -> PretrainingNetwork:
    torch.manual_seed(0)
    return pretraining_network(architecture(backbone, **arch), 1, NetworkRecipe(sparse=True), "zero").double()


def masked_batch(grid: int, patch: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(2, 1, grid, grid, grid, generator=generator) < 0.6
    hidden[:, :, 0, 0, 0] = False
    hidden[1, :, 0, 1, 0] = True
    return torch.randn(2, 1, patch, patch, patch, generator=generator, dtype=torch.float64), hidden


def test_a_position_is_visible_if_any_of_its_blocks_is() -> None:
    hidden = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    hidden[0, 0, 3, 0, 1] = False
    assert torch.equal(visible_at(hidden, (8, 8, 8)), ~hidden)  # finer: the grid of the blocks stands for it
    coarse = visible_at(hidden, (2, 2, 2))
    assert coarse.sum() == 1
    assert coarse[0, 0, 1, 0, 0]
    # 3 positions on 4 blocks: the last position covers blocks 2 and 3, the first of the w axis blocks 0 and 1.
    across = visible_at(hidden, (3, 3, 3))
    assert across.nonzero().tolist() == [[0, 0, 2, 0, 0], [0, 0, 2, 0, 1]]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("grid", [2, 4, 8, 16])
def test_visible_features_do_not_depend_on_hidden_voxels(backbone: str, grid: int) -> None:
    """At every resolution, also where the feature grid is coarser than the blocks. Exact, in float64."""
    network = sparse_network(backbone)
    volumes, hidden = masked_batch(grid)
    changed = torch.where(hidden_voxels(hidden, volumes.shape[2:]), 9 + torch.randn_like(volumes), volumes)
    assert torch.equal(network.hide(volumes, hidden), network.hide(changed, hidden))
    with torch.no_grad():
        one = network.encode(network.hide(volumes, hidden), hidden)
        other = network.encode(network.hide(changed, hidden), hidden)
        assert torch.equal(network(volumes, hidden), network(changed, hidden))
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_features_of_any_value_have_no_part_in_a_stage(backbone: str) -> None:
    """A stage given features that are zero at hidden positions returns such features, at the right resolution."""
    network = sparse_network(backbone)
    volumes, hidden = masked_batch(4)
    for features in network.encode(network.hide(volumes, hidden), hidden):
        visible = visible_at(hidden, features.shape[2:])
        mask = hidden_voxels(visible, features.shape[2:])
        assert (features.masked_select(~mask) == 0).all()
        assert (features.masked_select(mask) != 0).any()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_nothing_hidden_it_is_the_stock_network(backbone: str) -> None:
    sparse = sparse_network(backbone, depth=2)
    dense = pretraining_network(architecture(backbone, depth=2), 1, NetworkRecipe(), "zero").double()
    dense.load_state_dict(sparse.state_dict())
    volumes, hidden = masked_batch(4)
    nothing = torch.zeros_like(hidden)
    torch.testing.assert_close(sparse(volumes, nothing), dense(volumes, nothing), rtol=0, atol=1e-10)


def by_definition(module: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A convolution block as the method defines it: dense convolution, output times mask, norm of gathered voxels."""
    x = module.conv(x) * mask
    for sample in range(x.shape[0]):
        values = x[sample][:, mask[sample, 0]]
        normed = (values - values.mean(1, keepdim=True)) / (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        normed = normed * module.norm.weight[:, None] + module.norm.bias[:, None]
        x = x.clone()
        x[sample][:, mask[sample, 0]] = normed
    return nn.functional.leaky_relu(x, 0.01) if hasattr(module, "nonlin") else x


def test_a_block_equals_its_definition() -> None:
    """Also with unequal numbers of visible voxels in the two samples."""
    network = sparse_network()
    volumes, hidden = masked_batch(4)
    assert hidden[0].sum() != hidden[1].sum()
    shown, mask = network.hide(volumes, hidden), ~hidden_voxels(hidden, volumes.shape[2:])
    block = network.encoder.stem.convs[0]
    torch.testing.assert_close(run_masked(block, shown, hidden), by_definition(block, shown, mask), rtol=0, atol=1e-10)


def test_layers_without_a_masked_form_are_refused() -> None:
    volumes, hidden = masked_batch(4)
    with pytest.raises(UserError, match="its layer ConvTranspose3d has no masked form"):
        run_masked(nn.Sequential(nn.ConvTranspose3d(1, 1, 2)), volumes, hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_stays_near_single_precision(dtype: torch.dtype) -> None:
    network = sparse_network().float()
    volumes, hidden = masked_batch(4)
    expected = network(volumes.float(), hidden)
    with torch.autocast("cpu", dtype=dtype):
        found = network(volumes.float(), hidden)
    assert (found.float() - expected).abs().max() < 0.06 * expected.abs().max()


def gradients(network: nn.Module, parameters: nn.Module, volumes: torch.Tensor, hidden: torch.Tensor) -> list:
    for parameter in parameters.parameters():
        parameter.grad = None
    network(volumes, hidden).square().mean().backward()
    return [p.grad.clone() for p in parameters.parameters() if p.grad is not None]


FULL = NetworkRecipe(sparse=True, mask_tokens=True, densify=True)


@pytest.mark.parametrize("form", ["checkpointed", "compiled"])
def test_recomputed_activations_and_compilation_change_nothing(form: str) -> None:
    torch.manual_seed(0)
    network = pretraining_network(architecture(), 1, FULL, "zero").double()
    volumes, hidden = masked_batch(4)
    expected = gradients(network, network, volumes, hidden)
    other_mask = hidden.flip(2)
    if form == "checkpointed":
        network.checkpoint_activations = True
        # Another forward before the backward: nothing of the mask is remembered by the network.
        network.train()
        output = network(volumes, hidden)
        network(volumes, other_mask)
        for parameter in network.parameters():
            parameter.grad = None
        output.square().mean().backward()
        found = [p.grad for p in network.parameters() if p.grad is not None]
    else:
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        found = gradients(compiled, network, volumes, hidden)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
