"""Intensity augmentations of a pre-training recipe. Each is off (probability 0) unless a recipe says otherwise.

The set and its published numbers are those of AMAES (Munk et al. 2024, arXiv 2408.00640), for volumes in [0, 1].
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from nnssl_mae.recipes.base import FrozenRecipe, Probability, Spread, low_first

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(ge=0.01)]
_Count = Annotated[int, Field(ge=2)]
Shares = Annotated[tuple[_Share, _Share], AfterValidator(low_first)]
Positives = Annotated[tuple[_Positive, _Positive], AfterValidator(low_first)]
Counts = Annotated[tuple[_Count, _Count], AfterValidator(low_first)]


class AdditiveNoise(FrozenRecipe):
    """Gaussian noise added to each voxel."""

    probability: Probability = 0.0
    """Share of the patches."""
    sigma: Spread = (1e-4, 1e-3)
    """Standard deviation, in units of the normalised volume. The published range is invisible to the eye."""


class MultiplicativeNoise(FrozenRecipe):
    """Each voxel times (1 + Gaussian noise)."""

    probability: Probability = 0.0
    """Share of the patches."""
    sigma: Spread = (1e-4, 1e-3)
    """Standard deviation of the factor."""


class Blur(FrozenRecipe):
    """Gaussian smoothing."""

    probability: Probability = 0.0
    """Share of the patches."""
    sigma: Spread = (0.0, 1.0)
    """Standard deviation in voxels."""


class Ghosting(FrozenRecipe):
    """Motion ghosts: faint shifted copies along one axis, from periodically weakened lines of k-space."""

    probability: Probability = 0.0
    """Share of the patches."""
    alpha: Shares = (0.85, 0.95)
    """Factor of the weakened lines; 1 leaves the patch as it is."""
    repeats: Counts = (2, 11)
    """Number of ghosts: every n-th line of k-space is left alone. Both ends included."""


class GibbsRinging(FrozenRecipe):
    """Ringing beside edges: the outer lines of k-space along one axis are cut off."""

    probability: Probability = 0.0
    """Share of the patches."""
    kept: Shares = (0.75, 1.0)
    """Share of the lines that is kept; the published cut at 96 to 129 of 128 lines."""


class LowResolution(FrozenRecipe):
    """Sampled down and up again."""

    probability: Probability = 0.0
    """Share of the patches."""
    zoom: Positives = (0.5, 1.0)
    """Size of the small version relative to the patch."""


class BiasField(FrozenRecipe):
    """A smooth multiplicative field: the exponential of a polynomial of third order with random coefficients."""

    probability: Probability = 0.0
    """Share of the patches."""
    largest_coefficient: float = Field(0.5, ge=0, le=4)
    """Coefficients are drawn from plus or minus this number."""


class Gamma(FrozenRecipe):
    """Voxels, scaled to [0, 1], to the power of gamma."""

    probability: Probability = 0.0
    """Share of the patches."""
    gamma: Positives = (0.5, 2.0)
    """Exponent."""
    inverted_probability: Probability = 0.0
    """Share of the patches whose negative is treated, independently of the first."""


class IntensityRecipe(FrozenRecipe):
    """Changes of the network's input only, after the spatial augmentation and before hiding, in this order."""

    additive_noise: AdditiveNoise = AdditiveNoise()
    """Gaussian noise, added."""
    blur: Blur = Blur()
    """Gaussian smoothing."""
    multiplicative_noise: MultiplicativeNoise = MultiplicativeNoise()
    """Gaussian noise, multiplied."""
    ghosting: Ghosting = Ghosting()
    """Motion ghosts."""
    gibbs_ringing: GibbsRinging = GibbsRinging()
    """Ringing from cut k-space."""
    low_resolution: LowResolution = LowResolution()
    """Down and up again."""
    bias_field: BiasField = BiasField()
    """Smooth shading."""
    gamma: Gamma = Gamma()
    """Contrast."""
    clip_to_range: bool = True
    """Afterwards, clip to the lowest and highest value that the patch had before."""

    @property
    def active(self) -> bool:
        """Whether anything can happen at all."""
        parts = (self.additive_noise, self.blur, self.multiplicative_noise, self.ghosting, self.gibbs_ringing,
                 self.low_resolution, self.bias_field, self.gamma)  # fmt: skip
        return any(part.probability > 0 for part in parts) or self.gamma.inverted_probability > 0
