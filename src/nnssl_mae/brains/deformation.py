"""Smooth random shapes: fields from a few control points, and deformations that never fold."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = tuple[int, int, int]
Vector = tuple[float, float, float]


def smooth_field(control: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Stretch a small grid of control values (x, y, z) over a volume of ``shape`` with cubic splines."""
    field = control
    for size in shape:
        # One axis at a time as a matrix product (twenty times faster than zooming in 3D); the axes rotate to
        # the end.
        field = np.tensordot(field, spline_weights(field.shape[0], size), axes=(0, 1))
    return field


def spline_weights(points: int, size: int) -> NDArray[np.float32]:
    """(size, points): how much each control point counts at each voxel of one axis."""
    weights = ndimage.zoom(np.eye(points), (size / points, 1), order=3, mode="nearest", grid_mode=True)
    return np.asarray(weights, dtype=np.float32)


def sample_at(volume: NDArray[np.float32], coordinates: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    """Linear interpolation of (X, Y, Z) at (3, ...) voxel coordinates; ``mode`` says what lies outside."""
    return np.asarray(ndimage.map_coordinates(volume, coordinates, order=1, mode=mode), dtype=np.float32)


def integrate(velocity: NDArray[np.float32], steps: int = 5) -> NDArray[np.float32]:
    """Displacement after following a still velocity field for one unit of time (scaling and squaring).

    Unlike a displacement drawn directly, the result has an inverse: tissue is stretched and squeezed, never
    folded (Arsigny et al. 2006, "A log-Euclidean framework for statistics on diffeomorphisms").

    Args:
        velocity: (3, X, Y, Z) in voxels.
        steps: the path is cut into 2**steps pieces.

    Returns:
        (3, X, Y, Z) displacement in voxels.
    """
    displacement = velocity / np.float32(2**steps)
    here = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(steps):
        there = here + displacement
        displacement = displacement + np.stack([sample_at(axis, there, "nearest") for axis in displacement])
    return displacement


def rotation_matrix(degrees: Vector) -> NDArray[np.float64]:
    """(3, 3) rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def source_coordinates(
    shape: Shape,
    spacing: Vector,
    velocities: tuple[NDArray[np.float32], ...],
    rotation: Vector,
    scale: Vector,
) -> NDArray[np.float32]:
    """Where each voxel of the new brain lies in the template.

    The deformation is integrated at half resolution: it is smooth, and this takes an eighth of the time.

    Args:
        shape: (X, Y, Z) of the volume.
        spacing: mm.
        velocities: control grids (3, x, y, z) in mm, coarse and fine; their fields add up.
        rotation: degrees about each axis through the centre.
        scale: size of the new brain relative to the template along each axis.

    Returns:
        (3, X, Y, Z) float32 voxel coordinates in the template.
    """
    half: Shape = ((shape[0] + 1) // 2, (shape[1] + 1) // 2, (shape[2] + 1) // 2)
    field = np.zeros((3, *half), dtype=np.float32)
    for control in velocities:
        field += np.stack([smooth_field(axis, half) for axis in control])
    voxel = np.asarray(spacing, dtype=np.float32).reshape(3, 1, 1, 1)
    displacement = integrate(field / (2 * voxel)) * 2
    full = np.stack([smooth_field(axis, shape) for axis in displacement])
    centre = (np.asarray(shape, dtype=np.float32).reshape(3, 1, 1, 1) - 1) / 2
    millimetres = (np.indices(shape, dtype=np.float32) - centre) * voxel
    backwards = np.diag(1 / np.asarray(scale)) @ rotation_matrix(rotation).T
    moved = np.einsum("ij,jxyz->ixyz", backwards.astype(np.float32), millimetres)
    return np.asarray(moved / voxel + centre + full, dtype=np.float32)
