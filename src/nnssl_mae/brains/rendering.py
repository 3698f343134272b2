"""Semi-synthetic brains: one real anatomy, bent and repainted differently for every subject.

The idea is SynthSeg's (Billot et al. 2023, "SynthSeg: segmentation of brain MRI scans of any contrast and
resolution without retraining", Medical Image Analysis 86): deform a labelled brain, draw an intensity for
each tissue, then add what scanners add. Two things differ: part of the template's real texture is kept, and
tissues mix in each voxel as in a real scan (partial volume) instead of being painted from hard labels.

Sampling and rendering are apart: ``sample_appearance`` makes every random choice from the generator it is
given, and ``render_brain`` is a pure function of its choices. All subjects of an anatomy share its folding, so
these volumes show that a method runs and what it does; they cannot show how well it serves patients.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl_mae.brains.anatomy import TISSUES, WHITE_MATTER, Anatomy
from nnssl_mae.brains.deformation import Shape, Vector, sample_at, smooth_field, source_coordinates

# Brightness of CSF, grey matter, white matter and lesion, from 0 (black) to 1 (white).
CONTRASTS: dict[str, tuple[float, float, float, float]] = {
    "t1": (0.18, 0.55, 0.85, 0.40),
    "t2": (0.95, 0.58, 0.36, 0.85),
    "flair": (0.10, 0.62, 0.48, 0.95),
    "pd": (0.88, 0.76, 0.58, 0.92),
}
STYLES = (*CONTRASTS, "random")

TOWARDS_WHITE = {"deep grey matter": 0.4, "hippocampus and amygdala": 0.05}
"""Further tissues lie between grey (0) and white matter (1) in the named contrasts: deep nuclei hold more myelin and
iron than the cortex, the hippocampus looks like cortex. Round numbers of our own."""


@dataclass(frozen=True)
class Lesion:
    """A blob in white matter.

    Attributes:
        place: 0 to 1, which of the white-matter voxels (in array order) is the centre: valid for any anatomy.
        radii: mm along x, y and z.
        roughness: how far the border departs from an ellipsoid, as a fraction of the radius.
        seed: of the border's shape.
    """

    place: float
    radii: Vector
    roughness: float
    seed: int


@dataclass(frozen=True)
class Appearance:
    """Every random choice of one subject and scan; see ``sample_appearance`` for the ranges.

    Attributes:
        style: name of the contrast.
        brightness: of each tissue of the anatomy (CSF, grey matter, white matter, ...) and then of a lesion, 0 to 1.
        rotation: degrees about x, y, z.
        scale: size relative to the template along x, y, z.
        velocities: deformation control grids (3, x, y, z) in mm.
        sharpness: exponent on the tissue shares; the template is an average and blurred, a person is not.
        balance: (K, x, y, z) control grids, local surplus of each tissue in log units: wider sulci, thinner
            cortex.
        texture: share of the template's own texture that is kept.
        mottle: tissue-bound intensity variation (standard deviation, in brightness).
        bias: (x, y, z) control grid of log intensity, the coil's uneven field.
        gamma: exponent on the finished intensities.
        noise: standard deviation of each of the two receiver channels, in brightness.
        slice_axis, slice_thickness: thick slices along that axis, in voxels (1 = none).
        scale_factor: image units of brightness 1; scanners have no common unit.
        lesions: blobs in white matter.
        seed: of the voxel-wise noise.
    """

    style: str
    brightness: tuple[float, ...]
    rotation: Vector
    scale: Vector
    velocities: tuple[NDArray[np.float32], ...] = field(repr=False)
    sharpness: float
    balance: NDArray[np.float32] = field(repr=False)
    texture: float
    mottle: float
    bias: NDArray[np.float32] = field(repr=False)
    gamma: float
    noise: float
    slice_axis: int
    slice_thickness: int
    scale_factor: float
    lesions: tuple[Lesion, ...]
    seed: int


def sample_appearance(
    rng: np.random.Generator,
    styles: tuple[str, ...] = STYLES,
    lesions: tuple[int, int] = (0, 7),
    thick_slices: float = 0.25,
    tissues: tuple[str, ...] = TISSUES,
) -> Appearance:
    """Make every random choice of one brain.

    Args:
        rng: the only source of randomness.
        styles: contrasts to choose from (``STYLES``).
        lesions: fewest and most lesions.
        thick_slices: probability that the scan has slices 2 or 3 voxels thick.
        tissues: of the anatomy to render. Those beyond the first three are drawn last, so the other choices do
            not depend on how many there are.
    """
    style = str(rng.choice(styles))
    first = Appearance(
        style=style,
        brightness=_sample_brightness(rng, style),
        rotation=_three(rng.uniform(-8, 8, 3)),
        scale=_three(rng.uniform(0.92, 1.06) * rng.uniform(0.95, 1.05, 3)),
        velocities=(_control(rng, (3, 4, 5, 4), 4.0), _control(rng, (3, 9, 11, 9), 1.6)),
        sharpness=float(rng.uniform(1.8, 2.6)),
        balance=_sample_balance(rng),
        texture=float(rng.uniform(0.4, 0.9)),
        mottle=float(rng.uniform(0.01, 0.04)),
        bias=_control(rng, (4, 4, 4), float(rng.uniform(0.02, 0.15))),
        gamma=float(np.exp(rng.normal(0, 0.15))),
        noise=float(rng.uniform(0.005, 0.04)),
        slice_axis=int(rng.integers(3)),
        slice_thickness=int(rng.integers(2, 4)) if rng.random() < thick_slices else 1,
        scale_factor=float(np.exp(rng.uniform(np.log(200), np.log(2000)))),
        lesions=tuple(_sample_lesion(rng) for _ in range(rng.integers(lesions[0], lesions[1] + 1))),
        seed=int(rng.integers(2**31)),
    )
    return _with_further_tissues(first, rng, tissues[len(TISSUES) :])


def _with_further_tissues(first: Appearance, rng: np.random.Generator, names: tuple[str, ...]) -> Appearance:
    """The choices with a brightness for each further tissue; its local surplus is that of grey matter."""
    csf, grey, white, lesion = first.brightness
    further = [
        rng.uniform(0.08, 1.0) if first.style == "random" else grey + TOWARDS_WHITE[name] * (white - grey)
        for name in names
    ]
    drawn = [float(np.clip(value + rng.normal(0, 0.03), 0.05, 1.0)) for value in further]
    balance = np.concatenate([first.balance, *[first.balance[1:2]] * len(names)])
    return replace(first, brightness=(csf, grey, white, *drawn, lesion), balance=balance)


def _sample_brightness(rng: np.random.Generator, style: str) -> tuple[float, float, float, float]:
    typical = rng.uniform(0.08, 1.0, 4) if style == "random" else np.asarray(CONTRASTS[style])
    csf, grey, white, lesion = np.clip(typical + rng.normal(0, 0.04, 4), 0.05, 1.0)
    return float(csf), float(grey), float(white), float(lesion)


def _sample_lesion(rng: np.random.Generator) -> Lesion:
    radii = np.exp(rng.uniform(np.log(3.0), np.log(9.0))) * rng.uniform(0.75, 1.3, 3)
    return Lesion(float(rng.random()), _three(radii), float(rng.uniform(0.1, 0.35)), int(rng.integers(2**31)))


def _sample_balance(rng: np.random.Generator) -> NDArray[np.float32]:
    balance = _control(rng, (3, 5, 6, 5), 0.35)
    # The average of 152 brains blurs the narrow fluid-filled sulci away; a person has them, and more with
    # age.
    balance[0] += np.float32(rng.uniform(0.3, 1.5))
    return balance


def _control(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> NDArray[np.float32]:
    return rng.normal(0, spread, shape).astype(np.float32)


def _three(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def render_brain(anatomy: Anatomy, appearance: Appearance) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Paint the brain that the choices describe, on the anatomy's own grid.

    Returns:
        image: (X, Y, Z) float32, positive in the brain, exactly 0 outside.
        labels: (X, Y, Z) uint8: 1 CSF, 2 grey matter, 3 white matter, further tissues of the anatomy, then
            ``anatomy.lesion``; 0 outside. The true tissue: thick slices and noise blur the image, not the labels.
    """
    tissue, texture = bend_anatomy(anatomy, appearance)
    inside = tissue.sum(0) > 0.5
    labels = np.where(inside, tissue.argmax(0) + 1, 0).astype(np.uint8)
    lesion = lesion_shapes(labels == WHITE_MATTER, anatomy.spacing, appearance.lesions)
    labels[lesion] = anatomy.lesion
    image = paint(tissue, texture, lesion, appearance)
    image = add_scanner(image, inside, appearance)
    return np.where(inside, image, 0).astype(np.float32), labels


