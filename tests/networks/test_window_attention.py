"""Windows, position biases and attention, against definitions written as loops."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from nnssl_mae.errors import UserError
from nnssl_mae.networks.window_attention import (
    PositionBias,
    SkipAttention,
    SkipBlock,
    TransformerBlock,
    WindowAttention,
)
from nnssl_mae.networks.windows import attention_groups, bias_index, table_entries, windows_of

CPU = torch.device("cpu")
WINDOWS = [(4, 4, 4), (8, 8, 8), (3, 5, 5), (7, 10, 10), (1, 4, 4), (2, 3, 5), (5, 3, 2), (1, 1, 6)]
# Maps that are multiples of the window, that need padding, and that are shorter than it along an axis.
MAPS = [(4, 3, 6), (3, 4, 5), (2, 5, 3), (1, 1, 1), (5, 3, 2)]
WINDOW = (2, 3, 3)
FEATURES, HEADS = 4, 2


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(kind: type[nn.Module] = WindowAttention, shifted: bool = False, legacy: bool = False) -> nn.Module:
    torch.manual_seed(1)
    made = kind(FEATURES, HEADS, (3, 3, 3) if legacy else WINDOW, shifted, legacy).double()
    nn.init.normal_(made.position_bias.table)  # large enough to matter
    return made


def voxels(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, shape)))


def window_number(where: tuple[int, ...], shape: tuple[int, ...], window: tuple[int, ...], shifted: bool) -> tuple:
    """In which window a token is, axis by axis: shifted windows begin half a window earlier, and none wraps."""
    number = []
    for position, edge, length in zip(where, shape, window, strict=True):
        first = length // 2 if shifted and edge > length else 0
        number.append((position - first) // length)
    return tuple(number)


def by_loop(made: nn.Module, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The definition, for maps (D, H, W, C) that are projected already; voxel by voxel."""
    shape = tuple(queries.shape[:3])
    results = []
    for query in voxels(shape):
        mine = window_number(query, shape, made.window, made.shifted)
        seen = [key for key in voxels(shape) if window_number(key, shape, made.window, made.shifted) == mine]
        rows = [table_row(made, query, key) for key in seen]
        theirs = torch.stack([torch.cat([keys[key], values[key]]) for key in seen])
        parts = zip(queries[query].chunk(HEADS), theirs.chunk(2 * HEADS, dim=1)[:HEADS], strict=True)
        scores = torch.stack([near @ part / math.sqrt(len(part)) for part, near in parts], dim=1)
        weights = (scores + made.position_bias.table[rows]).softmax(0)
        results.append(torch.cat([w @ v for w, v in zip(weights.T, theirs[:, FEATURES:].chunk(HEADS, 1), strict=True)]))
    return made.projection(torch.stack(results).unflatten(0, shape))


def table_row(made: nn.Module, query: tuple[int, ...], key: tuple[int, ...]) -> int:
    _, height, width = made.window
    d, h, w = (q - k + edge - 1 for q, k, edge in zip(query, key, made.window, strict=True))
    if made.position_bias.legacy:
        return d * (3 * height - 1) + h * (2 * height - 1) + w
    return (d * (2 * height - 1) + h) * (2 * width - 1) + w


@pytest.mark.parametrize("window", WINDOWS)
def test_every_offset_has_a_bias_of_its_own(window) -> None:
    index = bias_index(window, window, False, CPU)
    where = torch.tensor(voxels(window))
    offsets = where[:, None] - where[None]
    pairs = torch.cat([index[..., None], offsets], dim=-1).flatten(0, 1).unique(dim=0)
    assert pairs[:, 0].tolist() == list(range(table_entries(window)))  # none is shared, none is unused


def test_the_legacy_index_mixes_axes_as_the_released_code_does() -> None:
    index = bias_index((4, 4, 4), (4, 4, 4), True, CPU)
    assert len(index.unique()) == 115
    assert index.max() == 6 * 11 + 6 * 7 + 6


def test_the_legacy_index_is_refused_where_it_leaves_the_table() -> None:
    with pytest.raises(UserError, match="legacy_position_index"):
        PositionBias((1, 8, 1), heads=2, legacy=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_window_takes_the_bias_of_the_same_offsets(legacy) -> None:
    bias = PositionBias((4, 4, 4), 2, legacy)
    whole = bias((4, 4, 4)).unflatten(1, (4, 4, 4)).unflatten(-1, (4, 4, 4))
    cut = bias((2, 4, 3)).unflatten(1, (2, 4, 3)).unflatten(-1, (2, 4, 3))
    assert torch.equal(cut, whole[:, :2, :, :3, :2, :, :3])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", MAPS)
def test_merging_undoes_partitioning(shape, shifted) -> None:
    windows = windows_of(shape, WINDOW, shifted)
    tokens = randn(2, *shape, 3)
    assert torch.equal(windows.merge(windows.partition(tokens)), tokens)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", MAPS)
def test_attention_equals_a_loop_over_voxels(shape, shifted) -> None:
    """Also its gradients, of which the position bias gets its share."""
    made = attention(shifted=shifted)
    tokens = randn(2, *shape, FEATURES).requires_grad_()
    parts = made.queries_keys_values(tokens).chunk(3, dim=-1)
    expected = torch.stack([by_loop(made, *(part[sample] for part in parts)) for sample in range(2)])
    output, given = made(tokens), randn(2, *shape, FEATURES, seed=1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    leaves = (tokens, made.position_bias.table)
    gradients = [torch.autograd.grad(result, leaves, given) for result in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 4, 2)])
