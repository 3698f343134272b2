"""How a map of tokens falls into windows: who attends to whom, and which bias belongs to a pair (Liu et al. 2021).

Everything here follows from sizes alone. What a network needs again in every step is remembered by these sizes, outside
the network, so its weights fit maps of every size and its state holds nothing but weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import ParamSpec, cast

import torch
from torch.nn import functional as F

Shape = tuple[int, int, int]
_Arguments = ParamSpec("_Arguments")

_SPACE = (1, 2, 3)
_PADDING = 8  # a group of its own, beside the eight that shifts along three axes make


@dataclass(frozen=True)
class Windows:
    """The windows of one map, ``windows_of`` finds them. All sizes are in tokens (depth, height, width)."""

    map_shape: Shape
    window: Shape
    """No longer than the map."""
    shift: Shape
    """By how much the windows are moved to higher positions; 0 along an axis with one window."""

    @property
    def padded(self) -> Shape:
        """The map's shape with the padding at its high end that fills the last windows."""
        depth, height, width = (
            -(-edge // window) * window for edge, window in zip(self.map_shape, self.window, strict=True)
        )
        return depth, height, width

    @property
    def has_strangers(self) -> bool:
        """Whether a window holds tokens that must not attend to each other."""
        return any(self.shift) or self.padded != self.map_shape

    def partition(self, tokens: torch.Tensor) -> torch.Tensor:
        """A map (B, D, H, W, C) as windows (B * windows, tokens of a window, C); padding is zero."""
        missing = [full - edge for full, edge in zip(self.padded, self.map_shape, strict=True)]
        if any(missing):
            tokens = F.pad(tokens, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        if any(self.shift):
            tokens = torch.roll(tokens, [-shift for shift in self.shift], _SPACE)
        d, h, w = self.window
        blocks = tokens.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, d))
        return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)

    def merge(self, windows: torch.Tensor) -> torch.Tensor:
        """The inverse of ``partition``, without the padding."""
        counts = [full // edge for full, edge in zip(self.padded, self.window, strict=True)]
        blocks = windows.unflatten(1, self.window).unflatten(0, (-1, *counts))
        tokens = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        if any(self.shift):
            tokens = torch.roll(tokens, self.shift, _SPACE)
        depth, height, width = self.map_shape
        return tokens[:, :depth, :height, :width]


def windows_of(map_shape: Shape, window: Shape, shifted: bool) -> Windows:
    """Windows for a map of any size.

    Args:
        map_shape: of the map, in tokens.
        window: what a window spans where the map is long enough; it is cut to the map elsewhere.
        shifted: move the windows by half of their length, where an axis has more than one.
    """
    edges = list(zip(map_shape, window, strict=True))
    depth, height, width = (min(edge, length) for edge, length in edges)
    moved = [length // 2 if shifted and edge > length else 0 for edge, length in edges]
    return Windows(map_shape, (depth, height, width), (moved[0], moved[1], moved[2]))


def _remembered(make: Callable[_Arguments, torch.Tensor]) -> Callable[_Arguments, torch.Tensor]:
    """Keeps the last results; they are shared, so nobody may write into them."""

    def make_for_all(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> torch.Tensor:
        # Made while predicting, it would otherwise be refused by the backward pass of a later training step.
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    kept = cast(Callable[_Arguments, torch.Tensor], lru_cache(maxsize=32)(make_for_all))

    @wraps(make)
    def find(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> torch.Tensor:
        # The compiler evaluates constants itself, and cannot look into a cache.
        return make(*args, **kwargs) if torch.compiler.is_compiling() else kept(*args, **kwargs)

    return find


@_remembered
def attention_groups(windows: Windows, device: torch.device) -> torch.Tensor:
    """The group of each token, int64 (windows, tokens of a window): tokens attend within their group only.

    A shift brings the two ends of the map into one window: they are different groups. Padding is a group too, so
    nothing attends to it, and its own attention (which is cut off) still has something to attend to.
    """
    groups = torch.zeros(windows.padded, dtype=torch.long, device="cpu")
    for axis, (edge, full, shift) in enumerate(zip(windows.map_shape, windows.padded, windows.shift, strict=True)):
        positions = torch.arange(full, device="cpu").view([-1 if other == axis else 1 for other in range(3)])
        groups += (positions < shift) * 2**axis
        groups.masked_fill_((positions >= edge), _PADDING)
    groups.clamp_(max=_PADDING)
    whole = Windows(windows.padded, windows.window, windows.shift)
    return whole.partition(groups[None, ..., None]).squeeze(-1).to(device)


@_remembered
def bias_index(window: Shape, cut: Shape, legacy: bool, device: torch.device) -> torch.Tensor:
    """Where a pair of tokens finds its bias in a table of all offsets, int64 (tokens, tokens): query, key.

    Args:
        window: whose offsets the table holds, prod(2 * edge - 1) of them.
        cut: the window in use, no longer than ``window``.
        legacy: number the offsets as nnFormer's released code does. It multiplies them by 3h - 1 and 2h - 1 instead
            of by (2h - 1)(2w - 1) and 2w - 1, so different offsets share an entry: 115 of 343 are used for 4 x 4 x 4.
        device: of the result.
    """
    positions = torch.cartesian_prod(*(torch.arange(edge, device="cpu") for edge in cut))
    offsets = positions[:, None] - positions[None] + torch.tensor(window, device="cpu") - 1
    return (offsets * torch.tensor(_steps(window, legacy), device="cpu")).sum(-1).to(device)


def table_entries(window: Shape) -> int:
    """How many offsets there are between two tokens of a window."""
    depth, height, width = (2 * edge - 1 for edge in window)
    return depth * height * width


def legacy_index_fits(window: Shape) -> bool:
    """Whether the released numbering stays inside the table; along some flat windows it does not."""
    last = sum(2 * (edge - 1) * step for edge, step in zip(window, _steps(window, legacy=True), strict=True))
    return last < table_entries(window)


def _steps(window: Shape, legacy: bool) -> Shape:
    _, height, width = window
    if legacy:
        return 3 * height - 1, 2 * height - 1, 1
    return (2 * height - 1) * (2 * width - 1), 2 * width - 1, 1
