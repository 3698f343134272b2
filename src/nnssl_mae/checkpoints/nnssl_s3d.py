"""S3D ("Spark") checkpoints of nnssl: their doubled tensors, their tokens, and the network that fits them.

Three facts of nnssl's network leave no trace in the file and differ from ours: with densification, features of each
resolution are normalised over visible positions (without weights) before the tokens are put in; a resolution coarser
than the mask counts as visible as a whole; and the first convolution sees the volume unhidden. The first two are
repeated here. The third is not: a picture of it would not show what the network can reconstruct.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from nnssl_mae.masking import hidden_voxels
from nnssl_mae.networks.masked_norm import masked_instance_norm
from nnssl_mae.networks.pretraining import PretrainingNetwork
from nnssl_mae.networks.sparse import run_masked, visible_at

_TOKEN = re.compile(r"(?:.*\.)?mask_tokens\.(\d+)")
_DENSIFY = re.compile(r"(?:.*\.)?densify_projs\.(\d+)\.(weight|bias)")


def s3d_parts(spark: Any, widths: Sequence[int]) -> dict[str, torch.Tensor] | str:
    """Mask tokens and densification convolutions under the names of our network, or why they cannot be mapped.

    Args:
        spark: ``spark_weights`` of the file.
        widths: channels of each resolution, highest first.
    """
    try:
        tokens = {int(m[1]): tensor for name, tensor in spark.items() if (m := _TOKEN.fullmatch(name))}
        convs = {(int(m[1]), m[2]): tensor for name, tensor in spark.items() if (m := _DENSIFY.fullmatch(name))}
        shapes_fit = all(tensor.numel() == tensor.shape[1] for tensor in tokens.values())
    except (AttributeError, TypeError, IndexError):
        return "its 'spark_weights' are not tensors"
    if not tokens and not convs:
        return {}
    channels = [tokens[level].shape[1] for level in sorted(tokens)]
    if not shapes_fit or sorted(tokens) != list(range(len(widths))) or channels != list(widths):
        return (
            f"its mask tokens have {channels} channels where the resolutions have {list(widths)}, highest first, so it "
            "is not clear where each belongs"
        )
    wanted = {(level, part) for level in range(1, len(widths)) for part in ("weight", "bias")} if convs else set()
    fits = all(tensor.shape[0] == widths[level] for (level, _), tensor in convs.items() if level < len(widths))
    kernels = {tuple(tensor.shape[2:]) for (_, part), tensor in convs.items() if part == "weight"}
    if set(convs) != wanted or not fits or kernels - {(3, 3, 3)}:
        return "its densification is not a 3x3x3 convolution at each resolution but the highest"
    named = {f"mask_tokens.{level}": token.reshape(1, -1, 1, 1, 1) for level, token in tokens.items()}
    return named | {f"densifiers.{level}.{part}": tensor for (level, part), tensor in convs.items()}


class ReleasedS3DNetwork(PretrainingNetwork):
    """Our sparse network with what nnssl does differently, see above. Same names, same arguments."""

    def encode(
        self, shown: torch.Tensor, hidden: torch.Tensor, visible_blocks: int | None = None
    ) -> list[torch.Tensor]:
        """Features of each resolution, highest first; zero at hidden positions unless coarser than the mask."""
        features, x = [], run_masked(self.encoder.stem, shown, hidden)
        for stage, stride in zip(self.encoder.stages, self.encoder.strides, strict=True):
            size = [edge // step for edge, step in zip(x.shape[2:], stride, strict=True)]
            x = run_masked(stage, x, _hidden_at(hidden, size))
            features.append(x)
        return features

    def fill(self, features: list[torch.Tensor], hidden: torch.Tensor) -> list[torch.Tensor]:
        """Tokens in hidden positions, and densification, of features that are normalised first if densified."""
        return [self._filled(str(level), x, _hidden_at(hidden, x.shape[2:])) for level, x in enumerate(features)]

    def _filled(self, level: str, features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "densifiers"):
            features = masked_instance_norm(features, visible_at(hidden, features.shape[2:]), None, None)
        if hasattr(self, "mask_tokens"):
            features = torch.where(hidden_voxels(hidden, features.shape[2:]), self.mask_tokens[level], features)
        if hasattr(self, "densifiers") and level in self.densifiers:
            features = self.densifiers[level](features)
        return features


def _hidden_at(hidden: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The mask for a feature map of this size: nothing is hidden where the map is coarser than the mask."""
    coarser = all(edge < blocks for edge, blocks in zip(size, hidden.shape[2:], strict=True))
    return torch.zeros_like(hidden[:, :, :1, :1, :1]) if coarser else hidden
