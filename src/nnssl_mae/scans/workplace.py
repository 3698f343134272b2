"""The folders of a preparation on disk: the hidden one in which work is done, and the dataset that appears when whole.

Any number of processes on any number of machines may work in the hidden folder at the same time: each writes files of
its own names and renames them, none waits for another, and only the one that puts all together removes anything.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nnssl_mae.catalogue.table import is_catalogue, read_catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.files import file_sizes, read_json, unique_word, whole_file, write_first
from nnssl_mae.folders import datasets_with_number, nnunet_folder
from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
from nnssl_mae.scans.one_case import Target
from nnssl_mae.scans.records import (
    JOURNAL_ENDING,
    Failed,
    Finished,
    digest_of,
    mask_name,
    read_records,
    read_table,
    remade,
    valid_records,
)
from nnssl_mae.scans.request import REQUEST, NotOurs, Request, check_unchanged
from nnssl_mae.scans.storage import ENDING

PLANS_FILE = f"{PRETRAINING_PLANS}.json"
FINGERPRINT = "dataset_fingerprint.json"
SELECTION = "selection.json"
CATALOGUE = "catalogue"
"""Folder of the catalogue of a dataset that was prepared from folders of scans."""
_ATTEMPTS = 10  # to make a folder that another process renames or removes at the same moment


@dataclass(frozen=True)
class Workplace:
    """``.Dataset900_Brains.preparing`` and ``Dataset900_Brains``."""

    work: Path
    final: Path

    @property
    def is_update(self) -> bool:
        """Whether there is a finished dataset, which the work adds to."""
        return (self.final / REQUEST).is_file()

    @property
    def is_merged(self) -> bool:
        """Whether another process has put all together."""
        return self.is_update and not self.work.exists()

    @property
    def home(self) -> Path:
        """Where plans and fingerprint are: they are made once for a dataset."""
        return self.final if self.is_update else self.work

    @property
    def records(self) -> Path:
        """Folder of the journals."""
        return self.work / "records"

    def target(self, plans: Mapping[str, Any]) -> Target:
        """Where volumes are stored while work is done."""
        return Target(self.work / data_folder_name(plans), self.work / "unfinished")

    def make_folders(self, plans: Mapping[str, Any]) -> None:
        """Those in which workers write."""
        target = self.target(plans)
        for folder in (self.records, target.volumes, target.unfinished):
            folder.mkdir(exist_ok=True)

    def new_journal(self, shard: tuple[int, int] | None) -> Path:
        """A file that no other process writes."""
        part, parts = shard or (1, 1)
        return self.records / f"{part}-of-{parts}.{unique_word()}{JOURNAL_ENDING}"

    def valid_records(self, plans: Mapping[str, Any], keys: Mapping[str, str]) -> Iterator[Finished | Failed]:
        """What is known of the wanted cases and still holds: see :func:`nnssl_mae.scans.records.valid_records`."""
        volumes = [folder / data_folder_name(plans) for folder in (self.work, self.final)]
        sizes: dict[str, set[int]] = {}
        for folder in volumes:
            for name, size in file_sizes(folder).items():
                sizes.setdefault(name, set()).add(size)
        doubtful = remade(read_records(self.records), keys)
        # Journals first: who puts all together removes them only after the table is written.
        tables = (read_table(folder) for folder in volumes)
        for record in valid_records(chain(read_records(self.records), *tables), keys, sizes):
            if isinstance(record, Failed) or record.case not in doubtful or self._is_stored(record, volumes):
                yield record

    def _is_stored(self, record: Finished, volumes: Sequence[Path]) -> bool:
        """Whether the files that will be in the dataset (those in the first folder replace others) are the record's."""
        names = [f"{record.case}{ENDING}", *([mask_name(record.case)] if record.exclusion_size else [])]
        first, last = volumes
        volume, *mask = [first / name if (first / name).exists() else last / name for name in names]
        return bool(record.digest) and record.digest == digest_of(volume, mask[0] if mask else None)

    def holds_work(self) -> bool:
        """Whether anything would be lost without the hidden folder."""
        return any(self.work.glob(f"*/*{ENDING}"))

    def borrow_catalogue(self) -> None:
        """Copies the catalogue of the finished dataset, so that unchanged scans are not looked at again."""
        (self.work / CATALOGUE).mkdir(exist_ok=True)
        for name in file_sizes(self.final / CATALOGUE):
            if not (target := self.work / CATALOGUE / name).exists():
                with whole_file(target) as temporary:
                    shutil.copyfile(self.final / CATALOGUE / name, temporary)

    def remove_work(self) -> None:
        """Removes the hidden folder with all that is in it: at once, as a kill could leave plans without a recipe."""
        with contextlib.suppress(FileNotFoundError):
            self.work.rename(self.work.with_name(f"{self.work.name}.{unique_word()}.tmp"))
        self.sweep()

    def sweep(self) -> None:
        """Removes hidden folders whose removal was killed."""
        for folder in self.work.parent.glob(f"{self.work.name}.*.tmp"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_all_but_catalogue(self) -> None:
        """Removes what is in the hidden folder, but not a catalogue with good scans: it may have taken hours."""
        if not is_catalogue(self.work / CATALOGUE) or read_catalogue(self.work / CATALOGUE).accepted.empty:
            self.remove_work()
            return
        for path in self.work.iterdir():
            if path.is_dir() and path.name != CATALOGUE:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file():
                path.unlink(missing_ok=True)

    def hold(self, selection: bytes, request: Request) -> None:
        """Writes down which scans are worked on, so that shards with others cannot mix with these.

        A run without a shard takes over: whoever works on another selection then is refused at the end.

        Raises:
            NotOurs: this is a shard, and others work on another selection.
        """
        file = self.records / SELECTION
        write_first(file, selection)
        if file.read_bytes() == selection:
            return
        if request.shard is not None:
            raise NotOurs(
                f"{request.dataset} was begun with another catalogue, or with other values of --exclude-dataset, "
                "--no-match-subjects or --subject-regex, than this shard's; all shards must get the same. If the "
                f"catalogue was changed on purpose: when no shard is running any more, remove {file}, then start them "
                "all again; what is done stays"
            )
        for path, content in ((file, selection), (self.work / REQUEST, request.stored())):
            with whole_file(path) as temporary:
                temporary.write_bytes(content)

    def check_held(self, selection: bytes, request: Request) -> None:
        """Refuses to put together what another command has begun anew meanwhile.

        Raises:
            NotOurs: see above.
            FileNotFoundError: another process has put all together.
        """
        if not self.is_update or self.work.exists():
            check_unchanged(self.work, request, is_finished=False)
        if (self.records / SELECTION).read_bytes() != selection:
            raise NotOurs(
                f"Another command has begun to prepare {request.dataset} with other scans meanwhile; it will put all "
                "together, and this one ends here"
            )


def data_folder_name(plans: Mapping[str, Any]) -> str:
    """Name of the folder of volumes."""
    return str(plans["configurations"][CONFIGURATION]["data_identifier"])


def read_plans(folder: Path) -> dict[str, Any]:
    """The plans of a dataset, finished or not."""
    return read_json(folder / PLANS_FILE, f"remove {folder} and prepare again")


def claim(request: Request) -> Workplace:
    """Makes the hidden folder, or finds the one that the same request was begun in.

    Raises:
        UserError: the number belongs to something else, or the dataset was begun or finished with another recipe.
    """
    preprocessed, name = nnunet_folder("nnUNet_preprocessed"), request.dataset
    place = Workplace(preprocessed / f".{name}.preparing", preprocessed / name)
    _check_number(place, request, preprocessed)
    if place.is_update:
        check_unchanged(place.final, request, is_finished=True)
    if request.restart:
        _restart(place)
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            place.work.mkdir(exist_ok=True)
            write_first(place.work / REQUEST, request.stored())
            break
    check_unchanged(place.work, request, is_finished=False)
    return place


def _check_number(place: Workplace, request: Request, preprocessed: Path) -> None:
    used = [name for name in datasets_with_number(request.number) if not (name == request.dataset and place.is_update)]
    if used:
        going_on = _way_to_go_on(used, preprocessed)
        raise NotOurs(
            f"Dataset number {request.number} is in use by {', '.join(used)}; choose another with -d{going_on}"
        )
    others = [path for path in preprocessed.glob(f".Dataset{request.number:03d}_*.preparing") if path != place.work]
    if others:
        raise NotOurs(
            f"Dataset number {request.number} is in use by an unfinished preparation, {others[0]}; choose another with "
            "-d, or remove that folder"
        )


def _way_to_go_on(used: Sequence[str], preprocessed: Path) -> str:
    """Ends the sentence above where the number belongs to a single dataset of ours: its name may be mistyped only."""
    if len(used) > 1 or not (preprocessed / used[0] / REQUEST).is_file():
        return ""
    return f", or -n {used[0].partition('_')[2]} to go on with it"


def _restart(place: Workplace) -> None:
    if place.is_update and not place.work.exists():
        raise UserError(
            f"{place.final} is finished, so there is nothing to restart; to prepare it anew, remove it yourself"
        )
    place.remove_work()
