"""One tensor to another shape: by hand, and by the response that each rule promises to keep."""

import pytest
import torch
from torch.nn.functional import conv3d, conv_transpose3d

from nnssl_mae.checkpoints.fitting import check_channel_map, fit, fit_channels, fit_kernel, fit_transposed_kernel
from nnssl_mae.errors import UserError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filters(*taps: float) -> torch.Tensor:
    """A convolution with one channel and a kernel along the last axis."""
    return torch.tensor(taps, dtype=torch.float32).reshape(1, 1, 1, 1, -1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 2, 3), (6,)),
        ((1, 2, 3, 4, 5), (3, 3, 9)),
        ((1, 2, 3, 4, 5, 6, 7), (6, 4, 18)),
        ((1, 2, 3, 4, 5), (15,)),
        ((4,), (0, 4, 0)),
        ((1, 2, 3), (0, 1, 2, 3, 0)),
        ((1, 2, 3), (1, 2, 3)),
        ((1, 2), (1, 2)),
    ],
)
def test_kernels_by_hand(old, new) -> None:
    fitted = fit_kernel(filters(*old), (1, 1, len(new)))
    assert fitted is not None
    assert torch.equal(fitted.tensor, filters(*new))
    assert bool(fitted.how) == (old != new)


@pytest.mark.parametrize(("old", "new"), [(2, 1), (2, 3), (3, 2), (1, 2), (4, 2)])
def test_an_even_kernel_has_no_counterpart_of_another_size(old: int, new: int) -> None:
    assert fit_kernel(random(1, 1, 3, 3, old), (3, 3, new)) is None


@pytest.mark.parametrize(
    ("old", "new"), [((1, 3), (2,)), ((5,), (5, 5)), ((1, 3), (1, 3)), ((1, 2, 3, 6), (3,)), ((7,), (7, 7, 7, 7))]
)
def test_upsampling_by_hand(old, new) -> None:
    fitted = fit_transposed_kernel(filters(*old), (1, 1, len(new)))
    assert fitted is not None
    assert torch.equal(fitted.tensor, filters(*new))
    assert bool(fitted.how) == (old != new)


def test_upsampling_by_three_has_no_counterpart_by_two() -> None:
    assert fit_transposed_kernel(random(1, 1, 1, 1, 3), (1, 1, 2)) is None


def test_channels_by_hand() -> None:
    three = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1, 1)
    assert fit_channels(three, 1).tensor.flatten().tolist() == [9]
    assert fit_channels(three, 2).tensor.flatten().tolist() == [4.5, 4.5]
    assert fit_channels(three[:, 2:], 4).tensor.flatten().tolist() == [1.5] * 4
    assert fit_channels(three, 4, [0, 2, 2, None]).tensor.flatten().tolist() == [1, 3, 3, 0]
    assert fit_channels(three, 3, [2, 1, 0]).tensor.flatten().tolist() == [6, 2, 1]
    assert fit_channels(three, 1, [1]).tensor.flatten().tolist() == [2]


def test_what_was_done_is_said() -> None:
    assert fit_channels(random(2, 1, 3, 3, 3), 4).how == "1 input channel to 4: repeated and divided by 4"
    assert fit_channels(random(2, 3, 3, 3, 3), 1).how == "3 input channels to 1: summed"
    assert fit_channels(random(2, 2, 3, 3, 3), 3).how == "2 input channels to 3: summed, repeated and divided by 3"
    assert fit_channels(random(2, 2, 3, 3, 3), 4, [0, 0, 1, None]).how == "input channels by the map 0 0 1 -"
    both = fit(random(2, 1, 3, 3, 3), (2, 2, 1, 3, 5), "first convolution")
    assert both is not None
    assert both.how == (
        "1 input channel to 2: repeated and divided by 2; kernel 3x3x3 to 1x3x5: outer taps added to the border, "
        "zeros around"
    )


@pytest.mark.parametrize("old", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 3, 4])
def test_the_response_to_equal_channels_stays(old: int, new: int) -> None:
    weight, volume = random(5, old, 3, 3, 3), random(2, 1, 6, 7, 8, seed=1)
    before = conv3d(volume.expand(-1, old, -1, -1, -1), weight, padding=1)
    after = conv3d(volume.expand(-1, new, -1, -1, -1), fit_channels(weight, new).tensor, padding=1)
    assert torch.allclose(after, before, rtol=0, atol=1e-6)


