"""What the name of a scan says: session, modality, and whether it is a localiser, a derived map or a segmentation.

Names are cut into words at everything that is neither letter nor digit, and at the change from small to large letters;
only whole words count, so that Adcock, faces and location are not taken for ADC, FA and loc.
"""

from __future__ import annotations

import re

_DATA_TYPES = {"anat", "func", "dwi", "perf", "fmap", "pet", "dicom", "dicoms", "nifti", "nii", "mri", "raw", "scans"}
"""Folders that say of what kind files are, not which visit they belong to."""
_BIDS = re.compile(r"^sub-[^/]*_(?P<suffix>[A-Za-z0-9]+)$")

_DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)")
"""Windows takes ``aux.b2nd`` for a device, and a dataset may be carried there."""

# In this order: FLAIR is also T2-weighted, and contrast agents come with T1.
_MODALITIES: tuple[tuple[str, frozenset[str]], ...] = (
    ("FLAIR", frozenset({"flair", "t2flair", "spaceflair"})),
    ("SWI", frozenset({"swi"})),
    ("T2starw", frozenset({"t2star", "t2starw", "t2s", "t2stern"})),
    ("T1ce", frozenset({"t1c", "t1ce", "t1gd", "t1cw", "t1post", "t1km"})),
    ("T1w", frozenset({"t1", "t1w", "mprage", "mpr", "spgr", "bravo", "mp2rage", "t1n"})),
    ("T2w", frozenset({"t2", "t2w", "t2n"})),
    ("PDw", frozenset({"pd", "pdw"})),
    ("angio", frozenset({"tof", "mra", "angio"})),
    ("bold", frozenset({"bold", "fmri"})),
    ("dwi", frozenset({"dwi", "dti"})),
    ("CT", frozenset({"ct"})),
    ("PET", frozenset({"pet", "fdg"})),
)
_DICOM_MODALITIES = {"CT": "CT", "PT": "PET", "NM": "NM", "US": "US", "MR": ""}


def words(text: str) -> list[str]:
    """The words of a name, in small letters, both as written and cut at large letters."""
    written = re.split(r"[^A-Za-z0-9]+", text)
    cut = [piece for word in written for piece in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", word)]
    return [word.lower() for word in (*written, *cut) if word]


def words_of_scan(relative: str) -> list[str]:
    """The words of a file name without the BIDS entities of subject and session, whose values are free.

    In a name of BIDS, the entities' values are free too; what counts there is the suffix, and what is spelled out.
    """
    name = re.sub(r"(?:^|_)(?:sub|ses)-[A-Za-z0-9]+", "_", _name(relative))
    return words(name)


def safe_name(text: str) -> str:
    """Letters, digits, dots, dashes and underscores only; never empty, never hidden, and no name of a device."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".") or "scan"
    return _DEVICE.sub(r"\1_", name)


def bids_suffix(relative: str) -> str:
    """``T1w`` of ``sub-01/anat/sub-01_T1w.nii.gz``; empty where the name is not one of BIDS."""
    match = _BIDS.match(_name(relative))
    return match.group("suffix") if match else ""


def session_of(relative: str) -> str:
    """The BIDS entity ``ses-XXX`` of a path; empty if there is none."""
    found = re.search(r"(?:^|[/_])(ses-[A-Za-z0-9]+)", relative)
    return found.group(1) if found else ""


def is_data_type(folder: str) -> bool:
    """Whether a folder is called ``anat``, ``nifti`` or the like."""
    return folder.lower() in _DATA_TYPES


def modality_of(relative: str, description: str = "", dicom: str = "") -> str:
    """BIDS suffix, else what words of the name or of DICOM's description say, else DICOM's modality."""
    if suffix := bids_suffix(relative):
        return suffix
    folder = relative.rstrip("/").split("/")[-2:-1]
    for text in (description, _name(relative), *folder):
        said = set(words(text))
        if found := next((modality for modality, known in _MODALITIES if said & known), ""):
            return found
    return _DICOM_MODALITIES.get(dicom.upper(), "")


def _name(relative: str) -> str:
    name = relative.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"(?i)(\.nii)?\.(nii|gz|nrrd|nhdr|mha|mhd|hdr|dcm|ima)$", "", name)
