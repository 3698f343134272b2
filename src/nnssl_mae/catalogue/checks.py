"""Which scans are not for pre-training, judged by what the catalogue says of each: pure functions of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nnssl_mae.catalogue.names import bids_suffix, words, words_of_scan
from nnssl_mae.catalogue.table import ScanRow
from nnssl_mae.errors import UserError

NEVER_ALLOWED = (
    "unreadable",
    "truncated",
    "not_3d",
    "not_finite",
    "empty",
    "constant",
    "exclusion_mask",
    "colour",
)
ALLOWABLE = (
    "spacing",
    "thick_slices",
    "field_of_view",
    "localiser",
    "derived_map",
    "segmentation",
    "duplicate",
    "duplicate_subject",
)
DUPLICATES = ("duplicate", "duplicate_subject")
CHECKS = (*NEVER_ALLOWED, *ALLOWABLE)
"""Words of the column ``check``."""

Verdict = tuple[str, str]
"""Check that failed, and why as a part of a sentence."""

_LARGEST_SPACING = 100.0  # mm; such a number is a damaged header, not a thick slice


@dataclass(frozen=True)
class Limits:
    """What is accepted. Field of view and slice thickness: the lenient ends of what S3D's released filter uses."""

    min_fov: float = 50.0
    """Shortest edge of the field of view, mm."""
    max_spacing: float = 6.5
    """Thickest slices, mm."""
    min_spacing: float = 0.1
    """Finest voxels, mm: finer ones are headers with a wrong unit."""
    min_slices: int = 8
    """Fewest voxels along any axis."""
    allow: tuple[str, ...] = ()
    """Checks that are switched off."""

    def __post_init__(self) -> None:
        for name in ("min_fov", "max_spacing", "min_spacing", "min_slices"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is not possible; give 0 or more")
        if self.max_spacing <= self.min_spacing:
            raise UserError(
                f"--max-spacing {self.max_spacing:g} is not possible; it must be more than {self.min_spacing:g} mm"
            )
        for code in self.allow:
            if code in NEVER_ALLOWED:
                raise UserError(f"--allow {code} is not possible: no network can be trained with such scans")
            if code not in ALLOWABLE:
                raise UserError(f"--allow {code} is no check; choose from {', '.join(ALLOWABLE)}")


def header_verdict(row: ScanRow, limits: Limits) -> Verdict | None:
    """What is wrong with a scan by its name and header; None if nothing is."""
    checks = (_not_3d(row), _spacing(row, limits), localiser(row), derived_map(row))
    return _first([*checks, _thick_slices(row, limits), _field_of_view(row, limits)], limits)


def voxel_verdict(row: ScanRow, limits: Limits) -> Verdict | None:
    """What is wrong with a scan by its voxels; None if nothing is, or they were not read."""
    if not row.voxel_hash:
        return None
    return _first([_constant(row), segmentation(row), _map_by_values(row)], limits)


def duplicate_verdicts(rows: Sequence[ScanRow], limits: Limits) -> dict[int, Verdict]:
    """Scans with the voxels of one that is kept, by their place in ``rows``.

    Kept is the copy that says most of itself: one of a BIDS subject, best with a modality; of several the first by
    dataset, then case.

    Copies under two names of subjects are ``duplicate_subject``: they would stand on both sides of a split. Other
    copies are ``duplicate``, also where a subject is only the name of the file.
    """
    kept: dict[str, ScanRow] = {}
    verdicts: dict[int, Verdict] = {}
    for place in sorted(range(len(rows)), key=lambda n: _preference(rows[n])):
        row = rows[place]
        if not row.voxel_hash:
            continue
        first = kept.setdefault(row.voxel_hash, row)
        if first is row:
            continue
        verdict = _duplicate(row, first)
        if verdict[0] not in limits.allow:
            verdicts[place] = verdict
    return verdicts


def _preference(row: ScanRow) -> tuple[int, str, str]:
    """Sorts the copy that is kept before the others."""
    if row.subject_from != "bids":
        return 2, row.dataset, row.case
    return 0 if row.modality else 1, row.dataset, row.case


def _duplicate(row: ScanRow, first: ScanRow) -> Verdict:
    where = f"{first.case} ({first.path})"
    if row.subject == first.subject or "file" in (row.subject_from, first.subject_from):
        return "duplicate", f"has the voxels of {where}, which is kept"
    return (
        "duplicate_subject",
        f"has the voxels of {where} of subject {first.subject} in {first.dataset}, which is kept, under the name "
        f"{row.subject} in {row.dataset}",
    )


def _first(verdicts: Sequence[Verdict | None], limits: Limits) -> Verdict | None:
    return next((verdict for verdict in verdicts if verdict is not None and verdict[0] not in limits.allow), None)


def _not_3d(row: ScanRow) -> Verdict | None:
    if row.volumes > 1 and not row.frame:
        return "not_3d", f"holds {row.volumes} volumes; --split-4d mean, first or all makes scans of them"
    if min(row.size_x, row.size_y, row.size_z) < 2:
        return "not_3d", f"is a single slice ({_sizes(row)} voxels)"
    return None


def _spacing(row: ScanRow, limits: Limits) -> Verdict | None:
    spacing = (row.spacing_x, row.spacing_y, row.spacing_z)
    said = " x ".join(f"{edge:g}" for edge in spacing)
    if not all(math.isfinite(edge) and edge > 0 for edge in spacing):
        return "spacing", f"has an impossible voxel size ({said} mm)"
    if min(spacing) < limits.min_spacing or max(spacing) > max(_LARGEST_SPACING, limits.max_spacing):
        return "spacing", f"has an absurd voxel size ({said} mm)"
    return None


def _thick_slices(row: ScanRow, limits: Limits) -> Verdict | None:
    # Headers hold float32: 6.5 mm reads as 6.50000019.
    if row.max_spacing > limits.max_spacing * (1 + 1e-5):
        return "thick_slices", f"has voxels of {row.max_spacing:.3g} mm; more than {limits.max_spacing:g} mm"
    return None


def _field_of_view(row: ScanRow, limits: Limits) -> Verdict | None:
    if row.min_fov < limits.min_fov * (1 - 1e-5):
        return "field_of_view", f"covers {row.min_fov:.3g} mm along its shortest edge; less than {limits.min_fov:g} mm"
    if min(row.size_x, row.size_y, row.size_z) < limits.min_slices:
        return "field_of_view", f"has {_sizes(row)} voxels; fewer than {limits.min_slices} along an axis"
    return None


def _sizes(row: ScanRow) -> str:
    return f"{row.size_x} x {row.size_y} x {row.size_z}"


_LOCALISERS = frozenset(
    {"localizer", "localizers", "localiser", "localisers", "scout", "scouts", "aascout", "aahscout", "aaheadscout"}
    | {"3plane", "threeplane", "3pl", "tripilot", "topogram", "scanogram"}
)
_LOCALISER_PAIRS = frozenset({("3", "plane"), ("three", "plane"), ("tri", "pilot"), ("plane", "loc")})
_WEAK_LOCALISERS = frozenset({"loc", "survey"})  # also names of studies; real ones are thick or have few slices
_THICK, _FEW_SLICES = 6.0, 15  # mm, voxels


def localiser(row: ScanRow) -> Verdict | None:
    """Scouts and surveys, by a whole word of the file name or of DICOM's header."""
    if "LOCALIZER" in row.image_type.upper().split("\\"):
        return "localiser", "is a localiser by its DICOM header"
    said = _said(row)
    if verdict := _named("localiser", "a localiser", said, _LOCALISERS, _LOCALISER_PAIRS):
        return verdict
    looks_like_it = row.max_spacing >= _THICK or min(row.size_x, row.size_y, row.size_z) <= _FEW_SLICES
    if looks_like_it and not _is_weighted_bids(row):
        return _named("localiser", "a localiser", said, _WEAK_LOCALISERS, frozenset())
    return None


_MAPS = frozenset(
    {"adc", "eadc", "dadc", "dwi", "trace", "tracew", "traceb", "cbf", "cbv", "rcbf", "rcbv", "mtt", "tmax", "ttp"}
    | {"ktrans", "noddi", "icvf", "isovf", "odi", "gfa", "tensor", "colfa", "mip", "minip", "mips", "projection"}
    | {"t1map", "t2map", "t2starmap", "t2smap", "r1map", "r2map", "r2starmap", "r2star", "pdmap", "b1map", "tb1map"}
    | {"mtsat", "mtvmap", "mwfmap", "mtrmap", "chimap", "qsm", "fieldmap", "phasediff", "phasemap", "adcmap", "famap"}
    | {"jacobian", "warpfield", "zstat", "tstat", "fstat", "varcope", "cope", "statmap", "probseg", "tpm"}
)
_MAP_PAIRS = frozenset(
    {(kind, "map") for kind in ("t1", "t2", "t2star", "r1", "r2", "adc", "fa", "md", "phase", "field", "b0", "b1")}
    | {(kind, "phase") for kind in ("swi", "gre", "t2star", "t2s", "unwrapped", "wrapped", "part", "qsm", "mr")}
    | {("phase", kind) for kind in ("image", "diff", "unwrapped")}
    | {("fractional", "anisotropy"), ("mean", "diffusivity"), ("axial", "diffusivity"), ("radial", "diffusivity")}
)
_WEAK_MAPS = frozenset({"fa", "md", "ad", "rd", "mk", "ak", "rk"})  # also initials, Alzheimer's disease, flip angles
_DIFFUSION = frozenset({"dti", "dwi", "dki", "diffusion", "dtifit", "tensor", "dmri", "hardi"})
_MAP_SUFFIXES = frozenset(
    {"dwi", "sbref", "phase", "phase1", "phase2", "phasediff", "fieldmap", "magnitude", "magnitude1", "magnitude2"}
    | {"epi", "probseg", "statmap", "xfm", "m0scan", "asl", "defacemask"}
)
_WEIGHTED = frozenset(
    {"T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "inplaneT1", "inplaneT2", "UNIT1", "angio", "T1rho", "ct", "pet"}
)
_MAP_TYPES = frozenset(
    {"ADC", "EADC", "FA", "MD", "TRACEW", "TRACE", "DIFFUSION", "PHASE MAP", "PHASE", "P", "FIELD_MAP", "MIP", "MNIP"}
    | {"PROJECTION IMAGE", "MAXIMUM", "MINIMUM", "CBF", "CBV", "RCBF", "RCBV", "MTT", "TMAX", "TTP", "TENSOR"}
    | {"T1_MAP", "T2_MAP", "T2_STAR_MAP", "T1 MAP", "T2 MAP", "T2_STAR MAP", "QSM", "R2_STAR_MAP", "FIELD MAP"}
)


def derived_map(row: ScanRow) -> Verdict | None:
    """Maps computed from scans, diffusion and phase images: by DICOM's image type, BIDS suffix or folder, or words."""
    types = row.image_type.upper().split("\\")
    if kinds := _MAP_TYPES.intersection(types[2:]):
        return "derived_map", f"is of the kind {min(kinds)} by its DICOM header"
    folders = [folder.lower() for folder in row.relative.split("/")[:-1]]
    if "derivatives" in folders:
        return "derived_map", "lies in a folder 'derivatives', which holds results of processing"
    suffix = bids_suffix(row.relative)
    if suffix in _MAP_SUFFIXES or (suffix.endswith("map") and suffix != "map"):
        return "derived_map", f"is called '{suffix}', which is no weighted image"
    said = _said(row)
    # The values of BIDS entities are free words, but the suffix says that this is a weighted image.
    singles = frozenset() if _is_weighted_bids(row) else _MAPS
    if verdict := _named("derived_map", "a map or phase image", said, singles, _MAP_PAIRS):
        return verdict
    if not singles:
        return None
    context = {word for folder in folders[-2:] for word in words(folder)} | set(said)
    if weak := _WEAK_MAPS.intersection(said) if context & _DIFFUSION else set():
        return "derived_map", f"is a diffusion map by its name ('{min(weak)}')"
    return None


def _map_by_values(row: ScanRow) -> Verdict | None:
    """FA is at most 1, diffusivities in mm2/s are some thousandths; intensities with such a name are kept."""
    said = words_of_scan(row.relative) or [""]
    last = said[-1]
    if (last == "fa" and row.minimum >= 0 and row.maximum <= 1.5) or (last in _WEAK_MAPS and row.maximum < 0.1):
        return "derived_map", f"is a diffusion map by its name ('{last}') and values (at most {row.maximum:.2g})"
    return None


def _is_weighted_bids(row: ScanRow) -> bool:
    return bids_suffix(row.relative) in _WEIGHTED


def _said(row: ScanRow) -> list[str]:
    """Words of the name, without subject and session, and of DICOM's description."""
    return [*words_of_scan(row.relative), *words(row.description)]


def _named(
    check: str, what: str, said: Sequence[str], single: frozenset[str], pairs: frozenset[tuple[str, str]]
) -> Verdict | None:
    found = next((word for word in said if word in single), "")
    found = found or next((" ".join(pair) for pair in pairwise(said) if pair in pairs), "")
    return (check, f"is {what} by its name ('{found}')") if found else None


_LABELS = frozenset(
    {"dseg", "seg", "segm", "segmentation", "segmentations", "mask", "masks", "brainmask", "label", "labels"}
    | {"labelmap", "aseg", "aparc", "wmparc", "parc", "parcellation", "roi", "rois", "atlas", "lesion", "lesions"}
    | {"annotation", "groundtruth", "gt", "defacemask"}
)
# Share of equal neighbours outside the background, measured on real images at 1 to 4 mm. Scans rounded to 32 levels
# (fewer than any scanner writes): at most 0.43, the smooth ICBM average being the highest; noisy 8-bit scans 0.03.
# Label maps: 0.64 (83 cortical regions of one person) to 0.91 (lobes); three tissues of ICBM 0.67 (4 mm) to 0.89.
_FLAT = 0.62
_FLAT_AND_NAMED = 0.3  # small regions, thick slices; the name says the rest
_MOST_LABELS = 512  # scans with more than 32 levels are less flat still
_FEW = 16  # ICBM at 1 mm in 16 levels or fewer is as flat as labels; then values must also count 0, 1, 2, ...


def segmentation(row: ScanRow) -> Verdict | None:
    """Label maps and masks: by their voxels where these are clear, else by name and voxels together."""
    if row.distinct == 2:
        return "segmentation", "is a mask: it holds two values only"
    if not row.whole_numbers or not math.isfinite(row.flat) or row.minimum < 0:
        return None
    if said := _LABELS.intersection(words_of_scan(row.relative)):
        if row.flat >= _FLAT or (row.flat >= _FLAT_AND_NAMED and row.distinct <= _MOST_LABELS):
            return "segmentation", f"is a label map by its name ('{min(said)}') and its {row.distinct} flat values"
        return None
    counts_up = row.minimum == 0 and row.maximum <= 1.5 * row.distinct
    if row.flat >= _FLAT and row.distinct <= _MOST_LABELS and (row.distinct > _FEW or counts_up):
        return "segmentation", f"is a label map by its voxels: {row.distinct} whole numbers in flat regions"
    return None


def _constant(row: ScanRow) -> Verdict | None:
    if row.minimum == row.maximum == 0:
        return "empty", "is empty: every voxel is zero"
    if row.minimum == row.maximum:
        return "constant", f"is constant: every voxel has the value {row.minimum:g}"
    return None
