"""Convolution and instance norm of packed features: what packed_blocks.py describes.

Both are one autograd function that keeps its input and nothing larger. The windows around blocks are gathered again
in the backward pass, and the gradient of the input is a convolution of windows of the gradient of the output: visible
blocks look at each other both ways, so that nothing is scattered or added up by the device in any order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nnssl_mae.networks.packed_blocks import Edges, Packing, rows, triple, windows


def packed_convolution(convolution: nn.Conv3d, features: torch.Tensor, packing: Packing) -> torch.Tensor:
    """What the layer computes in visible blocks; the first slot is not zero if it has a bias.

    Args:
        convolution: with odd kernels, padded by half a kernel, with strides that divide the edges of the blocks.
        features: (M, C, e0, e1, e2).
    """
    kernel, stride = triple(convolution.kernel_size), triple(convolution.stride)
    if kernel == (1, 1, 1):
        return cast(torch.Tensor, convolution(features))
    edges = triple(features.shape[2:])
    outside = [_halo(k, s) for k, s in zip(kernel, stride, strict=True)]
    of_input = packing.window_rows(edges, triple(h[0] for h in outside), triple(h[1] for h in outside))
    fewer = triple(edge // step for edge, step in zip(edges, stride, strict=True))
    of_output = packing.window_rows(fewer, triple(h[2] for h in outside), triple(h[3] for h in outside))
    # torch.compile refuses the same tensor twice.
    other = None if of_output is of_input else of_output
    # An own autograd function is outside of what autocast knows.
    features, weight, bias = _as_autocast(features, convolution.weight, convolution.bias)
    result: torch.Tensor = _PackedConvolution.apply(features, weight, bias, of_input, other, stride)
    return result


def packed_instance_norm(
    features: torch.Tensor,
    packing: Packing,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Instance norm of each sample and channel over its blocks; slots without a block become zero.

    Statistics and gradients are summed in 32 bit (64 for 64-bit features).

    Args:
        features: (M, C, e0, e1, e2), any floating type.
        weight, bias: (C,) or None.

    Returns:
        the shape and type of ``features``.
    """
    result: torch.Tensor = _PackedInstanceNorm.apply(features, packing.members, weight, bias, eps)
    return result


class _PackedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        of_input: torch.Tensor,
        of_output: torch.Tensor | None,
        stride: Edges,
    ) -> torch.Tensor:
        ctx.save_for_backward(features, weight, of_input, of_output)
        ctx.stride = stride
        return _channels_last(torch.conv3d(windows(features, of_input), weight, bias, stride))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        features, weight, of_input, of_output = ctx.saved_tensors
        to_features = None
        if ctx.needs_input_grad[0]:
            around = windows(grad, of_input if of_output is None else of_output)
            to_features = _towards_input(around, weight, ctx.stride, triple(features.shape[2:]))
        _, to_weight, to_bias = torch.ops.aten.convolution_backward(
            _channels_last(grad), windows(features, of_input), weight, [weight.shape[0]], ctx.stride, [0] * 3, [1] * 3,
            False, [0] * 3, 1, [False, *ctx.needs_input_grad[1:3]],
        )  # fmt: skip
        return to_features, to_weight, to_bias, None, None, None


