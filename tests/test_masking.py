import numpy as np
import pytest
import torch

from nnssl_mae.masking import as_blocks, block_edges, hidden_voxels, hide, sample_hidden


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.7, 0.75, 0.9])
def test_exactly_the_wanted_share_is_hidden(ratio: float) -> None:
    hidden = sample_hidden((10, 10, 10), ratio, np.random.default_rng(0))
    assert hidden.shape == (1, 10, 10, 10)
    assert hidden.dtype == torch.bool
    assert hidden.sum() == round(ratio * 1000)


def test_something_is_hidden_and_something_visible_even_in_tiny_grids() -> None:
    for ratio in (0.01, 0.99):
        hidden = sample_hidden((1, 1, 2), ratio, np.random.default_rng(0))
        assert 0 < hidden.sum() < 2
    with pytest.raises(ValueError, match="smaller blocks"):
        sample_hidden((1, 1, 1), 0.5, np.random.default_rng(0))


def test_every_block_is_hidden_equally_often() -> None:
    rng = np.random.default_rng(0)
    share = torch.stack([sample_hidden((2, 3, 4), 0.5, rng) for _ in range(4000)]).float().mean(dim=0)
    assert (share - 0.5).abs().max() < 0.04


def test_hide_zeroes_hidden_blocks_and_leaves_the_rest() -> None:
    volumes = torch.randn(2, 3, 4, 6, 8)
    hidden = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    hidden[0, 0, 1, 2, 0] = True
    result = hide(volumes, hidden)
    assert (result[0, :, 2:4, 4:6, 0:4] == 0).all()
    assert torch.equal(result[1], volumes[1])
    assert (result == 0).sum() == 3 * 2 * 2 * 4
    assert torch.equal(result, volumes * ~hidden_voxels(hidden, (4, 6, 8)))


def test_blocks_are_a_view_of_the_voxels() -> None:
    volumes = torch.arange(64.0).view(1, 1, 4, 4, 4)
    blocks = as_blocks(volumes, torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool))
    assert torch.equal(blocks[0, 0, 1, :, 0, :, 1, :], volumes[0, 0, 2:, :2, 2:])
    with pytest.raises(ValueError, match="cannot be divided"):
        as_blocks(volumes, torch.zeros(1, 1, 3, 2, 2, dtype=torch.bool))


def test_block_edges_divide_any_planned_patch() -> None:
    assert block_edges((160, 160, 160), 16) == (16, 16, 16)
    assert block_edges((28, 40, 112), 16) == (14, 10, 16)
