"""Weights of Primus between the stock network's names and ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import primus as stock_primus
from einops import rearrange

from nnssl_mae.checkpoints.primus_names import (
    from_stock,
    primus_arguments,
    stock_mask_token,
    to_stock,
    with_first_axes_swapped,
)
from nnssl_mae.errors import UserError
from nnssl_mae.networks.primus import PrimusNet

PATCH, GRID = (16, 24, 32), (2, 3, 4)
TINY = {"embed_dim": 24, "eva_depth": 2, "eva_numheads": 2}


def stock(patch: tuple[int, int, int] = PATCH, token: int = 8, **options: Any) -> Any:
    torch.manual_seed(0)
    network = stock_primus.Primus(1, 24, (token,) * 3, 2, 2, 2, patch, **options)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("token", [2, 4, 8])
def test_names_there_and_back(token: int, registers: int) -> None:
    weights = stock((16, 16, 16), token, num_register_tokens=registers, init_values=0.1).state_dict()
    ours = from_stock(weights, (16 // token,) * 3)
    back = to_stock(ours)
    assert {*back} == {*weights}
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    again = from_stock(back, (16 // token,) * 3)
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


def test_the_encoder_alone_can_be_renamed() -> None:
    weights = from_stock(stock().state_dict(), GRID)
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    renamed = to_stock(encoder)
    assert {name.split(".")[0] for name in renamed} == {"down_projection", "eva", "mask_token"}
    assert {*from_stock(renamed, GRID)} == {*encoder}


def test_a_position_stands_where_its_token_is() -> None:
    weights = stock().state_dict()
    position = from_stock(weights, GRID)["encoder.position"]
    expected = rearrange(weights["eva.pos_embed"], "b (w h d) c -> b c w h d", w=2, h=3, d=4)
    assert torch.equal(position, expected)


def test_what_nnssl_saves_beside_a_primus_is_left_out() -> None:
    """Its MAE network has a second transformer, and a mask token that is learned."""
    weights = stock().state_dict()
    token = torch.randn(1, 1, 24)
    more = weights | {"decoder.blocks.0.norm1.weight": torch.ones(24), "mask_token": token}
    assert {*from_stock(more, GRID)} == {*from_stock(weights, GRID)}
    ours = stock_mask_token(more)
    assert ours is not None
    assert ours.shape == (1, 24, 1, 1, 1)
    assert torch.equal(to_stock(from_stock(more, GRID) | {"mask_tokens.0": ours})["mask_token"], token)
    assert stock_mask_token({}) is None


def test_a_tensor_that_primus_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"down_projection\.stem\.blocks\.0\.conv1\.conv\.weight"):
        from_stock({"down_projection.stem.blocks.0.conv1.conv.weight": torch.zeros(1)}, GRID)


def test_positions_of_another_patch_are_refused() -> None:
    with pytest.raises(UserError, match="24 tokens and a patch of 2x2x4"):
        from_stock(stock().state_dict(), (2, 2, 4))


def test_a_network_that_counts_tokens_along_the_second_axis_first_is_brought_into_our_order() -> None:
    """nnssl's networks do; the result is the same network, for cubes."""
    network = stock((16, 16, 24), scale_attn_inner=True, init_values=0.1)
    volumes = torch.randn(2, 1, 16, 16, 24)
    tokens = rearrange(network.down_projection(volumes), "b c w h d -> b (h w d) c")
    theirs = rearrange(network.eva(tokens)[0], "b (h w d) c -> b c w h d", w=2, h=2, d=3)
    weights = with_first_axes_swapped(from_stock(network.state_dict(), (2, 2, 3)), heads=2)
    arguments = primus_arguments("Primus", TINY, (16, 16, 24), network.state_dict())
    ours = PrimusNet(1, 2, **arguments).eval()
    ours.load_state_dict(weights)
    torch.testing.assert_close(ours.encoder(volumes)[0], theirs, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="2x3x4 tokens"):
        with_first_axes_swapped(from_stock(stock().state_dict(), GRID), heads=2)


def test_a_name_alone_describes_the_network() -> None:
    with torch.device("meta"):
        theirs = stock_primus.PrimusS(1, 1, (8, 8, 8), (32, 32, 32))
        ours = PrimusNet(1, 1, **primus_arguments("PrimusS", None, (32, 32, 32)))
    renamed = from_stock(theirs.state_dict(), (4, 4, 4))
    assert {n: t.shape for n, t in renamed.items()} == {n: t.shape for n, t in ours.state_dict().items()}


def test_arguments_that_are_given_count() -> None:
    given = {
        "embed_dim": 48,
        "eva_numheads": 4,
        "patch_embed_size": [4, 4, 4],
        "drop_path_rate": 0,
        "init_values": None,
    }
    arguments = primus_arguments("PrimusM", given | {"decoder_act": "torch.nn.modules.activation.GELU"}, (8, 8, 8))
    assert arguments == {
        "n_stages": 1,
        "features_per_stage": [48],
        "strides": [[4, 4, 4]],
        "n_blocks_per_stage": [16],
        "num_heads": [4],
        "input_shape": [8, 8, 8],
        "drop_path": 0.0,
        "init_values": None,
        "scale_attn_inner": True,
        "num_register_tokens": 0,
    }


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"scale_attn_inner": True}], ids=str)
def test_the_weights_have_the_last_word_on_scales_and_norms(options: dict[str, Any]) -> None:
    """Versions of the stock network differ in what they take if nothing is said."""
    weights = stock(**options).state_dict()
    network = PrimusNet(1, 2, **primus_arguments("Primus", TINY, PATCH, weights))
    network.load_state_dict(from_stock(weights, GRID))


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("PrimusXL", None, "PrimusXL"),
        ("Primus", {"embed_dim": 24}, "lacks 'eva_depth'"),
        ("PrimusM", {"use_rot_pos_emb": False}, "use_rot_pos_emb = False"),
        ("PrimusM", {"mlp_ratio": 4}, "mlp_ratio = 4"),
        ("PrimusM", {"decoder_act": "torch.nn.ReLU"}, "decoder_act"),
        ("PrimusM", {"depth_per_level": [1, 1, 1]}, "depth_per_level"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, kwargs: dict[str, Any] | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        primus_arguments(name, kwargs, PATCH)
