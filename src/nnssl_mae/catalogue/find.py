"""Which files are scans, what each is called, and whose they are."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnssl_mae.catalogue.dicom_tags import (
    Slice,
    is_called_dicom,
    patient_hash,
    read_slice,
    slices_of_series,
    study_hash,
)
from nnssl_mae.catalogue.names import is_data_type, modality_of, safe_name, session_of
from nnssl_mae.catalogue.walk import DETACHED, ENDINGS, File, Folder, Walk, as_file, ending_of
from nnssl_mae.errors import UserError
from nnssl_mae.files import short_hash
from nnssl_mae.parallel import in_processes

EXCLUDE_SUFFIX = "_exclude"
"""What the name of an exclusion mask has between the name of its scan and the ending."""
_LONGEST_NAME = 120
_FILES_WORTH_PROCESSES = 2000
_SHOWN = ", ".join(ENDINGS)

Key = tuple[str, str, str]
"""Path, series and frame: which scan a row is about."""


@dataclass(frozen=True)
class Scan:
    """One 3D image. ``case`` names it inside the dataset, ``subject`` says which scans belong together.

    ``exclude`` is its exclusion mask, if there is one.
    """

    path: Path
    """The file, or the folder of a DICOM series."""
    case: str
    subject: str
    exclude: Path | None = None
    series: str = ""
    """UID of the DICOM series in the folder ``path``; empty for files of volumes."""
    frame: str = ""
    """Which volume of a 4D image: its number from 0, or ``mean`` of all; empty where there is one only."""
    dataset: str = ""
    """Which collection it comes from: the name of the folder that was searched."""
    session: str = ""
    """Visit of the subject; empty where it is not known."""

    @property
    def key(self) -> Key:
        """What no two scans share."""
        return (path_text(self.path), self.series, self.frame)


@dataclass(frozen=True)
class Found:
    """A scan and what finding it told."""

    scan: Scan
    relative: str
    """Path below the searched folder, with ``/``: what the name of the scan is judged by."""
    subject_from: str
    """``regex``, ``bids``, ``dicom``, ``folder`` or ``file``."""
    modality: str = ""
    description: str = ""
    """Of the DICOM series."""
    bytes: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class FoundScans:
    """What was found, sorted by case name."""

    found: list[Found]
    lonely_masks: list[Path]
    """Exclusion masks whose scan does not lie beside them."""
    closed: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that could not be listed, or their DICOM files not be looked at, and why."""

    @property
    def scans(self) -> list[Scan]:
        """The scans alone."""
        return [one.scan for one in self.found]


def find_scans(
    sources: Sequence[Path],
    subject_regex: str | None = None,
    exclude_suffix: str = EXCLUDE_SUFFIX,
    known_names: Mapping[tuple[str, ...], str] | None = None,
    workers: int = 1,
) -> FoundScans:
    """Lists the scans in folders (at any depth) and among the given files.

    Files of volumes are known by their ending (NIfTI, NRRD, MetaImage), DICOM series by what their files say. Names
    that begin with a dot are passed over.

    The subject of a scan is, in this order: the first group of ``subject_regex`` in its path; the BIDS entity
    ``sub-XXX`` in its path; a hash of DICOM's patient ID; the first folder below the source, if at least two such
    folders hold scans; the file name without nnU-Net's channel suffix ``_0000``. The session is the group ``session``
    of the expression; the BIDS entity ``ses-XXX``; a hash of the DICOM study; the second folder below the source where
    the first is the subject.

    A file whose name ends in ``exclude_suffix`` before its ending is no scan, but the exclusion mask of the scan beside
    it that has the rest of the name: ``sub-01_T1w_exclude.nii.gz`` belongs to ``sub-01_T1w.nii.gz``.

    Args:
        sources: folders and files.
        subject_regex: expression for the path below the source.
        exclude_suffix: of exclusion masks.
        known_names: case names that scans had before; they keep them.
        workers: processes that look into DICOM files where there are many.

    Raises:
        UserError: a source does not exist, holds no scan, or the expression is wrong or does not match.
    """
    _check_suffix(exclude_suffix)
    expression = _compile(subject_regex)
    walk, found, masks = Walk.begin(), [], _Masks(exclude_suffix)
    for source, dataset in zip(sources, dataset_names(sources), strict=True):
        was_visited = source.is_dir() and _identity(source) in walk.seen
        folders = list(_folders_of(source, walk))
        if not source.is_dir():
            masks.single_files |= {(file.path.parent, file.path.name) for file in folders[0].volumes}
        here = list(_scans_in(folders, dataset, masks, workers, walk.closed))
        if not here and not was_visited and not masks.any_in(folders):
            raise UserError(f"{source} holds no scan ({_SHOWN}, or DICOM) at any depth; check the folder")
        found += _with_subjects(here, expression)
    if not found:
        raise UserError(
            f"{', '.join(map(str, sources))}: every file is an exclusion mask by its name (it ends in "
            f"{exclude_suffix}); give the scans too, or another --exclude-suffix"
        )
    named = with_unique_names([masks.given_to(one) for one in _each_once(found)], known_names or {})
    return FoundScans(sorted(named, key=lambda one: one.scan.case), masks.lonely(named), walk.closed)


