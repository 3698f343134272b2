"""What the labels of each case contain: how many voxels of every label or region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.few_labels.dataset import Classes
from nnssl_mae.parallel import in_processes
from nnssl_mae.progress import track

_SHOWN_VALUES = 5


@dataclass(frozen=True)
class Content:
    """Voxels of each class of :class:`~nnssl_mae.few_labels.dataset.Classes`, in its order."""

    voxels: tuple[int, ...]


def read_contents(
    files: Mapping[str, Path], classes: Classes, reader: str, workers: int, console: Console
) -> dict[str, Content]:
    """Counts the voxels of each class in the label file of each case.

    Args:
        files: label file by case.
        classes: the labels or regions to count.
        reader: name of nnU-Net's reader; it may be any of nnunetv2.
        workers: processes; with one, the files are read in this process.
        console: for progress.

    Raises:
        UserError: a file cannot be read, or holds values that ``dataset.json`` does not name.
    """
    cases = {file: case for case, file in files.items()}
    counted = _counted(list(cases), reader, workers)
    return {
        cases[file]: _content(file, counts, classes)
        for file, counts in track(counted, "Reading labels", len(cases), console)
    }


def count_values(file: Path, reader: str) -> dict[int, int]:
    """Voxels of each value of a label file.

    Raises:
        ValueError: a value is not a whole number.
    """
    segmentation, _ = recursive_find_reader_writer_by_name(reader)().read_seg(str(file))
    values, counts = np.unique(np.asarray(segmentation), return_counts=True)
    if fractions := [float(value) for value in values if not np.isfinite(value) or value != np.round(value)]:
        raise ValueError(f"it holds values such as {fractions[0]:g}, and labels are whole numbers")
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _counted(files: list[Path], reader: str, workers: int) -> Iterator[tuple[Path, dict[int, int]]]:
    if workers == 1:
        yield from ((file, _count_here(file, reader)) for file in files)
        return
    for outcome in in_processes(partial(count_values, reader=reader), files, min(workers, len(files))):
        if outcome.failure is not None or outcome.result is None:
            raise _unreadable(outcome.item, outcome.failure.summary if outcome.failure else "no result")
        yield outcome.item, outcome.result


def _count_here(file: Path, reader: str) -> dict[int, int]:
    try:
        return count_values(file, reader)
    except Exception as error:  # readers raise what their libraries do; the user needs the name of the file
        raise _unreadable(file, f"{type(error).__name__}: {error}") from error


def _unreadable(file: Path, problem: str) -> UserError:
    return UserError(f"The labels {file} cannot be read ({' '.join(problem.split())}); repair or replace the file")


def _content(file: Path, counts: Mapping[int, int], classes: Classes) -> Content:
    if unknown := sorted(counts.keys() - classes.allowed):
        shown = ", ".join(map(str, unknown[:_SHOWN_VALUES]))
        raise UserError(
            f"The labels {file} hold {shown}, which dataset.json does not name; correct the file, or the labels in "
            "dataset.json"
        )
    return Content(tuple(sum(counts.get(value, 0) for value in values) for values in classes.values))