def _towards_input(around: torch.Tensor, weight: torch.Tensor, stride: Edges, edges: Edges) -> torch.Tensor:
    """The gradient of the input in each block, from windows of the gradient of the output."""
    if stride == (1, 1, 1):
        # A plain convolution with the mirrored kernel computes only what is wanted.
        return _channels_last(torch.conv3d(around, weight.transpose(0, 1).flip(2, 3, 4)))
    halves = [size // 2 for size in weight.shape[2:]]
    # As far into the transposed convolution as the windows begin before the blocks; it cuts off as much at the end,
    # which is too much where the stride divides half a kernel.
    first = [step * (half // step) + half for half, step in zip(halves, stride, strict=True)]
    more = [0 if half % step else step - 1 for half, step in zip(halves, stride, strict=True)]
    wide = torch.conv_transpose3d(around, weight, None, stride, first, more)
    return _channels_last(wide[:, :, : edges[0], : edges[1], : edges[2]])


class _PackedInstanceNorm(torch.autograd.Function):
    """Sums of slots, then of samples: few passes over the large tensor, and a sum of few numbers for each sample."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        members: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        x = rows(features)
        wide = torch.promote_types(x.dtype, torch.float32)
        belongs, count = members.to(wide), _positions(members, x)
        mean = _of_samples(x.sum(dim=1, dtype=wide), belongs) / count
        centred = x - _of_slots(mean, belongs)
        squares = torch.linalg.vector_norm(centred, dim=1).square()
        rstd = (_of_samples(squares, belongs) / count + eps).rsqrt()
        factor = _of_slots(rstd if weight is None else rstd * weight.to(wide), belongs)
        shift = torch.zeros_like(mean) if bias is None else bias.to(wide).expand_as(mean)
        ctx.save_for_backward(features, members, weight, mean, rstd)
        ctx.has_bias = bias is not None
        # Into a tensor of its own, not a view: nnU-Net's activations work in place.
        result = torch.empty_like(features, memory_format=torch.channels_last_3d)
        _write(result, torch.addcmul(_of_slots(shift, belongs), centred, factor))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        features, members, weight, mean, rstd = ctx.saved_tensors
        x, belongs = rows(features), members.to(mean.dtype)
        count = _positions(members, x)
        centred = x - _of_slots(mean, belongs)
        # In 32 bit: the product of a large gradient and a feature overflows 16.
        given = rows(grad).to(mean.dtype)
        total = _of_samples(given.sum(dim=1), belongs)
        product = _of_samples((given * centred).sum(dim=1), belongs) * rstd
        factor = rstd if weight is None else rstd * weight.to(mean.dtype)
        result = torch.addcmul(_of_slots(-factor * total / count, belongs), given, _of_slots(factor, belongs))
        result = torch.addcmul(result, centred, _of_slots(-factor * product * rstd / count, belongs))
        to_features = torch.empty_like(features, memory_format=torch.channels_last_3d)
        _write(to_features, result)
        return (
            to_features,
            None,
            None if weight is None else product.sum(dim=0).to(weight.dtype),
            total.sum(dim=0).to(torch.float32 if weight is None else weight.dtype) if ctx.has_bias else None,
            None,
        )


def _halo(kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Voxels of the neighbours that matter on one axis, before and after a block: of the input to compute the output,
    then of the gradient of the output to compute that of the input."""
    half = kernel // 2
    return half, max(half - stride + 1, 0), half // stride, (half - 1) // stride + 1


def _positions(members: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Visible positions of each sample, at least 1, (B, 1)."""
    return members.sum(dim=1, keepdim=True).clamp_min(1) * x.shape[1]


def _of_samples(of_slots: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """Sums (B, C) of numbers (M, C). Not a matrix product, which the device may round to 10 bits."""
    return (belongs[:, :, None] * of_slots).sum(dim=1)


def _of_slots(of_samples: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """The numbers (B, C) of each slot's sample, (M, 1, C); zero without a block."""
    return (belongs[:, :, None] * of_samples[:, None]).sum(dim=0)[:, None]


def _write(result: torch.Tensor, values: torch.Tensor) -> None:
    result.permute(0, 2, 3, 4, 1).copy_(values.reshape(result.permute(0, 2, 3, 4, 1).shape))


def _channels_last(features: torch.Tensor) -> torch.Tensor:
    return features.contiguous(memory_format=torch.channels_last_3d)


def _as_autocast(*tensors: torch.Tensor | None) -> list[Any]:
    """In the type in which autocast would convolve; 64 bit stays."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]
