"""Primus compared with the stock network of dynamic-network-architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import primus as stock_primus
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnssl_mae.checkpoints.primus_names import from_stock, to_stock
from nnssl_mae.errors import UserError
from nnssl_mae.networks.primus import PRESETS, PrimusNet

TRAINERS = {"drop_path_rate": 0.2, "init_values": 0.1, "scale_attn_inner": True}
KWARGS: dict[str, Any] = {
    "n_stages": 1,
    "features_per_stage": [36],
    "strides": [[4, 4, 4]],
    "n_blocks_per_stage": [2],
    "num_heads": [2],
    "input_shape": [8, 12, 16],
    "drop_path": 0.2,
    "init_values": 0.1,
    "scale_attn_inner": True,
}
GRID = (2, 3, 4)


def stock(heads: int, token: tuple[int, int, int], shape: tuple[int, int, int], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    network = stock_primus.Primus(2, 6 * 3 * heads, token, 3, 2, heads, shape, **options)
    for parameter in network.parameters():  # so that norms and layer scales of ones cannot be mixed up
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def ours(heads: int, token: tuple[int, int, int], shape: tuple[int, int, int], **options: Any) -> PrimusNet:
    if "drop_path_rate" in options:
        options["drop_path"] = options.pop("drop_path_rate")
    return PrimusNet(2, 3, 1, [18 * heads], [token], [2], [heads], shape, **options)


@pytest.mark.parametrize("options", [TRAINERS, {}, TRAINERS | {"num_register_tokens": 3}], ids=str)
@pytest.mark.parametrize(
    ("heads", "token", "shape"),
    [(1, (8, 8, 8), (16, 16, 16)), (2, (8, 8, 8), (16, 24, 8)), (2, (4, 4, 4), (8, 12, 16)), (1, (2, 4, 4), (4, 8, 8))],
)
def test_it_computes_what_the_stock_network_computes(
    heads: int, token: tuple[int, int, int], shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    """In training too, where whole branches of a sample are dropped at random."""
    one, other = stock(heads, token, shape, **options), ours(heads, token, shape, **dict(options))
    grid = tuple(size // edge for size, edge in zip(shape, token, strict=True))
    other.load_state_dict({name: t.clone() for name, t in from_stock(one.state_dict(), grid).items()})
    volumes = torch.randn(4, 2, *shape)
    outputs = []
    for network in (one, other):
        torch.manual_seed(1)
        outputs.append(network.train()(volumes))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-6)
    gradients, expected = to_stock(gradients_of(other)), gradients_of(one)
    assert {*gradients} == {*expected, "mask_token"}
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def gradients_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_has_the_published_sizes(size: str) -> None:
    theirs = stock_primus._PRIMUS_CONFIGS[size]
    assert PRESETS[size] == (theirs["eva_depth"], theirs["eva_numheads"], theirs["embed_dim"])


@pytest.mark.parametrize("size", ["S", "M"])
def test_a_preset_has_the_parameters_of_the_stock_network(size: str) -> None:
    preset = PRESETS[size]
    with torch.device("meta"):
        one = getattr(stock_primus, f"Primus{size}")(1, 2, (8, 8, 8), (160, 160, 160))
        other = PrimusNet(
            1, 2, 1, [preset.width], [[8, 8, 8]], [preset.depth], [preset.heads], [160, 160, 160],
            init_values=0.1, scale_attn_inner=True,
        )  # fmt: skip
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in one.parameters())
    renamed = from_stock(one.state_dict(), (20, 20, 20))
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in other.state_dict().items()}


def test_it_is_built_from_plans_and_every_weight_learns() -> None:
    """Distributed training fails on a weight that takes part in nothing."""
    network = from_plans(KWARGS | {"num_register_tokens": 2})
    volumes = torch.randn(1, 1, 8, 12, 16)
    network(volumes).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    assert {name.split(".")[0] for name in network.state_dict()} == {"encoder", "decoder"}
    assert {*network.state_dict()} == {name for name, _ in network.named_parameters()}  # no buffers are saved


def from_plans(kwargs: dict[str, Any], deep_supervision: bool = False) -> Any:
    path = "nnssl_mae.networks.primus.PrimusNet"
    return get_network_from_plans(path, kwargs, [], 1, 3, allow_init=True, deep_supervision=deep_supervision)


def test_what_a_u_net_has_is_there() -> None:
    network = from_plans(KWARGS).eval()
    volumes = torch.randn(1, 1, 8, 12, 16)
    features = network.encoder(volumes)
    assert [tuple(f.shape[1:]) for f in features] == [(36, *GRID)]
    assert network.encoder.output_channels == [36]
    assert network.encoder.strides == [(4, 4, 4)]
    names = set(network.state_dict())
    assert {"encoder.stem.proj.weight", "encoder.position", "encoder.norm.weight"} < names
    assert {"encoder.stages.1.attn.q_proj.weight", "decoder.stages.0.0.weight", "decoder.seg_layers.0.weight"} < names
    assert network.encoder.position.shape == (1, 36, *GRID)
    assert torch.equal(network.decoder(features), network(volumes))


def test_deep_supervision_has_one_output_and_can_be_switched() -> None:
    """nnU-Net sets the attribute before training and before prediction."""
    network = from_plans(KWARGS, deep_supervision=True).eval()
    volumes = torch.randn(1, 1, 8, 12, 16)
    (in_a_list,) = network(volumes)
    network.decoder.deep_supervision = False
    assert torch.equal(network(volumes), in_a_list)
    assert in_a_list.shape == (1, 3, 8, 12, 16)


def test_initial_weights_are_drawn_as_the_stock_network_draws_them() -> None:
    """And all of them: what stood there before is gone."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_values": 0.1, "scale_attn_inner": True, "num_register_tokens": 40}
    expected = stock_primus.Primus(2, 144, (8, 8, 8), 3, 3, 2, (40, 40, 40), **options)
    network = PrimusNet(2, 3, 1, [144], [[8, 8, 8]], [3], [2], [40, 40, 40], **options)
    for parameter in network.parameters():
        parameter.data.fill_(7)
    network.apply(network.initialize)
    wanted = from_stock(expected.state_dict(), (5, 5, 5))
    for name, tensor in network.state_dict().items():
        if "bias" in name or "gamma" in name or "norm" in name or name.endswith(".1.weight"):
            if not name.startswith("encoder.stem"):
                assert torch.equal(tensor, wanted[name]), name
        else:
            assert tensor.std().item() == pytest.approx(wanted[name].std().item(), rel=0.1), name
            assert abs(tensor.mean()) < tensor.std() * 0.1, name


