"""The folders of a preparation on disk: the hidden one in which work is done, and the dataset that appears when whole.

Any number of processes on any number of machines may work in the hidden folder at the same time: each writes files of
its own names and renames them, none waits for another, and only the one that puts all together removes anything.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nnssl_mae.errors import UserError
from nnssl_mae.files import file_sizes, read_json, unique_word, whole_file, write_first
from nnssl_mae.folders import datasets_with_number, nnunet_folder
from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
from nnssl_mae.scans.one_case import Target
from nnssl_mae.scans.records import JOURNAL_ENDING, Failed, Finished, read_records, read_table, valid_records
from nnssl_mae.scans.request import REQUEST, Request, check_unchanged
from nnssl_mae.scans.storage import ENDING

PLANS_FILE = f"{PRETRAINING_PLANS}.json"
FINGERPRINT = "dataset_fingerprint.json"
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
        # Journals first: who puts all together removes them only after the table is written.
        tables = (read_table(folder) for folder in volumes)
        yield from valid_records(chain(read_records(self.records), *tables), keys, sizes)

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
        """Removes the hidden folder with all that is in it."""
        shutil.rmtree(self.work, ignore_errors=True)


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
        raise UserError(f"Dataset number {request.number} is in use by {', '.join(used)}; choose another with -d")
    others = [path for path in preprocessed.glob(f".Dataset{request.number:03d}_*.preparing") if path != place.work]
    if others:
        raise UserError(
            f"Dataset number {request.number} is in use by an unfinished preparation, {others[0]}; choose another with "
            "-d, or remove that folder"
        )


def _restart(place: Workplace) -> None:
    if place.is_update and not place.work.exists():
        raise UserError(
            f"{place.final} is finished, so there is nothing to restart; to prepare it anew, remove it yourself"
        )
    place.remove_work()
