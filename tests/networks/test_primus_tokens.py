"""Masked pre-training of Primus: what is hidden has no influence, and what is dropped is as if it had never been."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.networks.primus import PrimusEncoder, PrimusNet
from nnssl_mae.networks.primus_tokens import encode_replaced, encode_visible, hidden_tokens

GRID = (2, 4, 6)  # tokens; blocks are twice as large
BLOCKS = (1, 2, 3)


def encoder(registers: int = 0, drop_path: float = 0.0) -> PrimusEncoder:
    torch.manual_seed(0)
    shape = [edge * 4 for edge in GRID]
    network = PrimusNet(
        1, 1, 1, [24], [[4, 4, 4]], [2], [2], shape, drop_path, 0.1, True, num_register_tokens=registers
    ).double()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # positions that matter
    return network.encoder


def attending(network: PrimusEncoder, fused: bool) -> PrimusEncoder:
    """With PyTorch's attention in one step, or with timm's own, which TIMM_FUSED_ATTN=0 asks for."""
    for block in network.stages:
        block.attn.fused_attn = fused
    return network


def volumes() -> torch.Tensor:
    return torch.randn(3, 1, *(edge * 4 for edge in GRID), dtype=torch.float64)


def blocks(*visible: int) -> torch.Tensor:
    """A random choice with so many visible blocks in each sample."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.ones(len(visible), 6, dtype=torch.bool)
    for sample, count in zip(hidden, visible, strict=True):
        sample[torch.randperm(6, generator=generator)[:count]] = False
    return hidden.reshape(-1, 1, *BLOCKS)


def on_voxels(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)