def stem(path: Path) -> str:
    """File name without its ending, with characters that nnU-Net's file names cannot hold replaced."""
    return safe_name(_without_ending(path))


def path_text(path: Path) -> str:
    """A path as it stands in tables."""
    return text_of(str(path))


def text_of(name: str) -> str:
    """A name with those of its bytes that are no text shown as ``\\udcXX``: neither tables nor screens take them."""
    return name.encode("utf-8", "backslashreplace").decode()


def dataset_names(sources: Sequence[Path]) -> list[str]:
    """The name of each searched folder (of a file: of its folder), with folders above it where names are equal."""
    folders = [path if path.is_dir() else path.parent for path in (_absolute(s) for s in sources)]
    depths = dict.fromkeys(folders, 1)
    while True:
        names = {folder: _tail(folder, depth) for folder, depth in depths.items()}
        count = Counter(name.lower() for name in names.values())
        equal = [f for f, name in names.items() if count[name.lower()] > 1 and depths[f] < len(f.parts)]
        if not equal:
            return [names[folder] for folder in folders]
        for folder in equal:
            depths[folder] += 1


def with_unique_names(found: Sequence[Found], known_names: Mapping[tuple[str, ...], str]) -> list[Found]:
    """Equal names get a hash of dataset and path; the first keeps no special right, but known names stay.

    So do names that would make the stored volume look like an exclusion mask. The result depends on what is searched,
    not on where it lies. Names are known by key, and by :func:`place_in_dataset` of files that were moved with their
    tree.
    """
    known = {one.scan.key: known_names[one.scan.key] for one in found if one.scan.key in known_names}
    used = set(known.values())
    for one in found:  # those that lie elsewhere now, because a disk was mounted at another place
        before = known_names.get(place_in_dataset(one))
        if one.scan.key not in known and before is not None and before not in used:
            known[one.scan.key] = before
    count = Counter(one.scan.case.lower() for one in found if one.scan.key not in known)
    taken = {name.lower() for name in known_names.values()}
    named = []
    for one in found:
        case = known.get(one.scan.key, one.scan.case)
        is_free = count[case.lower()] == 1 and case.lower() not in taken and not case.endswith(EXCLUDE_SUFFIX)
        if one.scan.key not in known and not is_free:
            identity = [one.scan.dataset, one.relative, one.scan.series, one.scan.frame]
            case = f"{case}-{short_hash(identity, 8)}"
        named.append(replace(one, scan=replace(one.scan, case=case)))
    return named


def place_in_dataset(one: Found) -> tuple[str, str, str, str]:
    """What stays the same when a tree is moved: dataset, path below its root, series and frame."""
    return (one.scan.dataset, text_of(one.relative), one.scan.series, one.scan.frame)


def frames_of(one: Found, frames: Sequence[str]) -> list[Found]:
    """Scans of some volumes of a 4D image; their names must still be made unique."""
    words = {"mean": "mean", **{str(n): f"vol{n:03d}" for n in range(1000)}}
    return [
        replace(one, scan=replace(one.scan, frame=frame, case=f"{one.scan.case}-{words.get(frame, f'vol{frame}')}"))
        for frame in frames
    ]


@dataclass(frozen=True)
class _Unnamed:
    """A scan whose subject is not known yet, because that needs all scans of its source."""

    scan: Scan
    relative: str
    first: Slice | None
    bytes: int
    modified_ns: int


