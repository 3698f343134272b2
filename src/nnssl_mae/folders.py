"""What we share with nnU-Net: folders, dataset numbers, environment; with sentences where something is missing."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nnssl_mae.errors import UserError

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names.

    Raises:
        UserError: the variable is not set, or the folder cannot be made or, except for raw data, written to.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{variable} is not set; tell nnU-Net where its data live: export {variable}=/some/folder")
    folder = Path(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{variable}={folder} cannot be used: {error}; point it to a writable folder") from error
    if variable != "nnUNet_raw" and not os.access(folder, os.W_OK):
        raise UserError(f"{variable}={folder} cannot be written to; change its permissions or point it elsewhere")
    return folder


def dataset_name(number: int, name: str) -> str:
    """``Dataset900_Brains`` from 900 and ``Brains``."""
    if not 1 <= number <= 999:
        raise UserError(f"Dataset number {number} is not possible; nnU-Net takes 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or "__" in name:
        raise UserError(f"Dataset name '{name}' is not possible; use letters, digits, '-' and single '_'")
    return f"Dataset{number:03d}_{name}"


def datasets_with_number(number: int) -> list[str]:
    """Names of all datasets with this number in any of nnU-Net's folders that is set, sorted."""
    names: set[str] = set()
    for variable in VARIABLES:
        folder = Path(os.environ.get(variable) or os.devnull)
        if folder.is_dir():
            names |= {path.name for path in folder.glob(f"Dataset{number:03d}_*") if path.is_dir()}
    return sorted(names)


def find_dataset(number: int) -> str:
    """The one dataset with this number.

    Raises:
        UserError: there is none, or more than one.
    """
    names = datasets_with_number(number)
    if not names:
        raise UserError(f"There is no dataset {number} in nnUNet_raw or nnUNet_preprocessed; check the number")
    if len(names) > 1:
        raise UserError(f"Number {number} belongs to several datasets ({', '.join(names)}); keep only one")
    return names[0]


def is_labelled(name: str) -> bool:
    """Whether nnUNet_raw, where it is set, holds this dataset with labels."""
    return Path(os.environ.get("nnUNet_raw") or os.devnull, name, "labelsTr").is_dir()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables for a while (nnU-Net reads its folders from there at each use)."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def planner_environment(**values: str) -> Iterator[None]:
    """Where nnU-Net's planner runs: silent, with at least one process.

    ``nnUNet_n_proc_DA=0`` is fine for training but crashes the planner's memory estimate.
    """
    workers = os.environ.get("nnUNet_n_proc_DA", "1")
    with environment(**values, nnUNet_n_proc_DA="1" if workers == "0" else workers), silence():
        yield


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drops what nnU-Net prints on stdout (its planner prints pages); errors and progress bars still show."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
