"""What the user wants prepared, and whether that is what a folder on disk was begun or finished with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnssl_mae.catalogue.table import Catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.files import as_json, read_json, short_hash
from nnssl_mae.folders import dataset_name, datasets_with_number
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.recipes.words import shown
from nnssl_mae.scans.preprocess import STEP_VERSION, BeyondStock

REQUEST = "request.json"
_SCHEMA = 1
_SELECTING = ["case", "path", "series", "frame", "dataset", "subject", "verdict"]
_ONLY_WORDS = ("summary", "citation")  # keys of a recipe that decide nothing


class NotOurs(UserError):
    """The number or the folder belongs to another command; nothing of it is touched."""


@dataclass(frozen=True)
class Request:
    """A dataset to prepare."""

    number: int
    name: str
    recipe: Recipe
    """With the user's changes."""
    published: Recipe
    """The same recipe without them."""
    workers: int = 2
    """Processes."""
    shard: tuple[int, int] | None = None
    """(i, n): do the i-th of n parts only, i from 1."""
    max_memory: int | None = None
    """Bytes that all processes together may take; none for four fifths of what is free."""
    restart: bool = False
    """Throw away what an unfinished preparation has done."""
    exclude_datasets: tuple[int, ...] = ()
    """Labelled datasets whose scans are left out, here and in every later update."""
    selection: tuple[str, ...] = ()
    """Further options that decide which scans are left out."""
    subsample: int = 500
    """From how many scans the fingerprint, and so the plans, are made."""

    def __post_init__(self) -> None:
        dataset_name(self.number, self.name)
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise UserError(f"--shard {self.shard[0]}/{self.shard[1]} is not possible; shards count from 1/n to n/n")
        if self.shard is not None and self.restart:
            raise UserError(
                "--restart cannot be combined with --shard: the shards would remove each other's work; remove the "
                "unfinished folder once, then start them all"
            )

    @property
    def dataset(self) -> str:
        """``Dataset900_Brains``."""
        return dataset_name(self.number, self.name)

    def is_mine(self, case: str) -> bool:
        """Whether a case belongs to this shard: by its name alone, so that shards need not talk to each other."""
        if self.shard is None:
            return True
        part, parts = self.shard
        return _number_of(case) % parts == part - 1

    def stored(self) -> bytes:
        """The content of ``request.json``: what decides the dataset besides the scans. No paths."""
        excluded = sorted(set(self.exclude_datasets))
        content = {"schema": _SCHEMA, "dataset": self.dataset, "exclude_datasets": excluded}
        content["excluded"] = [_name_of(number) for number in excluded]
        return as_json({**content, "recipe": self.recipe.model_dump(mode="json")})

    def selection_of(self, catalogue: Catalogue) -> bytes:
        """Which scans are wanted: equal for shards that may work together. A hash, so no paths."""
        rows = catalogue.rows[_SELECTING].astype(str).to_numpy().tolist()
        options = [sorted(set(self.exclude_datasets)), list(self.selection)]
        return as_json({"selection": short_hash([rows, options], 64)})


def _name_of(number: int) -> str:
    """``Dataset004_Hippocampus``; of a dataset that is not here, or not the only one, its number: ``Dataset004``."""
    names = datasets_with_number(number)
    return names[0] if len(names) == 1 else f"Dataset{number:03d}"


def excluded_from(folder: Path) -> tuple[str, ...] | None:
    """Names of the labelled datasets whose scans a prepared dataset was kept free of; None if it does not tell.

    Raises:
        UserError: its ``request.json`` is damaged.
    """
    if not (folder / REQUEST).is_file():
        return None
    excluded = read_json(folder / REQUEST, "prepare the dataset again").get("excluded")
    return None if excluded is None else tuple(map(str, excluded))


def _number_of(case: str) -> int:
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")


def drawn(cases: Collection[str], number: int) -> set[str]:
    """``number`` of the cases, or all if there are fewer: random, but the same on every machine."""
    return set(sorted(cases, key=lambda case: (_number_of(case), case))[:number])


def case_key(source: str, frame: str, steps: str) -> str:
    """Tells whether a stored volume is what would be made today: of source bytes and preprocessing.

    Args:
        source: what tells the file or series, with its exclusion mask, from a changed one.
        frame: which volume of a 4D file.
        steps: of :func:`preprocessing_hash`.
    """
    return hashlib.sha256(f"{source} {frame} {steps}".encode()).hexdigest()


def preprocessing_hash(plans: Mapping[str, Any], beyond_stock: BeyondStock) -> str:
    """Equal if and only if the same scan becomes the same file: of everything in the plans and recipe that decides it,
    and of the version of our code for that step.

    nnU-Net's version is not part of it: its preprocessing has not changed within 2.x, and 40,000 volumes must not be
    made again because of an update. Should it change, ``STEP_VERSION`` is raised.
    """
    configuration = plans["configurations"][CONFIGURATION]
    # The identifier is a hash of reader, orientation, spacing, normalisation and resampling.
    content = [STEP_VERSION, configuration["data_identifier"], list(configuration["patch_size"]), asdict(beyond_stock)]
    return short_hash(content, 64)


def stored_recipe(file: Path) -> Recipe | None:
    """The recipe of a ``request.json``; none if there is no such file.

    Raises:
        UserError: it is damaged or of another version.
    """
    if not file.is_file():
        return None
    content = read_json(file, f"remove {file.parent} and prepare again")
    if content.get("schema") != _SCHEMA or not isinstance(content.get("recipe"), dict):
        raise UserError(f"{file} was written by another version of nnssl_mae; remove {file.parent} and prepare again")
    return parse_recipe(content["recipe"], f"in {file}")


def check_unchanged(folder: Path, request: Request, is_finished: bool) -> None:
    """Refuses to mix volumes of two recipes in one dataset, and to let scans of a test set come back.

    Raises:
        NotOurs: the recipe of ``folder`` is another one (names every key that differs, and the way out), or labelled
            datasets that were left out are not any more.
        UserError: what is written there is damaged.
    """
    before = stored_recipe(folder / REQUEST)
    if before is None:
        return
    what = "prepared" if is_finished else "begun"
    left_out = read_json(folder / REQUEST, "").get("exclude_datasets", [])
    if forgotten := sorted(set(left_out) - set(request.exclude_datasets)):
        options = " ".join(f"--exclude-dataset {number}" for number in forgotten)
        raise NotOurs(
            f"{request.dataset} was {what} with {options}, and without it scans of that dataset would come back; give "
            "it again, or choose another number with -d"
        )
    old, new = (_leaves(json.loads(recipe.model_dump_json())) for recipe in (before, request.recipe))
    changed = [key for key in (old | new) if old.get(key) != new.get(key) and key not in _ONLY_WORDS]
    if not changed:
        return
    listing = "\n".join(f"  {key}: {shown(old.get(key))} -> {shown(new.get(key))}" for key in changed)
    raise NotOurs(
        f"{request.dataset} was {what} with another recipe:\n{listing}\n{_way_out(folder, changed, is_finished)}"
    )


def _way_out(folder: Path, changed: Collection[str], is_finished: bool) -> str:
    anew = f"remove {folder} yourself" if is_finished else "throw away what is done with --restart"
    if any(key.startswith("data.") for key in changed):
        return f"Choose another number with -d, or {anew}"
    first = "" if is_finished else "finish it with the recipe that it was begun with, then "
    return (
        f"Its volumes suit both recipes: {first}train the new one on them with `nnssl-mae pretrain --recipe`. "
        f"Otherwise choose another number with -d, or {anew}"
    )


def _leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