class _Masks:
    """Exclusion masks by the folder and name of the scan that they belong to."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._masks: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.single_files: set[tuple[Path, str]] = set()

    def holds(self, path: Path) -> bool:
        """Whether a file is a mask by its name; then it is remembered."""
        name = _without_ending(path)
        if not name.endswith(self._suffix):
            return False
        self._masks[path.parent, name.removesuffix(self._suffix)].append(path)
        return True

    def any_in(self, folders: Iterable[Folder]) -> bool:
        return any(_without_ending(f.path).endswith(self._suffix) for folder in folders for f in folder.volumes)

    def given_to(self, one: Found) -> Found:
        if one.scan.series:
            return one
        scan = one.scan
        masks = self._masks.get((scan.path.parent, _without_ending(scan.path)), [])
        mask = min(masks, key=_order_of_ending, default=None) or self._beside(scan)
        if mask is None:
            return one
        newest = max(one.modified_ns, as_file(mask, mask.name).modified_ns)
        return replace(one, scan=replace(scan, exclude=mask), modified_ns=newest)

    def lonely(self, found: Iterable[Found]) -> list[Path]:
        scans = {(one.scan.path.parent, _without_ending(one.scan.path)) for one in found if not one.scan.series}
        return sorted(
            mask
            for (folder, name), masks in self._masks.items()
            for mask in masks
            if (folder, name) not in scans and not any((folder / f"{name}{e}").is_file() for e in ENDINGS)
        )

    def _beside(self, scan: Scan) -> Path | None:
        """The mask of a scan that was given as a single file; in folders all masks were met."""
        if (scan.path.parent, scan.path.name) not in self.single_files:
            return None
        names = (f"{_without_ending(scan.path)}{self._suffix}{ending}" for ending in ENDINGS)
        return next((path for name in names if (path := scan.path.with_name(name)).is_file()), None)


def _folders_of(source: Path, walk: Walk) -> Iterator[Folder]:
    if not os.path.lexists(source):
        raise UserError(f"{source} does not exist; give a folder of scans or single files")
    if source.is_dir():
        yield from walk.folders(_absolute(source))
        return
    if not ending_of(source.name):
        raise UserError(f"{source} is no file of a scan; its name must end in {_SHOWN}; for DICOM give the folder")
    path = _absolute(source)
    yield Folder(path.parent, "", (_single_file(path),), ())


def _single_file(path: Path) -> File:
    return as_file(path, path.name, [beside.name for beside in path.parent.iterdir()])


def stamp(scan: Scan) -> tuple[int, int]:
    """Bytes and time of the newest change of a scan's files now; (0, 0) if they are gone."""
    if scan.series:
        slices = slices_of_series(scan.path, scan.series)
        return sum(one.bytes for one in slices), max((one.modified_ns for one in slices), default=0)
    file = _single_file(scan.path) if ending_of(scan.path.name).lower() in DETACHED else as_file(scan.path, "")
    mask = as_file(scan.exclude, "").modified_ns if scan.exclude else 0
    return file.bytes, max(file.modified_ns, mask) if file.modified_ns else 0


