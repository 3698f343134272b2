"""S3D ("Spark") files of nnssl, written after the description of their form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import load_network
from nnssl_mae.masking import hidden_voxels, hide
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import WIDTHS, adaptation_plan, write_s3d

STEM = "encoder.stem.convs.0.conv.weight"


def test_the_trained_copy_is_taken_under_every_name_and_said(tmp_path: Path) -> None:
    """The other copy is the untouched initialisation: fine-tuning from it would be training from scratch."""
    trained = write_s3d(tmp_path / "x.pth", adaptation_plan()).state_dict()
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in checkpoint.weights.items() if name in trained)
    assert set(checkpoint.weights) == set(trained)
    assert "'all_modules' are the trained ones" in checkpoint.notes[0]


def test_a_released_file_without_tokens_says_why_it_cannot_reconstruct(tmp_path: Path) -> None:
    trained = write_s3d(tmp_path / "x.pth", adaptation_plan(), released=True).state_dict()
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(checkpoint.weights[STEM], trained[STEM])
    with pytest.raises(UserError, match="mask tokens of its network are missing; it can still be fine-tuned"):
        load_network(checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_stem_of_any_number_of_channels_comes_from_the_trained_copy(
    tmp_path: Path, released: bool, channels: int
) -> None:
    """A released loader took the untrained copy with more than one channel."""
    network = write_s3d(tmp_path / "x.pth", adaptation_plan(), released=released)
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    tensors, report = transfer(checkpoint, checkpoint.architecture, channels, "encoder")
    expected = network.state_dict()[STEM].repeat(1, channels, 1, 1, 1) / channels
    torch.testing.assert_close(tensors[STEM], expected, rtol=0, atol=0)
    assert [fate.name for fate in report.adapted] == ([] if channels == 1 else [STEM])
    target = planned_network(checkpoint.architecture, channels, 2).eval()
    load_into(target, tensors, [fate.name for fate in report.random])
    patch = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = target.encoder(patch.repeat(1, channels, 1, 1, 1))
        for one, other in zip(features, network.encoder(patch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 if channels == 1 else 1e-5)


def test_tokens_whose_place_is_not_clear_give_a_sentence_and_no_picture(tmp_path: Path) -> None:
    write_s3d(tmp_path / "x.pth", adaptation_plan(), tokens_reversed=True)
    with pytest.raises(UserError, match=r"have \[8, 6, 4\] channels where the resolutions have \[4, 6, 8\]"):
        load_network(read_checkpoint(tmp_path / "x.pth"), tmp_path / "x.pth")


@pytest.mark.parametrize("lost", ["densify_projs.1.bias", "mask_tokens.2"])
def test_lost_parts_give_a_sentence(tmp_path: Path, lost: str) -> None:
    write_s3d(tmp_path / "x.pth", adaptation_plan())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    del content["spark_weights"][lost]
    torch.save(content, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.reconstruction is None
    assert checkpoint.cannot_reconstruct


class Reference:
    """S3D as nnssl describes it, written with masks of full resolution: each convolution and pool is followed by the
    mask, statistics are those of visible voxels, and maps coarser than the mask are visible as a whole."""

    def __init__(self, network: nn.Module, hidden: torch.Tensor) -> None:
        self.network, self.hidden = network, hidden

    def visible(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] < self.hidden.shape[2]:
            return torch.ones_like(x[:, :1])
        return (~hidden_voxels(self.hidden, x.shape[2:])).float()

    def norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        visible = self.visible(x)[0, 0] > 0
        values = x[0][:, visible]
        normed = (values - values.mean(1, keepdim=True)) / (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        result = torch.zeros_like(x)
        result[0][:, visible] = normed * weight[:, None] + bias[:, None]
        return result

    def layer(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(module, nn.InstanceNorm3d):
            return self.norm(x, module.weight, module.bias)
        x = module(x.clone())
        return x * self.visible(x)

    def convolution(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for module in block.all_modules:
            x = self.layer(module, x)
        return x

    def residual(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        for module in block.skip if isinstance(block.skip, nn.Module) else ():
            plain = isinstance(module, nn.AvgPool3d)
            shortcut = self.layer(module, shortcut) if plain else self.convolution(module, shortcut)
        x = self.convolution(block.conv2, self.convolution(block.conv1, x))
        return nn.functional.leaky_relu(x + shortcut, 0.01)

    def __call__(self, patch: torch.Tensor) -> torch.Tensor:
        x = self.convolution(self.network.encoder.stem.convs[0], hide(patch, self.hidden))
        skips = []
        for level, stage in enumerate(self.network.encoder.stages):
            for block in stage.blocks:
                x = self.residual(block, x)
            skip = self.norm(x, torch.ones(WIDTHS[level]), torch.zeros(WIDTHS[level]))
            skip = torch.where(self.visible(x) > 0, skip, self.network.mask_tokens[str(level)])
            skips.append(self.network.densifiers[str(level)](skip) if level else skip)
        return self.network.decoder(skips)


@pytest.mark.parametrize("edge", [8, 4, 2])
def test_the_network_of_a_training_file_computes_what_nnssl_computes(tmp_path: Path, edge: int) -> None:
    """Except that nothing hidden reaches the first convolution. With edge 2 the mask is finer than the last map."""
    expected = write_s3d(tmp_path / "x.pth", adaptation_plan())
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert "first convolution" in checkpoint.reconstruction_notes[0]
    network = load_network(checkpoint, tmp_path / "x.pth")
    generator = torch.Generator().manual_seed(edge)
    patch = torch.randn(1, 1, 16, 16, 16, generator=generator)
    hidden = torch.rand(1, 1, *[16 // edge] * 3, generator=generator) < 0.7
    with torch.inference_mode():
        torch.testing.assert_close(network(patch, hidden), Reference(expected, hidden)(patch), rtol=1e-4, atol=1e-4)
        leaked = torch.where(hidden_voxels(hidden, patch.shape[2:]), 100.0, patch)
        assert torch.equal(network(patch, hidden), network(leaked, hidden))