def test_it_compiles_without_a_break() -> None:
    network = from_plans(KWARGS).eval()
    volumes = torch.randn(2, 1, 8, 12, 16)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(volumes), network(volumes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_runs_in_mixed_precision(dtype: torch.dtype) -> None:
    network = from_plans(KWARGS).eval()
    volumes = torch.randn(1, 1, 8, 12, 16)
    with torch.autocast("cpu", dtype):
        mixed = network(volumes)
    torch.testing.assert_close(mixed.float(), network(volumes), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_stages": 2}, "one stage"),
        ({"num_heads": [2, 4]}, "one stage"),
        ({"input_shape": [8, 12, 15]}, "8x12x15.*nearest size that is one is 8x12x16"),
        ({"strides": [[6, 6, 6]], "input_shape": [12, 12, 12]}, "6x6x6 voxels; use powers of two"),
        ({"strides": [[1, 1, 1]]}, "1x1x1 voxels; use powers of two"),
        ({"strides": [[8, 8]]}, "three axes"),
        ({"features_per_stage": [40]}, "40 features among 2 heads.*nearest width is 36"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PrimusNet(1, 2, **(KWARGS | change))


def test_a_volume_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match="volumes of 8x12x16 voxels and got 8x8x8"):
        PrimusNet(1, 2, **KWARGS)(torch.zeros(1, 1, 8, 8, 8))
