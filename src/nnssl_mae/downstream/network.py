"""The network of a fine-tuning: the checkpoint's own, or continued for the patch and voxels of a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnssl_mae.backbones import (
    MIN_FEATURE_MAP_EDGE,
    backbone_of,
    divisors,
    for_patch,
    planned_topology,
    repeated,
)
from nnssl_mae.errors import UserError
from nnssl_mae.sizes import are_multiples, nearest_multiples, per_axis, sizes_in_words

_MAX_WIDTH = 320  # of nnU-Net's 3D networks
_DEPTHS = ("n_blocks_per_stage", "n_conv_per_stage")


@dataclass(frozen=True)
class SizedNetwork:
    """A network as nnU-Net's plans describe it, and a patch that it takes."""

    architecture: dict[str, Any]
    patch: tuple[int, ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """By what the network divides each axis of the patch on its way down."""
        return divisors(self.architecture)


def is_isotropic(architecture: Mapping[str, Any]) -> bool:
    """Whether all axes are treated alike: the same strides and kernels."""
    kwargs = architecture["arch_kwargs"]
    return all(
        len(set(per_axis(each))) == 1
        for key in ("strides", "kernel_sizes", "windows")
        if key in kwargs
        for each in (kwargs[key] if isinstance(kwargs[key], list | tuple) else [kwargs[key]])
    )


def as_trained(architecture: Mapping[str, Any], patch: Sequence[int]) -> SizedNetwork:
    """The checkpoint's network for a patch.

    Raises:
        UserError: its strides do not divide the patch, or leave a single voxel of it; with a patch that works.
    """
    units = divisors(architecture)
    if not are_multiples(patch, units) or math.prod(patch) == math.prod(units):
        nearest = nearest_multiples(patch, units)
        if math.prod(nearest) == math.prod(units):  # normalising over one voxel is impossible
            nearest = [2 * unit for unit in units]
        raise UserError(
            f"A patch of {sizes_in_words(patch)} does not fit the network, which divides it by {sizes_in_words(units)} "
            "and needs more than one voxel at its lowest resolution; the nearest that fits is --patch "
            f"{_spaced(nearest)}"
        )
    return SizedNetwork(for_patch(architecture, patch), tuple(int(edge) for edge in patch))


def continued(architecture: Mapping[str, Any], spacing: Sequence[float], patch: Sequence[int]) -> SizedNetwork:
    """The checkpoint's network with the strides and kernels that nnU-Net plans for a patch and voxel spacing.

    Widths, blocks and everything else are the checkpoint's; further stages get its last width doubled, up to nnU-Net's
    320, and its last number of blocks. A transformer keeps its strides too: what it learned is bound to them.

    Args:
        architecture: of the checkpoint; may lack strides.
        spacing: mm, in the axis order of the patch.
        patch: voxels; the returned one is enlarged where the strides need it.

    Raises:
        UserError: the patch is too small for a network with two stages.
    """
    if not backbone_of(architecture).is_convolutional:
        units = divisors(architecture)
        enough = [max(2, math.ceil(edge / unit)) * unit for edge, unit in zip(patch, units, strict=True)]
        return as_trained(architecture, enough)
    planned = planned_topology(spacing, patch)
    stages = len(planned.strides)
    if stages < 2:
        raise UserError(
            f"A patch of {sizes_in_words(patch)} is too small for a network with two stages; the nearest that fits is "
            f"--patch {_spaced([max(int(edge), 3 * MIN_FEATURE_MAP_EDGE) for edge in patch])}"
        )
    kwargs = dict(architecture["arch_kwargs"])
    before = len(_as_list(kwargs["features_per_stage"], kwargs.get("n_stages", 1)))
    (depth,) = (key for key in _DEPTHS if key in kwargs)
    decoder = _as_list(kwargs["n_conv_per_stage_decoder"], before - 1)
    kwargs |= {
        "n_stages": stages,
        "features_per_stage": _widths(_as_list(kwargs["features_per_stage"], before), stages),
        "kernel_sizes": planned.kernels,
        "strides": planned.strides,
        depth: repeated(_as_list(kwargs[depth], before), stages),
        # The decoder counts from the lowest resolution.
        "n_conv_per_stage_decoder": repeated(decoder[::-1], stages - 1)[::-1],
    }
    return SizedNetwork({**architecture, "arch_kwargs": kwargs}, planned.patch)


def _widths(widths: Sequence[int], stages: int) -> list[int]:
    longer = list(widths)
    while len(longer) < stages:
        longer.append(max(longer[-1], min(2 * longer[-1], _MAX_WIDTH)))
    return longer[:stages]


def _as_list(value: Any, length: int) -> list[int]:
    """One number may stand for all stages."""
    return [value] * length if isinstance(value, int) else list(value)


def _spaced(sizes: Sequence[int]) -> str:
    return '"' + " ".join(str(int(size)) for size in sizes) + '"'
