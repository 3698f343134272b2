"""What commands that look at scans are given: device, scans, output folder; a sentence for what is not usable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.scans.measure import measure_scan
from nnssl_mae.scans.preprocess import orientation_of


def chosen_device(name: str | None) -> torch.device:
    """The device of this name; without one, the GPU if there is one.

    Raises:
        UserError: another name than cpu or cuda, or no GPU.
    """
    if name not in (None, "cpu", "cuda"):
        raise UserError(f"--device {name} is not possible; use cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_scans(scans: Sequence[Scan], checkpoint: Checkpoint) -> None:
    """Looks at every scan, so that a bad one stops all before anything is computed or written.

    Args:
        scans: to preprocess as for the checkpoint.
        checkpoint: says how.

    Raises:
        UserError: one is damaged, constant, or holds NaN.
    """
    orientation = orientation_of(str(checkpoint.plans["image_reader_writer"]))
    beyond_stock = checkpoint.beyond_stock
    found = [measure_scan(scan, orientation, intensity_samples=1, beyond_stock=beyond_stock) for scan in scans]
    problems = [f"{scan.path} {scan.problem}" for scan in found if scan.problem]
    if problems:
        more = f" (and {len(problems) - 1} more of the {len(scans)} scans)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}, so it cannot be reconstructed{more}; leave it out or repair it")


@contextlib.contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A sentence for a full disk, a missing permission, or a file where a folder should be."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Nothing can be written to {out} ({error.strerror}); choose another folder with -o") from error