def _absolute(path: Path) -> Path:
    """Links stay: what they lead to may have other names on other machines of a cluster."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return (status.st_dev, status.st_ino)


def _scans_in(
    folders: Sequence[Folder], dataset: str, masks: _Masks, workers: int, closed: list[tuple[Path, str]]
) -> Iterator[_Unnamed]:
    for folder in folders:
        for file in folder.volumes:
            if not masks.holds(file.path):
                scan = Scan(file.path, stem(file.path), "", dataset=dataset)
                yield _Unnamed(scan, file.relative, None, file.bytes, file.modified_ns)
    for folder, slices in _dicom_slices([folder for folder in folders if folder.maybe_dicom], workers, closed):
        yield from _series_in(folder, slices, dataset)


def _dicom_slices(
    folders: Sequence[Folder], workers: int, closed: list[tuple[Path, str]]
) -> Iterator[tuple[Folder, list[Slice]]]:
    if sum(len(folder.maybe_dicom) for folder in folders) < _FILES_WORTH_PROCESSES:
        yield from ((folder, slices_in(folder)) for folder in folders)
        return
    for outcome in in_processes(slices_in, folders, workers):
        if outcome.failure is not None:
            closed.append((outcome.item.path, outcome.failure.summary))
        yield outcome.item, outcome.result or []


def slices_in(folder: Folder) -> list[Slice]:
    """The DICOM images of a folder; those that cannot be used come without a series."""
    slices = (read_slice(file.path) for file in folder.maybe_dicom)
    return [one for one in slices if (one.is_image if one.tags else is_called_dicom(one.path.name))]


def _series_in(folder: Folder, slices: Sequence[Slice], dataset: str) -> Iterator[_Unnamed]:
    series: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        if one.series:
            series[one.series].append(one)
        else:
            scan = Scan(one.path, safe_name(one.path.stem), "", dataset=dataset)
            yield _Unnamed(scan, f"{folder.relative}{one.path.name}", None, one.bytes, one.modified_ns)
    for uid, files in sorted(series.items()):
        first, size = files[0], sum(file.bytes for file in files)
        newest = max(file.modified_ns for file in files)
        yield _Unnamed(Scan(folder.path, "", "", series=uid, dataset=dataset), folder.relative, first, size, newest)


def _with_subjects(scans: Sequence[_Unnamed], expression: re.Pattern[str] | None) -> list[Found]:
    if expression is not None:
        _check_matches(scans, expression)
    folders_are_subjects = len({folders[0] for one in scans if (folders := _folders_of_persons(one.relative))}) > 1
    found = []
    for one in scans:
        subject, said_by, session = map(text_of, _subject(one, expression, folders_are_subjects))
        description = one.first.tags.get("description", "") if one.first else ""
        modality = modality_of(one.relative, description, one.first.tags.get("modality", "") if one.first else "")
        case = one.scan.case or _series_name(subject, description or modality, one.scan.series)
        scan = replace(one.scan, case=_shortened(case, one), subject=subject, session=session)
        found.append(Found(scan, one.relative, said_by, modality, description, one.bytes, one.modified_ns))
    return found


def _subject(one: _Unnamed, expression: re.Pattern[str] | None, folders_are_subjects: bool) -> tuple[str, str, str]:
    """Subject, how it is known, and session."""
    session = session_of(one.relative) or (study_hash(one.first) if one.first else "")
    if expression is not None:
        match = expression.search(one.relative)
        assert match is not None  # _check_matches
        return subject_in(match), "regex", match.groupdict().get("session") or session
    if bids := re.search(r"(?:^|[/_])(sub-[A-Za-z0-9]+)", one.relative):
        return bids.group(1), "bids", session
    if one.first is not None and (patient := patient_hash(one.first)):
        return patient, "dicom", session
    folders = _folders_of_persons(one.relative)
    if folders_are_subjects and folders:
        visit = folders[1] if len(folders) > 1 and not is_data_type(folders[1]) else ""
        return folders[0], "folder", session or visit
    if not folders and session_of(one.relative.rpartition("/")[0]):  # visits right below: the root is one person's
        return one.scan.dataset, "folder", session
    name = one.relative.rstrip("/").rsplit("/", 1)[-1] or one.scan.dataset if one.first else stem(one.scan.path)
    return re.sub(r"_\d{4}$", "", name), "file", session


def _folders_of_persons(relative: str) -> list[str]:
    """The folders of a path without leading ones that say a visit or a kind of file: ``anat/anna/`` is of anna."""
    folders = relative.split("/")[:-1]
    while folders and (is_data_type(folders[0]) or session_of(folders[0])):
        folders = folders[1:]
    return folders


def subject_in(match: re.Match[str] | None) -> str:
    """The first group of a match that is not the one called ``session``; empty where nothing matched."""
    if match is None:
        return ""
    session = match.re.groupindex.get("session")
    return next((match.group(n) or "" for n in range(1, match.re.groups + 1) if n != session), "")


def _check_matches(scans: Sequence[_Unnamed], expression: re.Pattern[str]) -> None:
    without = [text_of(one.relative) for one in scans if not subject_in(expression.search(one.relative))]
    if without:
        raise UserError(
            f"--subject-regex '{expression.pattern}' finds no group in {len(without)} of {len(scans)} paths, such as "
            f"'{without[0]}' and '{without[-1]}'; it needs one pair of brackets that matches in every path"
        )


def _series_name(subject: str, description: str, series: str) -> str:
    words = [safe_name(subject), safe_name(description)[:40] if description else "", short_hash(series, 8)]
    return "_".join(word for word in words if word)


def _shortened(case: str, one: _Unnamed) -> str:
    """File systems allow 255 bytes, and the longest names around a case take some 100 of them."""
    if len(case) <= _LONGEST_NAME:
        return case
    return f"{case[:_LONGEST_NAME]}-{short_hash([one.scan.dataset, one.relative, one.scan.series], 8)}"


def _each_once(found: Sequence[Found]) -> list[Found]:
    """A file that is given twice, or has links to it, counts once, by its own name where that was found."""
    by_target: dict[tuple[Path, str], Found] = {}
    real_folders: dict[Path, Path] = {}
    for one in sorted(found, key=lambda one: one.scan.path.is_symlink()):
        path = one.scan.path
        if path.is_symlink():
            target = Path(os.path.realpath(path))  # unlike resolve(), it takes loops
        else:
            if path.parent not in real_folders:
                real_folders[path.parent] = Path(os.path.realpath(path.parent))
            target = real_folders[path.parent] / path.name
        by_target.setdefault((target, one.scan.series), one)
    return list(by_target.values())


def _check_suffix(suffix: str) -> None:
    if not re.fullmatch(r"[^/\\]+", suffix) or ending_of(suffix):
        raise UserError(
            f"--exclude-suffix '{suffix}' is not possible; give what the name of a mask has between the name of its "
            "scan and the ending, such as _exclude"
        )


def _order_of_ending(path: Path) -> int:
    return ENDINGS.index(ending_of(path.name).lower())


def _without_ending(path: Path) -> str:
    name = path.name
    while ending := ending_of(name):
        name = name[: -len(ending)]
    return name


def _tail(folder: Path, depth: int) -> str:
    return safe_name("-".join(part.strip("/\\") for part in folder.parts[-depth:])) or "root"


def _compile(expression: str | None) -> re.Pattern[str] | None:
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UserError(f"--subject-regex '{expression}' is not a regular expression: {error}") from error