def bend_anatomy(anatomy: Anatomy, appearance: Appearance) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One person's tissue shares (K, X, Y, Z), and the template's texture (X, Y, Z) carried along."""
    shape: Shape = anatomy.labels.shape
    there = source_coordinates(shape, anatomy.spacing, appearance.velocities, appearance.rotation, appearance.scale)
    texture = sample_at(real_texture(anatomy), there, "constant")
    tissue = np.stack([sample_at(share, there, "constant") for share in anatomy.tissue])
    outer = tissue.sum(0)
    tissue **= appearance.sharpness
    for share, control in zip(tissue, appearance.balance, strict=True):
        share *= np.exp(smooth_field(control, shape))
    return tissue * (outer / np.maximum(tissue.sum(0), 1e-6)), texture


def real_texture(anatomy: Anatomy) -> NDArray[np.float32]:
    """(X, Y, Z), what the T1 image shows beyond the tissue shares, in units of the white-grey difference.

    Zero where the anatomy has no image of its own.
    """
    if not anatomy.has_image:
        return np.zeros_like(anatomy.t1)
    numbers = range(1, len(anatomy.tissues) + 1)
    means = np.array([anatomy.t1[anatomy.labels == label].mean() for label in numbers], dtype=np.float32)
    residual = anatomy.t1 - np.tensordot(means, anatomy.tissue, axes=1)
    return np.asarray(residual / max(float(means[2] - means[1]), 1e-3), dtype=np.float32)


def lesion_shapes(white: NDArray[np.bool_], spacing: Vector, lesions: tuple[Lesion, ...]) -> NDArray[np.bool_]:
    """(X, Y, Z) bool: the lesions, never beyond ``white`` (the white-matter voxels)."""
    result = np.zeros(white.shape, dtype=bool)
    places = np.argwhere(white)
    if not len(places):
        return result
    for lesion in lesions:
        centre = places[int(lesion.place * len(places))]
        reach = [int(np.ceil(1.6 * r / s)) for r, s in zip(lesion.radii, spacing, strict=True)]
        box = tuple(
            slice(max(0, c - r), min(size, c + r + 1)) for c, r, size in zip(centre, reach, white.shape, strict=True)
        )
        result[box] |= _blob(lesion, box, centre, spacing)
    return result & white


def _blob(lesion: Lesion, box: tuple[slice, ...], centre: NDArray[np.int64], spacing: Vector) -> NDArray[np.bool_]:
    axes = [
        (np.arange(part.start, part.stop) - c) * s / r
        for part, c, s, r in zip(box, centre, spacing, lesion.radii, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    control = np.random.default_rng(lesion.seed).normal(0, lesion.roughness, (4, 4, 4)).astype(np.float32)
    border = 1 + np.clip(smooth_field(control, x.shape), -0.5, 0.5)
    return np.asarray(np.sqrt(x**2 + y**2 + z**2) < border, dtype=bool)


def paint(
    tissue: NDArray[np.float32],
    texture: NDArray[np.float32],
    lesion: NDArray[np.bool_],
    appearance: Appearance,
) -> NDArray[np.float32]:
    """(X, Y, Z) brightness before the scanner: tissue shares times tissue brightness, texture, lesions."""
    *healthy, sick = appearance.brightness
    _, grey, white = healthy[:3]
    image = np.tensordot(np.array(healthy, dtype=np.float32), tissue, axes=1)
    image += appearance.texture * (white - grey) * texture
    soft = ndimage.gaussian_filter(lesion.astype(np.float32), 0.5)
    image += soft * (sick - image)
    rng = np.random.default_rng(appearance.seed)
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 0.8)
    image += appearance.mottle / float(grain.std()) * grain
    return np.asarray(image, dtype=np.float32)


def add_scanner(image: NDArray[np.float32], inside: NDArray[np.bool_], appearance: Appearance) -> NDArray[np.float32]:
    """What a scanner adds: uneven field, thick slices, gamma, Rician noise, units of its own."""
    shape: Shape = image.shape
    image = np.where(inside, np.clip(image, 0.02, None), 0) * np.exp(smooth_field(appearance.bias, shape))
    image = thick_slices(image.astype(np.float32), appearance.slice_axis, appearance.slice_thickness)
    top = float(image.max()) or 1.0
    image = top * (image / top) ** appearance.gamma
    rng = np.random.default_rng(appearance.seed + 1)
    real, imaginary = appearance.noise * rng.standard_normal((2, *shape), dtype=np.float32)
    return np.maximum(np.hypot(image + real, imaginary), 1e-3) * np.float32(appearance.scale_factor)


def thick_slices(image: NDArray[np.float32], axis: int, thickness: int) -> NDArray[np.float32]:
    """Average neighbouring slices, keep every ``thickness``-th, and interpolate back to the old grid."""
    if thickness == 1:
        return image
    averaged = ndimage.uniform_filter1d(image, thickness, axis=axis)
    size = image.shape[axis]
    kept = np.take(averaged, np.arange(0, size, thickness), axis=axis)
    position = np.clip(np.arange(size) / thickness, 0, kept.shape[axis] - 1)
    below = np.minimum(position.astype(int), kept.shape[axis] - 2)
    weight = (position - below).reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    return (1 - weight) * np.take(kept, below, axis=axis) + weight * np.take(kept, below + 1, axis=axis)
