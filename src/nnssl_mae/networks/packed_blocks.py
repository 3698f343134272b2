"""The visible blocks of a batch, one after the other in memory, and what lies around each of them.

Packed features have the shape (M, C, e0, e1, e2): a first slot that stays zero and stands for whatever is hidden or
outside of the patch, then one slot a visible block, in the order of the samples and of the blocks in them. Samples may
have different numbers of visible blocks; there is no padding between them. Values of a voxel lie side by side
(channels last), so that a window around a block is gathered by rows.
"""

from __future__ import annotations

from typing import Any

import torch

from nnssl_mae.masking import as_blocks

Edges = tuple[int, int, int]


class Packing:
    """Where each block of a batch of masks lies in packed features. Made once a forward pass, for all resolutions.

    Args:
        hidden: bool (B, 1, d, h, w), True = hidden.
        visible_blocks: how many blocks of the batch are visible, or more: slots to spare stay zero, so a caller may
            round up to keep shapes the same. None counts, which on a GPU waits for the device once.

    Raises:
        RuntimeError: more blocks are visible than ``visible_blocks``; on a GPU when the device gets there.
    """

    def __init__(self, hidden: torch.Tensor, visible_blocks: int | None = None) -> None:
        visible = ~hidden.flatten()
        count = int(visible.sum()) if visible_blocks is None else min(visible_blocks, visible.numel())
        torch._assert_async(visible.sum() <= count, "more blocks are visible than visible_blocks says")
        self.samples, self.grid = hidden.shape[0], triple(hidden.shape[2:])
        self.slots = count + 1
        # A stable sort puts visible blocks first and keeps their order: no wait for the device, no atomics.
        blocks = torch.argsort(hidden.flatten().to(torch.uint8), stable=True)[:count]
        self.blocks = torch.stack(_coordinates(blocks, self.grid))
        """int (4, M - 1): sample and position in the grid of the block in each slot but the first."""
        self.taken = torch.cat((visible.new_zeros(1), visible[blocks]))
        """bool (M,), True = the slot holds a visible block."""
        belongs = self.blocks[0] == torch.arange(self.samples, device=hidden.device)[:, None]
        self.members = torch.nn.functional.pad(belongs, (1, 0)) & self.taken
        """bool (B, M), True = the slot holds a visible block of the sample."""
        self.neighbours = _neighbours(visible.reshape(self.samples, *self.grid), self.blocks, self.taken)
        """int32 (M, 27): the slot of each block's neighbours and, in the middle, itself."""
        self._rows: dict[tuple[Edges, Edges, Edges], torch.Tensor] = {}

    def pack(self, dense: torch.Tensor) -> torch.Tensor:
        """Visible blocks of dense features (B, C, D, H, W) as packed features."""
        result: torch.Tensor = _Pack.apply(dense, self.blocks, self.samples, self.grid)
        # A spare slot holds some hidden block until here.
        return result.masked_fill(~self.taken[:, None, None, None, None], 0)

    def unpack(self, features: torch.Tensor) -> torch.Tensor:
        """Packed features as dense ones (B, C, D, H, W), contiguous, zero at hidden positions."""
        result: torch.Tensor = _Unpack.apply(features, self.blocks, self.samples, self.grid)
        return result

    def window_rows(self, edges: Edges, before: Edges, after: Edges) -> torch.Tensor:
        """Which rows of packed features make up the window of each slot: the block and so many voxels around it.

        Args:
            edges: of the blocks, in voxels of the feature map.
            before, after: how many voxels of the neighbours a window has on each axis; at most ``edges``.

        Returns:
            int32 (M, w0, w1, w2); row r is voxel r mod (e0 e1 e2) of slot r div (e0 e1 e2).
        """
        key = (edges, before, after)
        if key not in self._rows:
            self._rows[key] = _window_rows(self.neighbours, edges, before, after)
        return self._rows[key]


def triple(values: Any) -> Edges:
    """A number for each axis, from one number or three."""
    a, b, c = (values,) * 3 if isinstance(values, int) else values
    return a, b, c


def rows(features: torch.Tensor) -> torch.Tensor:
    """Packed features as (M, voxels, C); a view where channels are last in memory."""
    return features.permute(0, 2, 3, 4, 1).reshape(features.shape[0], -1, features.shape[1])


