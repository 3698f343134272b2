"""``nnssl-mae preview``: pictures and NIfTI files of what a checkpoint makes of hidden blocks in given scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.catalogue.find import Scan, find_scans
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.geometry import in_file_order, patch_to_scan, write_nifti
from nnssl_mae.evaluation.inputs import check_scans, chosen_device, writing_to
from nnssl_mae.evaluation.preview import PreviewCase, draw_preview
from nnssl_mae.evaluation.reconstruct import (
    GIVEN_BLOCKS,
    Hiding,
    Reconstruction,
    blocks_are_given,
    choose_hiding,
    load_network,
    preprocess_as_trained,
    reconstruct,
)

_FILES = ("preview.png", "input.nii.gz", "hidden_input.nii.gz", "reconstruction.nii.gz", "combined.nii.gz")


def preview(
    path: Path,
    sources: Sequence[Path],
    out: Path,
    console: Console,
    ratio: float | None = None,
    seed: int = 0,
    block_size: int | None = None,
    device: str | None = None,
) -> None:
    """Writes ``<case>_preview.png`` and NIfTI files for each scan, and prints a table of metrics.

    Args:
        path: the checkpoint.
        sources: scans, or folders of scans. All are checked before anything is written.
        out: folder; made if need be.
        console: for notes and the table.
        ratio, block_size: as in pre-training where None.
        seed: of the draw; every scan gets the same mask.
        device: ``cpu``, ``cuda``, or None for a GPU where there is one.

    Raises:
        UserError: bad checkpoint, scan, option or folder; then nothing is written.
    """
    checkpoint = read_checkpoint(path)
    hiding = choose_hiding(checkpoint, path, ratio, seed, block_size)
    where = chosen_device(device)
    found = find_scans(sources)
    _check_formats(found.scans)
    _check_outputs(found.scans, out)
    check_scans(found.scans, checkpoint)
    network = load_network(checkpoint, path).to(where)
    for note in (*_notes(checkpoint), *(f"{mask} is an exclusion mask by its name." for mask in found.lonely_masks)):
        say(console, note, style="yellow")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    table = Table("scan", "PSNR (dB)", "SSIM", "R2", "hidden", "blocks")
    for scan in found.scans:
        prepared = preprocess_as_trained(scan, checkpoint)
        try:
            result = reconstruct(network, checkpoint, prepared, hiding, where)
        except torch.OutOfMemoryError as error:
            raise UserError("The GPU has too little memory for this patch and network; use --device cpu") from error
        except ValueError as error:
            raise UserError(f"{scan.path} cannot be reconstructed: {error}") from error
        to_scan = patch_to_scan(
            scan.path,
            checkpoint.plans["image_reader_writer"],
            prepared.properties,
            checkpoint.plans["transpose_forward"],
            prepared.volume.shape[1:],
            result.corner,
        )
        with writing_to(out):
            title = _title(result, hiding, blocks_are_given(checkpoint))
            _write(result, checkpoint.plans["transpose_forward"], scan, to_scan, title, out)
        # Text: a plain string would be read as rich's markup.
        table.add_row(Text(scan.case), *_metrics(result), f"{result.hidden.mean():.0%}", _edges(result))
    console.print(table)
    say(console, f"Wrote {len(_FILES)} files a scan to {out}")


def _notes(checkpoint: Checkpoint) -> list[str]:
    notes = [*checkpoint.notes, *checkpoint.reconstruction_notes]
    if blocks_are_given(checkpoint):
        notes.append(f"Pictures, PSNR and SSIM: {GIVEN_BLOCKS}. R2 is against the true mean of each block.")
    return notes


def _check_formats(scans: Sequence[Scan]) -> None:
    """Pictures are written onto the grid of the scan as NIfTI, so only that is read."""
    others = [scan for scan in scans if scan.series or not scan.path.name.lower().endswith((".nii", ".nii.gz"))]
    if others:
        what = "a DICOM series" if others[0].series else "no NIfTI file"
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UserError(f"{others[0].path} is {what}{more}; preview reads .nii and .nii.gz: convert it or leave it out")


def _check_outputs(scans: Sequence[Scan], out: Path) -> None:
    """Refuses outputs that would replace a scan or each other."""
    given = {scan.path.resolve() for scan in scans}
    writers: dict[str, Scan] = {}
    for writer, target in ((scan, target) for scan in scans for target in _targets(out, scan.case)):
        if target.resolve() in given:
            raise UserError(f"The output {target} would replace a scan of that name; choose another folder with -o")
        other = writers.setdefault(target.name.lower(), writer)  # some disks do not tell upper from lower case
        if other is not writer:
            raise UserError(
                f"{other.path} and {writer.path} would both be written to {target}; preview them one by one, each with "
                "its own folder -o"
            )


def _targets(out: Path, case: str) -> list[Path]:
    return [out / f"{case}_{name}" for name in _FILES]


def _write(
    result: Reconstruction, transpose_forward: Sequence[int], scan: Scan, to_scan: NDArray[Any], title: str, out: Path
) -> None:
    picture, *files = _targets(out, scan.case)
    volumes = (result.original, result.hidden_input, result.output, result.combined)
    for file, volume in zip(files, volumes, strict=True):
        write_nifti(file, in_file_order(volume, transpose_forward), scan.path, to_scan)
    affine = nibabel.load(scan.path).affine @ to_scan

    def upright(volume: NDArray[Any]) -> NDArray[Any]:
        """(Z, Y, X) with axes that point up, to the front and to the right."""
        turned = apply_orientation(in_file_order(volume, transpose_forward), io_orientation(affine))
        return np.asarray(turned).transpose(2, 1, 0)

    case = PreviewCase(
        scan.case,
        upright(result.original),
        upright(result.output),
        upright(result.hidden),
        _upright_spacing(affine),
        upright(result.excluded),
    )
    draw_preview([case], picture, title)


def _upright_spacing(affine: NDArray[Any]) -> tuple[float, float, float]:
    """Voxel edges in mm along the axis that points most up, to the front and to the right."""
    axes = [int(axis) for axis in io_orientation(affine)[:, 0]]
    z, y, x = (float(voxel_sizes(affine)[axes.index(axis)]) for axis in (2, 1, 0))
    return z, y, x


def _title(result: Reconstruction, hiding: Hiding, given: bool) -> str:
    psnr, ssim, r2 = _metrics(result)
    return (
        f"hidden voxels: PSNR {psnr} dB, SSIM {ssim}, R2 {r2}\n"
        f"{result.hidden.mean():.0%} hidden in blocks of {_edges(result)} voxels, seed {hiding.seed}"
        + (f"\n{GIVEN_BLOCKS}" if given else "")
    )


def _edges(result: Reconstruction) -> str:
    """Edges of the blocks in voxels; not always what was asked for, because blocks must fill the patch."""
    return "x".join(map(str, result.blocks))


def _metrics(result: Reconstruction) -> list[str]:
    """PSNR, SSIM and R2; SSIM is undefined where the hidden blocks hold no whole window."""
    digits = {"psnr": 2, "ssim": 3, "r2": 3}
    values = {name: result.metrics[name] for name in digits}
    return [f"{value:.{digits[name]}f}" if np.isfinite(value) else "undefined" for name, value in values.items()]
