"""What is compared, what is missing, and what a user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One model's label maps of one set of cases, and what they are measured against."""

    dataset: str
    arm: str
    replicate: str
    fold: str
    """nnU-Net's fold (``0``, ``104``), or ``test`` for predictions that belong to no fold."""
    labelled: int | None
    repeat: int | None
    predictions: Path
    references: Path
    model: Path | None
    """The fold's folder with nnU-Net's logs; none for test predictions."""
    labels: dict[str, tuple[int, ...]]
    """The values that make up each label or region."""
    ignore: int | None
    file_ending: str
    cases: tuple[str, ...]
    """Those that should have been predicted."""
    reader: str = "SimpleITKIO"
    """nnU-Net's reader for these files."""
    subjects: dict[str, str] = field(default_factory=dict)
    """Subject of each case, as far as ``nnssl_folds.json`` knows."""


@dataclass(frozen=True)
class Unfinished:
    """A hole: something that other arms or replicates have, or that was begun, and cannot be compared."""

    dataset: str
    arm: str
    replicate: str
    """Empty where no model of the arm was found."""
    fold: str
    labelled: int | None
    repeat: int | None
    why: str


@dataclass(frozen=True)
class HeldOut:
    """Predictions of a test set.

    A folder holds label maps as ``nnUNetv2_predict`` leaves them, or ``fold_N`` folders that do.
    """

    dataset: int | str
    """Number of an nnU-Net dataset, whose labels count, or a name for the table."""
    references: Path
    predictions: Mapping[str, Sequence[Path]]
    """Folders of each arm; several are its replicates."""


@dataclass(frozen=True)
class Request:
    """What is to be compared."""

    datasets: tuple[int, ...] = ()
    """Their validated folds are compared."""
    arms: Mapping[str, str] = field(default_factory=dict)
    """Pattern over TRAINER__PLANS__CONFIGURATION of each arm; several models of one pattern are replicates. Without
    any, each model is an arm."""
    folds: tuple[str, ...] = ()
    """Only these; all without any."""
    results: Mapping[str, Path] = field(default_factory=dict)
    """nnU-Net's result folders by label; several are replicates. ``nnUNet_results`` without any."""
    held_out: tuple[HeldOut, ...] = ()


@dataclass(frozen=True)
class Found:
    """Runs, holes and remarks for the user."""

    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...]
    notes: tuple[str, ...] = ()