def full_sequence(network: PrimusEncoder, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """All tokens go through all blocks, and attend only to those that are visible."""
    embedded = network.stem(x) + network.position
    tokens = embedded.flatten(2).transpose(1, 2)
    allowed = ~hidden_tokens(network, hidden).flatten(1)
    if network.register_tokens is not None and network.register_position is not None:
        registers = (network.register_tokens + network.register_position).expand(len(x), -1, -1)
        tokens = torch.cat((registers, tokens), 1)
        allowed = F.pad(allowed, (registers.shape[1], 0), value=True)
    for block in network.stages:
        tokens = block(tokens, rope=network.rotary.get_embed(), attn_mask=allowed[:, None, None])
    tokens = network.norm(tokens)[:, tokens.shape[1] - embedded[0, 0].numel() :]
    return tokens.transpose(1, 2).reshape(embedded.shape)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize(
    ("visible", "counted"), [((2, 2, 2), True), ((2, 2, 2), False), ((1, 4, 2), False), ((6, 1, 3), False)]
)
def test_dropping_is_attention_to_visible_tokens_only(visible: tuple[int, ...], counted: bool, registers: int) -> None:
    """Also with samples of different numbers, which are padded, and for the gradients."""
    network, x, hidden = encoder(registers), volumes(), blocks(*visible)
    shown = ~hidden_tokens(network, hidden)
    weight = torch.randn(3, 24, *GRID, dtype=torch.float64) * shown
    results = []
    for encode in (
        lambda: encode_visible(network, x, hidden, visible[0] if counted else None),
        lambda: full_sequence(network, x, hidden) * shown,
    ):
        features = encode()
        gradients = torch.autograd.grad((features * weight).sum(), list(network.parameters()))
        results.append((features, gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    for (name, _), one, other in zip(network.named_parameters(), results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("counted", [True, False])
def test_with_everything_visible_dropping_changes_nothing(counted: bool) -> None:
    network, x = encoder(registers=2), volumes()
    features = encode_visible(network, x, blocks(6, 6, 6), 6 if counted else None)
    assert torch.equal(features, network(x)[0])


@pytest.mark.parametrize("visible", [(2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("way", ["dropped", "replaced"])
def test_features_do_not_depend_on_hidden_voxels(way: str, visible: tuple[int, ...]) -> None:
    network, x, hidden = encoder(), volumes(), blocks(*visible)
    encode = WAYS[way]
    other = torch.where(on_voxels(hidden), 1e3 * torch.randn_like(x), x)
    assert not torch.equal(x, other)
    assert torch.equal(encode(network, x, hidden), encode(network, other, hidden))
    # And the test can see a dependence where there is one.
    one_more = x.clone()
    one_more[on_voxels(~hidden)] += 1
    assert not torch.allclose(encode(network, x, hidden), encode(network, one_more, hidden))


TOKEN = torch.randn(1, 24, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
WAYS: dict[str, Callable[[PrimusEncoder, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "dropped": encode_visible,
    "replaced": lambda network, x, hidden: encode_replaced(network, x, hidden, TOKEN),
}


def test_a_count_that_is_too_large_lets_nothing_hidden_through() -> None:
    network, x, hidden = encoder(), volumes(), blocks(2, 4, 3)
    other = torch.where(on_voxels(hidden), torch.nan, x)
    assert torch.equal(encode_visible(network, x, hidden, 4), encode_visible(network, other, hidden, 4))


@pytest.mark.parametrize("way", ["dropped", "replaced"])
def test_nothing_flows_back_to_hidden_voxels(way: str) -> None:
    network, x, hidden = encoder(), volumes().requires_grad_(), blocks(1, 4, 2)
    WAYS[way](network, x, hidden).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[on_voxels(hidden)] == 0).all()
    assert (x.grad[on_voxels(~hidden)] != 0).all()


@pytest.mark.parametrize("fused", [True, False])
def test_a_sample_does_not_depend_on_how_many_tokens_its_neighbours_keep(fused: bool) -> None:
    network, x, hidden = attending(encoder(registers=1), fused), volumes(), blocks(2, 2, 2)
    alone = encode_visible(network, x[:1], hidden[:1])
    together = encode_visible(network, x, torch.cat((hidden[:1], blocks(5, 6))))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_dropped_tokens_are_zero_and_a_sample_may_have_nothing_visible(fused: bool) -> None:
    """Whichever attention timm was told to use; only some are safe where a sample attends to nothing."""
    network, hidden = attending(encoder(), fused), blocks(0, 3, 1)
    features = encode_visible(network, volumes(), hidden)
    shown = (~hidden_tokens(network, hidden)).expand_as(features)
    assert (features[~shown] == 0).all()
    assert (features[shown] != 0).all()
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_replaced_tokens_keep_their_position_and_the_token_learns() -> None:
    """SimMIM: with all voxels of one block hidden, its tokens differ by position alone."""
    network, x, hidden = encoder(), volumes(), blocks(2, 3, 5)
    token = torch.nn.Parameter(TOKEN.clone())
    features = encode_replaced(network, x, hidden, token)
    embedded = torch.where(hidden_tokens(network, hidden), token, network.stem(x))
    tokens = (embedded + network.position).flatten(2).transpose(1, 2)
    for block in network.stages:
        tokens = block(tokens, rope=network.rotary.get_embed())
    expected = network.norm(tokens).transpose(1, 2).reshape(features.shape)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
    features.sum().backward()
    assert token.grad is not None
    assert token.grad.abs().min() > 0


def test_recomputed_activations_give_the_same_gradients_although_paths_are_dropped() -> None:
    network, x, hidden = encoder(drop_path=0.5).train(), volumes(), blocks(1, 4, 2)
    gradients = []
    for run in (None, lambda *call: torch.utils.checkpoint.checkpoint(*call, use_reentrant=False)):
        torch.manual_seed(4)
        loss = encode_visible(network, x, hidden, run=run).square().sum()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("visible", [(2, 2, 2), (1, 4, 2)])
def test_padding_works_in_mixed_precision(visible: tuple[int, ...]) -> None:
    network, x, hidden = encoder().float(), volumes().float(), blocks(*visible)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encode_visible(network, x, hidden)
    torch.testing.assert_close(mixed.float(), encode_visible(network, x, hidden), rtol=0.1, atol=0.1)


def test_dropping_compiles_without_a_break_if_the_visible_blocks_are_known() -> None:
    network, x, hidden = encoder(), volumes(), blocks(2, 2, 2)
    compiled = torch.compile(encode_visible, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(network, x, hidden, 2), encode_visible(network, x, hidden))


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ((2, 4, 4), "Blocks of 4x4x6 voxels are not a whole number of tokens of 4x4x4 voxels; use blocks of 4x4x4"),
        ((4, 8, 12), "Blocks of 2x2x2 voxels .* use blocks of 4x4x4"),
        ((2, 3, 1), "Blocks of 4x5.33333x24 voxels .* use blocks of 4x4x24"),
    ],
)
@pytest.mark.parametrize("way", ["dropped", "replaced"])
def test_blocks_that_cut_tokens_are_refused(way: str, blocks: tuple[int, int, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        WAYS[way](encoder(), volumes(), torch.ones(3, 1, *blocks, dtype=torch.bool))
