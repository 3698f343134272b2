import numpy as np
import pytest
import torch

from nnssl_mae.masking import (
    as_blocks,
    block_edges,
    eligible_blocks,
    enough_to_hide,
    hidden_voxels,
    hide,
    sample_hidden,
    sample_ratio,
)


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


def test_a_thousand_masks_have_the_exact_ratio_and_treat_all_blocks_alike() -> None:
    rng = np.random.default_rng(1)
    masks = torch.stack([sample_hidden((4, 5, 6), 0.6, rng) for _ in range(1000)])
    assert (masks.sum(dim=(1, 2, 3, 4)) == 72).all()
    # Standard deviation of a share: sqrt(.6 * .4 / 1000) = 0.0155; 120 blocks stay within four of them.
    assert (masks.float().mean(dim=0) - 0.6).abs().max() < 0.062
    # Neighbours are hidden together as often as chance says: (72 * 71) / (120 * 119).
    together = (masks[..., :-1] & masks[..., 1:]).float().mean()
    assert abs(together - 72 * 71 / (120 * 119)) < 0.01
    assert len({mask.numpy().tobytes() for mask in masks}) == 1000


def test_of_a_thousand_foreground_masks_each_hides_the_exact_share_of_eligible_blocks_and_no_air() -> None:
    rng = np.random.default_rng(2)
    for _ in range(1000):
        eligible = rng.random((4, 5, 6)) < rng.uniform(0.1, 1)
        n = int(eligible.sum())
        ratio = rng.uniform(0.05, 0.95)
        hidden = sample_hidden((4, 5, 6), ratio, rng, eligible)[0].numpy()
        assert not (hidden & ~eligible).any()
        assert hidden.sum() == min(max(np.floor(ratio * n + 1e-6), 1), n - 1)


def test_eligible_blocks_are_hidden_equally_often() -> None:
    rng = np.random.default_rng(3)
    eligible = np.zeros((3, 4, 5), dtype=bool)
    eligible[1:, :2] = True
    share = torch.stack([sample_hidden((3, 4, 5), 0.5, rng, eligible) for _ in range(2000)]).float().mean(dim=0)[0]
    assert (share[torch.from_numpy(eligible)] - 0.5).abs().max() < 0.05
    with pytest.raises(ValueError, match="1 block cannot"):
        sample_hidden((1, 1, 2), 0.5, rng, np.array([[[True, False]]]))


def test_a_block_is_eligible_with_more_than_a_tenth_of_head() -> None:
    assert eligible_blocks(np.array([0.0, 0.1, 0.11, 1.0])).tolist() == [False, False, True, True]
    grid = np.zeros((2, 3, 4), dtype=bool)
    grid.ravel()[:7] = True
    assert not enough_to_hide(grid)
    grid.ravel()[7] = True
    assert enough_to_hide(grid)
    assert enough_to_hide(np.ones((1, 2, 2), dtype=bool))


def test_a_ratio_is_a_number_without_a_draw_or_drawn_from_its_range() -> None:
    rng = np.random.default_rng(4)
    state = rng.bit_generator.state
    assert sample_ratio(0.75, rng) == 0.75
    assert rng.bit_generator.state == state
    ratios = [sample_ratio((0.6, 0.9), rng) for _ in range(1000)]
    assert 0.6 <= min(ratios) < 0.61
    assert 0.89 < max(ratios) <= 0.9
    assert abs(np.mean(ratios) - 0.75) < 0.01


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