def test_skip_attention_equals_a_loop_over_voxels(shape) -> None:
    made = attention(SkipAttention)
    tokens, skip = randn(1, *shape, FEATURES), randn(1, *shape, FEATURES, seed=1)
    keys, values = made.keys_values(skip).chunk(2, dim=-1)
    torch.testing.assert_close(made(tokens, skip)[0], by_loop(made, tokens[0], keys[0], values[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_with_the_legacy_index_equals_a_loop_over_voxels(shifted) -> None:
    made = attention(shifted=shifted, legacy=True)
    tokens = randn(1, 3, 4, 5, FEATURES)
    parts = made.queries_keys_values(tokens)[0].chunk(3, dim=-1)
    torch.testing.assert_close(made(tokens)[0], by_loop(made, *parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(6, 6, 6), (5, 4, 7)])
def test_nothing_reaches_a_token_from_outside_its_window(shape, shifted) -> None:
    """Not across the ends that a shift joins, and not by rounding."""
    made = attention(shifted=shifted)
    for query in [(0, 0, 0), (shape[0] - 1, shape[1] - 1, shape[2] - 1), (2, 2, 2)]:
        tokens = randn(1, *shape, FEATURES).requires_grad_()
        made(tokens)[0][query].sum().backward()
        reached = {where for where in voxels(shape) if tokens.grad[0][where].any()}
        mine = window_number(query, shape, WINDOW, shifted)
        assert reached == {where for where in voxels(shape) if window_number(where, shape, WINDOW, shifted) == mine}


def test_padding_has_no_part_even_if_it_is_loud() -> None:
    """What fills the last windows passes through the projection, whose bias would make it heard."""
    made = attention(shifted=True)
    tokens = randn(1, 5, 4, 7, FEATURES)
    windows = windows_of((5, 4, 7), WINDOW, shifted=True)
    parts = [windows.partition(part) for part in made.queries_keys_values(tokens).chunk(3, dim=-1)]
    real = windows.partition(torch.ones(1, 5, 4, 7, 1, dtype=torch.float64)).bool()
    outputs = []
    for filling in (0.0, 1e6):
        filled = [part.masked_fill(~real, filling) for part in parts]
        outputs.append(made.attend(windows, *(made.split(part, 1)[0] for part in filled)))
    assert torch.equal(*outputs)
    assert torch.equal(outputs[0], made(tokens))


def test_a_window_of_padding_alone_gives_numbers() -> None:
    """A shift leaves one behind; a softmax over nothing would be undefined and spoil all gradients."""
    windows = windows_of((5, 1, 1), (4, 1, 1), shifted=True)
    groups = attention_groups(windows, CPU)
    assert groups.tolist() == [[0, 0, 0, 8], [8, 8, 1, 1]]
    made = WindowAttention(FEATURES, HEADS, (4, 1, 1), shifted=True)
    tokens = torch.ones(1, 5, 1, 1, FEATURES, requires_grad=True)
    made(tokens).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_windows_of_one_axis_do_not_depend_on_the_others() -> None:
    windows = windows_of((2, 8, 4), (4, 4, 4), shifted=True)
    assert (windows.window, windows.shift, windows.padded) == ((2, 4, 4), (0, 2, 0), (2, 8, 4))


def test_samples_of_a_batch_do_not_mix() -> None:
    made = attention(shifted=True)
    tokens = randn(3, 5, 4, 6, FEATURES)
    torch.testing.assert_close(made(tokens)[1:2], made(tokens[1:2]), rtol=0, atol=1e-12)


def test_training_after_predicting_in_inference_mode() -> None:
    """What is remembered from predictions must be usable in a backward pass; nnU-Net validates in inference mode."""
    made = WindowAttention(FEATURES, HEADS, (2, 2, 2), shifted=True)
    tokens = torch.randn(1, 3, 5, 7, FEATURES)
    with torch.inference_mode():
        made(tokens)
    made(tokens).sum().backward()
    assert made.position_bias.table.grad.any()


def test_nothing_of_a_map_stays_in_the_module() -> None:
    made = attention(shifted=True)
    names = set(made.state_dict())
    made(randn(1, 5, 4, 7, FEATURES))
    assert set(made.state_dict()) == names
    assert not list(made.buffers())
    tokens = randn(1, 4, 4, 4, FEATURES)
    assert torch.equal(copy.deepcopy(made)(tokens), made(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [TransformerBlock, SkipBlock])
def test_blocks_in_half_precision_are_near_full_precision(kind, dtype) -> None:
    torch.manual_seed(0)
    inner = {TransformerBlock: WindowAttention, SkipBlock: SkipAttention}[kind](FEATURES, HEADS, WINDOW, True)
    block = kind(inner, FEATURES)
    maps = [randn(1, 5, 4, 7, FEATURES, seed=seed).float() for seed in range(2 if kind is SkipBlock else 1)]
    expected = block(*maps)
    with torch.autocast("cpu", dtype):
        output = block(*maps)
    output.float().sum().backward()
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_a_block_whose_paths_are_dropped_is_the_identity() -> None:
    block = TransformerBlock(attention(), FEATURES, drop_path=1 - 1e-9).double()
    tokens = randn(2, 4, 4, 4, FEATURES)
    assert torch.equal(block(tokens), tokens)
    assert not torch.equal(block.eval()(tokens), tokens)


def test_a_skip_block_without_attention_adds_both_maps() -> None:
    block = SkipBlock(attention(SkipAttention), FEATURES, drop_path=1 - 1e-9).double()
    tokens, skip = randn(1, 4, 4, 4, FEATURES), randn(1, 4, 4, 4, FEATURES, seed=1)
    assert torch.equal(block(tokens, skip), tokens + skip)


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_must_divide_features(heads) -> None:
    with pytest.raises(UserError, match="do not divide 4 features"):
        WindowAttention(FEATURES, heads, WINDOW)
