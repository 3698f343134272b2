import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnssl_mae.masking import hidden_voxels
from nnssl_mae.networks.masked_norm import masked_instance_norm


def by_loop(features, visible, weight, bias, eps=1e-5):
    """The definition, on gathered voxels of each sample and channel."""
    mask = hidden_voxels(visible, features.shape[2:])
    result = torch.zeros_like(features)
    for sample in range(features.shape[0]):
        where = mask[sample, 0]
        for channel in range(features.shape[1]):
            values = features[sample, channel][where]
            if values.numel():
                normed = (values - values.mean()) / torch.sqrt(values.var(correction=0) + eps)
                result[sample, channel] = torch.zeros_like(result[sample, channel]).masked_scatter(
                    where, normed * weight[channel] + bias[channel]
                )
    return result


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    """Two samples with different numbers of visible blocks, on a grid of unequal axes."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    visible = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    visible[0].view(-1)[[0, 3, 7]] = True
    visible[1].view(-1)[[1, 2, 4, 5, 6, 8, 11]] = True
    return 3 * randn(2, 3, 4, 6, 8) + 2, visible, randn(3), randn(3)


def test_output_and_gradients_equal_a_loop_over_gathered_voxels(inputs) -> None:
    features, visible, weight, bias = inputs
    given = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for norm in (masked_instance_norm, by_loop):
        leaves = [t.clone().requires_grad_() for t in (features, weight, bias)]
        output = norm(leaves[0], visible, leaves[1], leaves[2])
        output.backward(given)
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_numerical_gradients(inputs) -> None:
    features, visible, weight, bias = inputs
    leaves = [t.clone().requires_grad_() for t in (features[:, :1, :2, :3, :2], weight[:1], bias[:1])]
    assert torch.autograd.gradcheck(lambda x, w, b: masked_instance_norm(x, visible, w, b), leaves)


def test_all_visible_is_instance_norm(inputs) -> None:
    features, visible, weight, bias = inputs
    ours = masked_instance_norm(features, torch.ones_like(visible), weight, bias)
    torch.testing.assert_close(ours, F.instance_norm(features, weight=weight, bias=bias), rtol=0, atol=1e-12)


def test_hidden_positions_have_no_part(inputs) -> None:
    features, visible, weight, bias = inputs
    hidden = ~hidden_voxels(visible, features.shape[2:])
    changed = torch.where(hidden, torch.full_like(features, 1e6), features).requires_grad_()
    output = masked_instance_norm(changed, visible, weight, bias)
    assert torch.equal(output, masked_instance_norm(features, visible, weight, bias))
    assert (output.masked_select(hidden) == 0).all()
    output.square().sum().backward()
    assert (changed.grad.masked_select(hidden) == 0).all()


def test_a_sample_without_visible_positions_gives_zeros(inputs) -> None:
    features, visible, weight, bias = inputs
    visible = visible.clone()
    visible[0] = False
    features = features.clone().requires_grad_()
    output = masked_instance_norm(features, visible, weight, bias)
    output.sum().backward()
    assert (output[0] == 0).all()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_large_gradients_does_not_overflow(inputs, dtype) -> None:
    features, visible, weight, bias = (t if t.dtype == torch.bool else t.float() for t in inputs)
    given = torch.full(features.shape, 6e4)
    given[:, :, :1] *= -1
    leaves = [features.to(dtype).requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    output = masked_instance_norm(leaves[0], visible, leaves[1], leaves[2])
    output.backward(given.to(dtype))
    wide = [leaves[0].detach().float().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    masked_instance_norm(wide[0], visible, wide[1], wide[2]).backward(given.to(dtype).float())
    assert output.dtype == dtype
    for ours, expected in zip(leaves, wide, strict=True):
        assert torch.isfinite(ours.grad).all()
        scale = expected.grad.abs().max()
        assert (ours.grad.float() - expected.grad).abs().max() < 0.01 * scale


def test_an_activation_in_place_may_follow(inputs) -> None:
    features, visible, weight, bias = inputs
    features = features.clone().requires_grad_()
    nn.LeakyReLU(inplace=True)(masked_instance_norm(features, visible, weight, bias)).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_without_weights(inputs) -> None:
    features, visible, *_ = inputs
    output = masked_instance_norm(features, visible, None, None)
    ones, zeros = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(output, by_loop(features, visible, ones, zeros), rtol=0, atol=1e-10)
