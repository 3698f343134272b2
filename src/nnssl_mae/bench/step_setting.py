"""What is timed: recipes with a patch, a batch and a number format that fit this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnssl_mae.backbones import LAYER_CLASSES, layer_arguments
from nnssl_mae.errors import UserError
from nnssl_mae.masking import block_edges, sample_hidden
from nnssl_mae.plans import network_configuration
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import override

SMALL_PATCH = 48
_SMALL = {"network.max_stages": 4, "network.blocks_per_stage": (1,), "network.base_features": 8}
_SMALL_HEAD = 6  # channels of an attention head; Primus needs as many
_FEWEST_BLOCKS = 3  # along an edge of the patch; with two, every block would be at a corner
_PLANNED = {"arch_kwargs": layer_arguments(), "_kw_requires_import": list(LAYER_CLASSES)}


@dataclass(frozen=True)
class StepSetting:
    """One recipe as it is timed."""

    recipe: Recipe
    """With the sizes and the number format of this run."""
    configuration: Mapping[str, Any]
    """Patch and architecture as in nnU-Net's plans."""
    batch: int
    """Patches a step."""
    device: torch.device
    """CPU or GPU."""

    @property
    def architecture(self) -> Mapping[str, Any]:
        """As in nnU-Net's plans."""
        result: Mapping[str, Any] = self.configuration["architecture"]
        return result

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels, (Z, Y, X)."""
        a, b, c = self.configuration["patch_size"]
        return a, b, c

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of the mask along each axis."""
        edges = block_edges(self.patch, self.recipe.masking.block_size)
        a, b, c = (size // edge for size, edge in zip(self.patch, edges, strict=True))
        return a, b, c

    @property
    def ratio(self) -> float:
        """Share to hide. The middle of a range from which training draws: all variants must do the same work."""
        ratio = self.recipe.masking.ratio
        return sum(ratio) / 2 if isinstance(ratio, tuple) else ratio

    @property
    def number_format(self) -> str:
        """fp32, fp16 or bf16."""
        return self.recipe.optimiser.precision

    @property
    def voxels(self) -> int:
        """Of a step."""
        return self.batch * int(np.prod(self.patch))

    def volumes(self) -> torch.Tensor:
        """Noise (B, 1, D, H, W) in memory of the host."""
        noise = torch.randn(self.batch, 1, *self.patch, generator=torch.Generator().manual_seed(self.recipe.seed))
        return self._pinned(noise)

    def hidden(self, rng: np.random.Generator) -> torch.Tensor:
        """Masks of a batch, bool (B, 1, d, h, w), True = hidden; all samples hide the same number of blocks."""
        return self._pinned(torch.stack([sample_hidden(self.grid, self.ratio, rng) for _ in range(self.batch)]))

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """As loader processes hand it over: the copy to a GPU then waits for nobody."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def sized(recipe: Recipe, patch: int | None, features: int | None, small: bool) -> Recipe:
    """The recipe with other sizes, of the network and, where the patch is smaller than published, of the blocks.

    Args:
        recipe: as published.
        patch: edge in voxels; none keeps the patch of the recipe.
        features: channels of the first stage; none keeps those of the recipe.
        small: few stages of one block and few channels instead of the recipe's.

    Raises:
        UserError: the patch is missing, or the network or its blocks do not divide it.
    """
    if patch is None and isinstance(recipe.network.patch_size, str):
        raise UserError(f"The recipe '{recipe.name}' leaves its patch to nnU-Net's planner; give one with --patch 160")
    result = _with_sizes(recipe, patch, features, small)
    if not _fits(result):
        raise UserError(_nearest(recipe, patch, features, small))
    return result


def setting_of(recipe: Recipe, batch: int, number_format: str, device: torch.device) -> StepSetting:
    """A recipe of :func:`sized` for a batch in a number format."""
    recipe = override(recipe, {"optimiser.precision": number_format, "network.batch_size": batch})
    return StepSetting(recipe, _configuration(recipe), batch, device)


def _with_sizes(recipe: Recipe, patch: int | None, features: int | None, small: bool) -> Recipe:
    changes: dict[str, Any] = dict(_SMALL) if small else {}
    if small and recipe.network.is_transformer:
        width = _SMALL_HEAD * recipe.network.transformer.heads
        changes = {"network.blocks_per_stage": (1,), "network.base_features": width}
    if features is not None:
        changes |= {"network.base_features": features}
    if patch is not None:
        block = min(recipe.masking.block_size, patch // _FEWEST_BLOCKS)
        changes |= {"network.patch_size": (patch,) * 3, "masking.block_size": min(block_edges((patch,) * 3, block))}
    return override(recipe, changes)


def _configuration(recipe: Recipe) -> dict[str, Any]:
    spacing = (1.0, 1.0, 1.0) if isinstance(recipe.data.spacing, str) else recipe.data.spacing
    return network_configuration(_PLANNED, recipe.network, spacing, recipe.masking.block_size)


def _fits(recipe: Recipe) -> bool:
    try:
        _configuration(recipe)
    except UserError:
        return False
    return True


def _nearest(recipe: Recipe, patch: int | None, features: int | None, small: bool) -> str:
    """A sentence with the nearest patch that fits."""
    wanted = patch or SMALL_PATCH
    for edge in sorted(range(16, 513), key=lambda edge: (abs(edge - wanted), edge)):
        if _fits(_with_sizes(recipe, edge, features, small)):
            return f"--patch {wanted} does not fit the recipe '{recipe.name}'; the nearest that fits is --patch {edge}"
    return f"No patch fits the recipe '{recipe.name}'; choose another recipe"
