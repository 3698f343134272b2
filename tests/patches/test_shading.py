import numpy as np
import pytest
import torch

from nnssl_mae.patches.shading import BiasFieldTransform, MultiplicativeNoiseTransform, bias_field

SHAPE = (2, 10, 12, 14)


def image() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _same_draws_in_every_run() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


def random_field(shape: tuple[int, ...] = SHAPE[1:], largest: float = 0.5) -> torch.Tensor:
    empty = torch.empty(1, *shape)
    return bias_field(shape, BiasFieldTransform(largest).get_parameters(image=empty)["coefficients"])[0]


def test_the_field_is_the_exponential_of_the_written_polynomial() -> None:
    coefficients = torch.zeros(1, 4, 4, 4)
    coefficients[0, 1, 0, 0], coefficients[0, 0, 2, 1] = 0.4, -0.3
    field = bias_field((2, 5, 4), coefficients)
    z, y, x = -0.5, -0.8, 0.25
    assert field.shape == (1, 2, 5, 4)
    assert field[0, 0, 0, 2].item() == pytest.approx(np.exp(0.4 * z - 0.3 * y**2 * x), rel=1e-5)


def test_without_coefficients_no_bit_changes() -> None:
    assert torch.equal(BiasFieldTransform(0)(image=image())["image"], image())


def test_random_fields_are_positive_smooth_and_of_third_order() -> None:
    fields = [random_field((32, 32, 32)) for _ in range(20)]
    for field in fields:
        assert field.min() > 0
        assert field.log().diff(dim=0).abs().max() < 0.5, "no steps between neighbours"
        for axis in range(3):
            assert np.abs(np.diff(field.double().log().numpy(), 4, axis=axis)).max() < 1e-4
    thirds = [np.abs(np.diff(field.double().log().numpy(), 3, axis=0)).max() for field in fields]
    assert min(thirds) > 1e-6
    assert max(thirds) > 1e-4


def test_no_term_has_more_than_third_order_and_none_scales_the_whole_patch() -> None:
    coefficients = BiasFieldTransform(0.5).get_parameters(image=image())["coefficients"]
    order = np.indices((4, 4, 4)).sum(0)
    present = (coefficients != 0).numpy()
    assert np.array_equal(present[0], (order >= 1) & (order <= 3))
    assert np.array_equal(present[1], present[0])


def test_a_field_is_one_in_the_centre_and_varies_elsewhere() -> None:
    field = random_field((9, 9, 9))
    assert field[4, 4, 4].item() == pytest.approx(1)
    assert field.std() > 0.05


def test_the_field_multiplies() -> None:
    transform = BiasFieldTransform(0.5)
    draw = transform.get_parameters(image=image())
    one, double = (transform.apply({"image": scale * image()}, **draw)["image"] for scale in (1, 2))
    assert torch.allclose(double, 2 * one)
    assert not torch.allclose(one, image(), atol=0.1)


def test_multiplicative_noise_has_the_wanted_standard_deviation_relative_to_the_voxel() -> None:
    bright = torch.full((2, 32, 32, 32), 50.0)
    bright[1] = -4
    factor = MultiplicativeNoiseTransform((0.1, 0.1))(image=bright.clone())["image"] / bright
    for channel in factor:
        assert channel.mean().item() == pytest.approx(1, abs=2e-3)
        assert channel.std().item() == pytest.approx(0.1, rel=0.02)
    assert not torch.allclose(factor[0], factor[1], atol=1e-2)


def test_multiplicative_noise_leaves_zero_alone() -> None:
    assert MultiplicativeNoiseTransform((0.5, 0.9))(image=torch.zeros(SHAPE))["image"].abs().max() == 0


@pytest.mark.parametrize("transform", [BiasFieldTransform(0.5), MultiplicativeNoiseTransform((0.1, 0.2))])
def test_a_draw_can_be_applied_twice_and_never_works_in_place(
    transform: BiasFieldTransform | MultiplicativeNoiseTransform,
) -> None:
    given = image()
    draw = transform.get_parameters(image=given)
    once, twice = (transform.apply({"image": given}, **draw)["image"] for _ in range(2))
    assert torch.equal(given, image())
    assert torch.equal(once, twice)
    assert once.dtype == torch.float32
    assert not torch.allclose(once, given, atol=1e-2)
