"""Which checkpoints and scans a probe looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl_mae.catalogue.find import Scan, find_scans
from nnssl_mae.catalogue.table import is_catalogue, read_catalogue, scan_of
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json
from nnssl_mae.folders import find_dataset, nnunet_folder
from nnssl_mae.probe.labels import LabelNames, label_names, match_labels
from nnssl_mae.scans.left_out import each

_NAMED = 3


@dataclass(frozen=True)
class ChosenScans:
    """Scans in the order of their names, and the label files of those that have one, by case."""

    scans: tuple[Scan, ...]
    labels: dict[str, Path]
    names: LabelNames
    notes: tuple[str, ...]


def choose_checkpoints(given: Sequence[str], every: bool) -> list[str]:
    """What to read, by epochs where all are known, else as given.

    Args:
        given: files, folders, or ``hf://owner/name``.
        every: of a folder all ``checkpoint_*.pth``, not just the usual one.

    Raises:
        UserError: one cannot be read, or a folder holds none.
    """
    paths = [path for each in given for path in (_in_folder(each) if every else [each])]
    epochs = [read_checkpoint(path).origin.epochs for path in paths]
    order = [(place, epoch) for place, epoch in enumerate(epochs) if epoch is not None]
    if len(order) < len(paths):
        return paths
    return [paths[place] for place, _ in sorted(order, key=lambda each: each[1])]


def _in_folder(given: str) -> list[str]:
    if not Path(given).is_dir():
        return [given]
    found = sorted(Path(given).glob("checkpoint_*.pth"))
    if not found:
        raise UserError(f"{given} holds no checkpoint_*.pth, which --every looks for; give the checkpoints themselves")
    return [str(path) for path in found]


def choose_scans(
    sources: Sequence[Path],
    labels: Path | None,
    dataset: int | None,
    most: int,
    subject_regex: str | None,
    problem_of: Callable[[Scan], str | None],
) -> ChosenScans:
    """Finds scans and labels, and takes at most ``most`` of them, evenly spread; those with labels where there are any.

    In place of a scan with a problem comes the nearest one without; the notes say what was left out, without folders.

    Args:
        sources: scans, folders of scans, or one catalogue, of which the accepted scans count.
        labels: folder of label files.
        dataset: a labelled dataset of nnU-Net, in place of both.
        most: how many scans at most.
        subject_regex: see :func:`nnssl_mae.catalogue.find.find_scans`.
        problem_of: why a scan cannot be used, as a part of a sentence; None if it can.

    Raises:
        UserError: nothing to look at, not one scan that can be used, or contradicting wishes.
    """
    notes: list[str] = []
    if dataset is not None:
        if sources or labels is not None:
            raise UserError("-d gives scans and labels, so --scans and --labels must be left out")
        sources, labels, notes = _of_dataset(dataset)
    if not sources:
        raise UserError("A probe needs scans: give a folder of them with --scans, or a labelled dataset with -d")
    scans = _scans_of(sources, subject_regex)
    files: dict[str, Path] = {}
    if labels is not None:
        files = match_labels(scans, labels)
        if len(files) < len(scans):
            notes.append(f"{len(scans) - len(files)} of {len(scans)} scans have no label file and are left out.")
            scans = [scan for scan in scans if scan.case in files]
    chosen, problems = _usable(scans, most, problem_of)
    if not chosen:
        raise UserError(f"No scan can be probed with: {_some(problems)}; give others with --scans, or repair them")
    if problems:
        count = "1 scan is" if len(problems) == 1 else f"{len(problems)} scans are"
        notes.append(f"{count} left out: {_some(problems)}.")
    if len(chosen) + len(problems) < len(scans):
        notes.append(f"{len(chosen)} of {len(scans)} scans are looked at, evenly spread; --most-scans changes that.")
    kept = {scan.case: files[scan.case] for scan in chosen if scan.case in files}
    return ChosenScans(tuple(chosen), kept, LabelNames({}) if labels is None else label_names(labels), tuple(notes))


def _scans_of(sources: Sequence[Path], subject_regex: str | None) -> list[Scan]:
    if not any(map(is_catalogue, sources)):
        return find_scans(sources, subject_regex).scans
    if len(sources) > 1:
        raise UserError("Give one catalogue with --scans, or scans and folders of scans")
    if subject_regex is not None:
        raise UserError("--subject-regex belongs to `nnssl-mae scan`: the subjects of a catalogue are found there")
    scans = [scan_of(row) for row in each(read_catalogue(sources[0]).accepted)]
    if not scans:
        raise UserError(f"The catalogue {sources[0]} has no accepted scan; its column detail says why")
    return scans


def _usable(scans: Sequence[Scan], most: int, problem_of: Callable[[Scan], str | None]) -> tuple[list[Scan], list[str]]:
    """At most ``most`` scans without a problem, evenly spread and in order, and the problems that were met."""
    wanted = np.unique(np.linspace(0, len(scans) - 1, min(most, len(scans))).round().astype(int)).tolist()
    looked_at: set[int] = set()
    good: list[int] = []
    problems = []
    for place in wanted:
        for nearest in _outwards(place, len(scans)):
            if nearest in looked_at:
                continue
            looked_at.add(nearest)
            problem = problem_of(scans[nearest])
            if problem is None:
                good.append(nearest)
                break
            problems.append(f"{scans[nearest].path.name} {problem}")
    return [scans[place] for place in sorted(good)], problems


def _outwards(place: int, number: int) -> Iterator[int]:
    """All places below ``number``, the nearest first."""
    for distance in range(number):
        yield from (other for other in dict.fromkeys((place - distance, place + distance)) if 0 <= other < number)


def _some(problems: Sequence[str]) -> str:
    more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return "; ".join([*problems[:_NAMED], *more])


def _of_dataset(number: int) -> tuple[list[Path], Path, list[str]]:
    """The first channel of all training images, the folder of labels, and what to say about that."""
    folder = nnunet_folder("nnUNet_raw") / find_dataset(number)
    described = read_json(folder / "dataset.json", "-d needs a labelled dataset of nnU-Net")
    ending = str(described.get("file_ending"))
    images = sorted((folder / "imagesTr").glob(f"*_0000{ending}"))
    if not images:
        raise UserError(f"{folder / 'imagesTr'} holds no *_0000{ending}; give scans and labels with --scans, --labels")
    channels = described.get("channel_names") or described.get("modality") or {}
    if len(channels) < 2:
        return images, folder / "labelsTr", []
    note = f"{folder.name} has {len(channels)} channels; only the first, {channels.get('0', '0')}, is looked at."
    return images, folder / "labelsTr", [note]