def test_a_mapped_channel_responds_as_the_one_it_takes() -> None:
    weight, volume, other = random(5, 2, 3, 3, 3), random(2, 2, 6, 7, 8, seed=1), random(2, 1, 6, 7, 8, seed=2)
    mapped = fit_channels(weight, 4, [0, 1, 0, None]).tensor
    first, second = volume[:, :1], volume[:, 1:]
    after = conv3d(torch.cat([first, second, first, other], dim=1), mapped, padding=1)
    assert torch.allclose(after, conv3d(volume, weight, padding=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (5, 3), (5, 1), (7, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_smaller_kernel_responds_the_same_to_what_does_not_vary_along_its_axis(axis, old, new, stride) -> None:
    sizes = [3, 3, 3]
    sizes[axis] = old
    weight = random(4, 2, *sizes)
    volume = random(1, 2, 16, 16, 16, seed=1).narrow(axis + 2, 0, 1).expand(-1, -1, 16, 16, 16)
    wanted = [*sizes[:axis], new, *sizes[axis + 1 :]]
    fitted = fit_kernel(weight, wanted)
    assert fitted is not None
    before = conv3d(volume, weight, stride=stride, padding=[size // 2 for size in sizes])
    after = conv3d(volume, fitted.tensor, stride=stride, padding=[size // 2 for size in wanted])
    inside = slice(3, -3)  # the padding at the border does vary
    assert after.shape == before.shape
    difference = (after - before).transpose(2, axis + 2)[:, :, inside]
    assert difference.abs().max() < 1e-6


@pytest.mark.parametrize(("old", "new"), [((1, 3, 3), (3, 3, 3)), ((3, 1, 3), (3, 5, 3)), ((1, 1, 1), (3, 3, 3))])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_larger_kernel_responds_the_same_to_everything(old, new, stride: int) -> None:
    weight, volume = random(4, 2, *old), random(1, 2, 8, 8, 8, seed=1)
    fitted = fit_kernel(weight, new)
    assert fitted is not None
    before = conv3d(volume, weight, stride=stride, padding=[size // 2 for size in old])
    after = conv3d(volume, fitted.tensor, stride=stride, padding=[size // 2 for size in new])
    assert torch.allclose(after, before, rtol=0, atol=1e-6)


def test_upsampling_that_leaves_an_axis_gives_the_average_along_it() -> None:
    weight, volume = random(3, 4, 2, 2, 2), random(1, 3, 4, 4, 4, seed=1)
    fitted = fit_transposed_kernel(weight, (1, 2, 2))
    assert fitted is not None
    before = conv_transpose3d(volume, weight, stride=2)
    after = conv_transpose3d(volume, fitted.tensor, stride=(1, 2, 2))
    pairs = before.reshape(1, 4, 4, 2, 8, 8)
    assert torch.allclose(after, pairs.mean(dim=3), rtol=0, atol=1e-6)


def test_upsampling_along_a_new_axis_repeats_values() -> None:
    weight, volume = random(3, 4, 1, 2, 2), random(1, 3, 4, 4, 4, seed=1)
    fitted = fit_transposed_kernel(weight, (2, 2, 2))
    assert fitted is not None
    before = conv_transpose3d(volume, weight, stride=(1, 2, 2))
    after = conv_transpose3d(volume, fitted.tensor, stride=2)
    assert torch.allclose(after, before.repeat_interleave(2, dim=2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((4, 2, 3, 3, 3), "convolution"),  # other input channels than the first convolution's
        ((5, 1, 3, 3, 3), "first convolution"),  # other filters
        ((4, 1, 3, 3), "convolution"),  # of two dimensions
        ((4, 1, 2, 3, 3), "convolution"),
        ((4,), "vector"),
    ],
)
def test_other_shapes_have_no_rule(shape, kind) -> None:
    assert fit(random(4, 1, 3, 3, 3), shape, kind) is None
    assert fit(random(6), (7,), "vector") is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_a_copy_of_its_own_with_the_same_data_type(dtype) -> None:
    weight = random(4, 1, 3, 3, 3).to(dtype).to(memory_format=torch.channels_last_3d)
    kept = weight.clone()
    for shape in [(4, 1, 3, 3, 3), (4, 3, 1, 3, 3)]:
        fitted = fit(weight, shape, "first convolution")
        assert fitted is not None
        assert fitted.tensor.dtype == dtype
        assert fitted.tensor.is_contiguous()
        fitted.tensor.zero_()
    assert torch.equal(weight, kept)


def test_a_running_count_of_a_normalisation_stays_a_whole_number() -> None:
    fitted = fit(torch.tensor(7), (), "vector")
    assert fitted is not None
    assert torch.equal(fitted.tensor, torch.tensor(7))
    assert fitted.tensor.dtype == torch.int64


@pytest.mark.parametrize(
    ("channel_map", "sentence"),
    [
        ([0], "'0' has 1 entries and the dataset 2 channels"),
        ([0, 1, 2], "has 3 entries"),
        ([0, 2], "'0 2' takes channel 2, and the checkpoint has 2 channels; its channels are counted from 0 to 1"),
        ([0, -1], "takes channel -1"),
        ([None, None], "'- -' takes no channel of the checkpoint"),
    ],
)
def test_impossible_maps_are_refused(channel_map, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_channel_map(channel_map, old=2, new=2)


def test_possible_maps_are_not() -> None:
    for channel_map in ([0, 1], [1, 0], [0, None], [None, 1], [0, 0]):
        check_channel_map(channel_map, old=2, new=2)


def test_positions_on_the_same_grid_are_copied_exactly() -> None:
    position = torch.randn(1, 5, 2, 3, 4, dtype=torch.float64)
    fitted = fit(position, position.shape, "position")
    assert fitted is not None
    assert torch.equal(fitted.tensor, position)
    assert fitted.how == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_on_another_grid_are_interpolated_between_the_centres_of_tokens(dtype: torch.dtype) -> None:
    """What grows linearly over a patch still does, apart from the border; what is the same everywhere stays."""
    centres = (torch.arange(4) + 0.5) / 4
    position = torch.stack((centres.expand(2, 4, 4), torch.full((2, 4, 4), 3.0)))[None].to(dtype)
    fitted = fit(position, (1, 2, 3, 4, 8), "position")
    assert fitted is not None
    assert fitted.how == "positions of 2x4x4 tokens interpolated to 3x4x8"
    assert fitted.tensor.dtype == dtype
    finer = ((torch.arange(8) + 0.5) / 8).to(dtype).expand(3, 4, 8)
    torch.testing.assert_close(fitted.tensor[0, 0, :, :, 1:-1], finer[..., 1:-1])
    assert (fitted.tensor[0, 1] == 3).all()


def test_positions_of_another_width_have_no_rule() -> None:
    assert fit(torch.zeros(1, 2, 2, 2, 2), (1, 3, 4, 4, 4), "position") is None