def windows(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The window of each slot, (M, C, w0, w1, w2), from the rows that ``Packing.window_rows`` gives."""
    gathered = rows(features).flatten(0, 1).index_select(0, index.flatten())
    return gathered.reshape(*index.shape, -1).permute(0, 4, 1, 2, 3)


class _Pack(torch.autograd.Function):
    """Each is the gradient of the other; no block is written twice, so nothing is added up."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, blocks: torch.Tensor, samples: int, grid: Edges) -> torch.Tensor:
        ctx.save_for_backward(blocks)
        ctx.samples, ctx.grid = samples, grid
        return _packed(dense, blocks, grid)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (blocks,) = ctx.saved_tensors
        return _unpacked(grad, blocks, ctx.samples, ctx.grid), None, None, None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, blocks: torch.Tensor, samples: int, grid: Edges) -> torch.Tensor:
        ctx.save_for_backward(blocks)
        ctx.grid = grid
        return _unpacked(features, blocks, samples, grid)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (blocks,) = ctx.saved_tensors
        return _packed(grad, blocks, ctx.grid), None, None, None


def _packed(dense: torch.Tensor, blocks: torch.Tensor, grid: Edges) -> torch.Tensor:
    slots, channels = blocks.shape[1] + 1, dense.shape[1]
    edges = [size // n for size, n in zip(dense.shape[2:], grid, strict=True)]
    result = torch.empty(slots, *edges, channels, dtype=dense.dtype, device=dense.device)
    result[1:] = _block_view(dense.contiguous(), grid)[tuple(blocks)]
    result[0] = 0
    return result.permute(0, 4, 1, 2, 3)


def _unpacked(features: torch.Tensor, blocks: torch.Tensor, samples: int, grid: Edges) -> torch.Tensor:
    size = [n * edge for n, edge in zip(grid, features.shape[2:], strict=True)]
    dense = torch.zeros(samples, features.shape[1], *size, dtype=features.dtype, device=features.device)
    _block_view(dense, grid)[tuple(blocks)] = features.permute(0, 2, 3, 4, 1)[1:]
    return dense


def _block_view(dense: torch.Tensor, grid: Edges) -> torch.Tensor:
    """A view (B, d, h, w, e0, e1, e2, C) of contiguous features (B, C, D, H, W)."""
    return as_blocks(dense, dense.new_empty(1, 1, *grid)).permute(0, 2, 4, 6, 3, 5, 7, 1)


def _coordinates(blocks: torch.Tensor, grid: Edges) -> tuple[torch.Tensor, ...]:
    """Sample and position in the grid of blocks that are numbered through the batch."""
    _, h, w = grid
    a_sample = grid[0] * h * w
    return blocks // a_sample, blocks % a_sample // (h * w), blocks % (h * w) // w, blocks % w


def _neighbours(visible: torch.Tensor, blocks: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """int32 (M, 27) from the visible blocks (B, d, h, w); the first slot stands for all that are not visible."""
    around = torch.nn.functional.pad(visible.flatten().cumsum(0).reshape(visible.shape) * visible, (1, 1) * 3)
    sample, *position = blocks[:, :, None, None, None]
    step = torch.arange(3, device=visible.device)
    z, y, x = (
        place + offset for place, offset in zip(position, (step[:, None, None], step[:, None], step), strict=True)
    )
    table = torch.nn.functional.pad(around[sample, z, y, x].flatten(1), (0, 0, 1, 0))
    return (table * taken[:, None]).to(torch.int32)


def _window_rows(neighbours: torch.Tensor, edges: Edges, before: Edges, after: Edges) -> torch.Tensor:
    which: list[torch.Tensor] = []
    inside: list[torch.Tensor] = []
    for edge, low, high in zip(edges, before, after, strict=True):
        place = torch.arange(-low, edge + high, device=neighbours.device) + edge
        which.append(place // edge)
        inside.append(place % edge)
    neighbour = (which[0][:, None, None] * 3 + which[1][:, None]) * 3 + which[2]
    voxel = (inside[0][:, None, None] * edges[1] + inside[1][:, None]) * edges[2] + inside[2]
    slots = neighbours.index_select(1, neighbour.flatten()).reshape(-1, *neighbour.shape)
    return slots * (edges[0] * edges[1] * edges[2]) + voxel.to(torch.int32)
