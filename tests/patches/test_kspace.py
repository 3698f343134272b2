import pytest
import torch

from nnssl_mae.patches.kspace import GhostingTransform, GibbsRingingTransform, add_ghosts, cut_outer_lines

VOXELS = 60


def volume(shape: tuple[int, ...] = (12, 15, 16)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def along(axis: int, profile: torch.Tensor) -> torch.Tensor:
    """A volume (3 voxels thick elsewhere) that changes along one axis only."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return profile.view(shape).expand(*[VOXELS if a == axis else 3 for a in range(3)]).contiguous()


def profile_along(axis: int, result: torch.Tensor) -> torch.Tensor:
    return result.movedim(axis, 0)[:, 1, 1]


def bar(*voxels: int) -> torch.Tensor:
    profile = torch.zeros(VOXELS)
    profile[list(voxels)] = 1
    return profile


def step() -> torch.Tensor:
    return (torch.arange(VOXELS) % VOXELS < VOXELS // 2).float()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("repeats", [2, 3, 4, 6, 10])
def test_a_bar_has_its_ghosts_an_nth_of_the_field_of_view_apart(axis: int, repeats: int) -> None:
    alpha = 0.8
    result = profile_along(axis, add_ghosts(along(axis, bar(5)), axis, alpha, repeats))
    expected = alpha * bar(5)
    expected[[(5 + ghost * VOXELS // repeats) % VOXELS for ghost in range(repeats)]] += (1 - alpha) / repeats
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("repeats", [7, 11])
def test_ghosts_whose_number_does_not_divide_the_size_lie_at_the_nearest_voxels(repeats: int) -> None:
    result = profile_along(0, add_ghosts(along(0, bar(0)), 0, 0.0, repeats))
    brightest = set(result.topk(repeats).indices.tolist())
    assert brightest == {round(ghost * VOXELS / repeats) % VOXELS for ghost in range(repeats)}


def test_ghosts_stay_on_their_axis() -> None:
    point = torch.zeros(12, 12, 12)
    point[2, 3, 4] = 1
    changed = (add_ghosts(point, 1, 0.9, 4) - point).abs() > 1e-6
    assert changed.nonzero().tolist() == [[2, 0, 4], [2, 3, 4], [2, 6, 4], [2, 9, 4]]


def test_an_alpha_of_one_and_all_lines_kept_change_no_bit() -> None:
    assert torch.equal(add_ghosts(volume(), 0, 1.0, 3), volume())
    assert torch.equal(cut_outer_lines(volume(), 1, 1.0), volume())


@pytest.mark.parametrize("axis", range(3))
def test_mean_and_sign_survive(axis: int) -> None:
    dark = volume() - 5
    for result in (add_ghosts(dark, axis, 0.5, 3), cut_outer_lines(dark, axis, 0.3), cut_outer_lines(dark, axis, 0.0)):
        assert not torch.allclose(result, dark, atol=1e-2)
        assert torch.allclose(result.mean(axis), dark.mean(axis), atol=1e-5)
        assert result.max() < 0


@pytest.mark.parametrize("axis", range(3))
def test_a_cut_makes_edges_ring(axis: int) -> None:
    result = profile_along(axis, cut_outer_lines(along(axis, step()), axis, 0.5))
    plateau = result[: VOXELS // 2]
    overshoot = plateau.max() - 1
    assert 0.05 < overshoot < 0.15, "the Gibbs phenomenon is 9 % of a step"
    assert plateau[-4:].max() == plateau.max() or plateau[:4].max() == plateau.max(), "strongest beside the edge"
    turns = (plateau.diff().sign().diff() != 0).sum()
    assert turns > 6, "it oscillates"
    middle = plateau[VOXELS // 4 - 3 : VOXELS // 4 + 3]
    assert (middle - 1).abs().max() < overshoot / 2, "and fades with distance"


@pytest.mark.parametrize(("wave", "stays"), [(1, True), (15, True), (16, False), (30, False)])
def test_a_cut_to_half_of_the_lines_removes_waves_above_half_of_the_highest(wave: int, stays: bool) -> None:
    waves = along(2, torch.cos(2 * torch.pi * wave * torch.arange(VOXELS) / VOXELS))
    expected = waves if stays else torch.zeros_like(waves)
    assert torch.allclose(cut_outer_lines(waves, 2, 0.5), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 2), (5, 3, 1)])
@pytest.mark.parametrize("axis", range(3))
def test_thin_and_odd_patches_keep_their_shape(shape: tuple[int, ...], axis: int) -> None:
    for result in (add_ghosts(volume(shape), axis, 0.9, 11), cut_outer_lines(volume(shape), axis, 0.8)):
        assert result.shape == shape
        assert result.isfinite().all()
        assert result.dtype == torch.float32


@pytest.mark.parametrize("transform", [GhostingTransform((0.5, 0.6), (2, 5)), GibbsRingingTransform((0.3, 0.5))])
def test_a_draw_can_be_applied_twice_and_never_works_in_place(
    transform: GhostingTransform | GibbsRingingTransform,
) -> None:
    image = volume((2, 12, 15, 16))
    draw = transform.get_parameters(image=image)
    once, twice = (transform.apply({"image": image}, **draw)["image"] for _ in range(2))
    assert torch.equal(image, volume((2, 12, 15, 16)))
    assert torch.equal(once, twice)
    assert not torch.allclose(once, image, atol=1e-3)


def test_channels_are_acquisitions_of_their_own() -> None:
    channels = 60  # as many draws miss no axis
    image = volume((12, 8, 8))[None].expand(channels, -1, -1, -1)
    draw = GhostingTransform((0.5, 0.6), (2, 11)).get_parameters(image=image)
    assert len(set(draw["alphas"])) == channels
    assert set(draw["axes"]) == {0, 1, 2}
    assert set(GibbsRingingTransform((0.5, 0.6)).get_parameters(image=image)["axes"]) == {0, 1, 2}
