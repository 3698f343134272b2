"""Artefacts of MR acquisition that are simplest in k-space, the Fourier transform along one axis of a patch.

A patch is real, so its lines +k and -k are conjugates: both are always treated alike, which keeps the result real.
The magnitude is never taken, as z-scored patches have negative voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import sample_scalar
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform


class GhostingTransform(ImageOnlyTransform):
    """Motion ghosts, see ``add_ghosts``. Each channel is an acquisition with an axis and strength of its own.

    Args:
        alpha: range of the factor of the weakened lines.
        repeats: smallest and largest number of ghosts, both included.
    """

    def __init__(self, alpha: tuple[float, float], repeats: tuple[int, int]) -> None:
        super().__init__()
        self.alpha, self.repeats = alpha, repeats

    def get_parameters(self, image: torch.Tensor, **_: Any) -> dict[str, Any]:
        """Draws axis, alpha and number of ghosts for each channel of ``image`` (C, Z, Y, X)."""
        channels = len(image)
        return {
            "axes": _draw_axes(image),
            "alphas": [sample_scalar(self.alpha) for _ in range(channels)],
            "repeats": [int(n) for n in np.random.randint(self.repeats[0], self.repeats[1] + 1, channels)],
        }

    def _apply_to_image(
        self, img: torch.Tensor, axes: Sequence[int], alphas: Sequence[float], repeats: Sequence[int]
    ) -> torch.Tensor:
        return torch.stack([add_ghosts(*each) for each in zip(img, axes, alphas, repeats, strict=True)])


class GibbsRingingTransform(ImageOnlyTransform):
    """Gibbs ringing, see ``cut_outer_lines``. Each channel is an acquisition with an axis and strength of its own.

    Args:
        kept: range of the share of lines that is kept.
    """

    def __init__(self, kept: tuple[float, float]) -> None:
        super().__init__()
        self.kept = kept

    def get_parameters(self, image: torch.Tensor, **_: Any) -> dict[str, Any]:
        """Draws axis and kept share for each channel of ``image`` (C, Z, Y, X)."""
        return {"axes": _draw_axes(image), "kept": [sample_scalar(self.kept) for _ in range(len(image))]}

    def _apply_to_image(self, img: torch.Tensor, axes: Sequence[int], kept: Sequence[float]) -> torch.Tensor:
        return torch.stack([cut_outer_lines(*each) for each in zip(img, axes, kept, strict=True)])


def add_ghosts(volume: torch.Tensor, axis: int, alpha: float, repeats: int) -> torch.Tensor:
    """Weakens all lines of k-space along an axis but every ``repeats``-th, counted from its centre.

    Movement with a period of n lines modulates k-space with that period and so adds copies of the object a
    n-th of the field of view apart (Wood and Henkelman 1985, Medical Physics 12:143-151). With N voxels along the
    axis and the mask ``m(k) = 1 if k mod n == 0 else alpha``:

        inverse(m(k) X(k)) = alpha x + (1 - alpha) / n * sum over j < n of (x moved by j N / n)

    exactly where n divides N, and with slightly blurred copies elsewhere. The mean stays.

    Args:
        volume: (Z, Y, X), any unit.
        axis: 0, 1 or 2.
        alpha: factor of the weakened lines; 1 returns the volume bit for bit.
        repeats: n.

    Returns:
        A new tensor (Z, Y, X).
    """
    copies = _part_in_lines(volume, axis, slice(None, None, repeats))
    return alpha * volume + (1 - alpha) * copies


def cut_outer_lines(volume: torch.Tensor, axis: int, kept: float) -> torch.Tensor:
    """Sets the outer lines of k-space along an axis to zero, as if they had never been acquired.

    Edges then ring: the cut convolves the volume with a periodic sinc (Kellner et al. 2016, Magnetic Resonance in
    Medicine 76:1574-1581). The mean stays.

    Args:
        volume: (Z, Y, X), any unit.
        axis: 0, 1 or 2.
        kept: share of the lines that is kept, rounded to whole lines, and to one more where symmetry needs it;
            1 returns the volume bit for bit.

    Returns:
        A new tensor (Z, Y, X).
    """
    lines = round(kept * volume.shape[axis])
    return volume - _part_in_lines(volume, axis, slice(lines // 2 + 1, None))


def _draw_axes(image: torch.Tensor) -> list[int]:
    return [int(axis) for axis in np.random.randint(image.ndim - 1, size=len(image))]


def _part_in_lines(volume: torch.Tensor, axis: int, chosen: slice) -> torch.Tensor:
    """What the chosen lines contribute to the volume; line k stands for -k too."""
    spectrum = torch.fft.rfft(volume, dim=axis)
    window = torch.zeros(spectrum.shape[axis])
    window[chosen] = 1
    shape = [1] * volume.ndim
    shape[axis] = -1
    return torch.fft.irfft(spectrum * window.view(shape), n=volume.shape[axis], dim=axis)
