"""NIfTI files (.nii, .nii.gz, .hdr + .img) read with nibabel's header and nothing else of the file than is needed."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from nnssl_mae.catalogue.header import Header, ScanProblem, check_claim, in_ras_order, size_of_regular_file, to_ras, why
from nnssl_mae.catalogue.quiet import quiet_nibabel

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 22
_HEADERS = {
    348: (nibabel.Nifti1Header, nibabel.nifti1.Nifti1PairHeader),
    540: (nibabel.Nifti2Header, nibabel.nifti2.Nifti2PairHeader),
}


@dataclass(frozen=True)
class NiftiFile:
    """The header in nibabel's form, and where the voxels are."""

    header: Any
    summary: Header
    voxels: Path
    turn: NDArray[np.float64]


def open_nifti(path: Path) -> NiftiFile:
    """Reads the header.

    Raises:
        ScanProblem: it is damaged, or claims more than the file holds.
    """
    size_of_regular_file(path)
    try:
        with quiet_nibabel(), _opened(path) as file:
            header = _parse(file, path)
            pixdim = [float(edge) for edge in header["pixdim"][1:4]]  # nibabel's check puts 1 mm in the place of 0
            header.check_fix()
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            shape = tuple(int(n) for n in header.get_data_shape())
            dtype = header.get_data_dtype()
            header.get_slope_inter(), header.get_data_offset()
            description = bytes(header["descrip"]).split(b"\0")[0].decode("latin-1").strip()
    except ScanProblem:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanProblem("truncated", f"ends inside its header or is damaged there ({why(error)})") from error
    except OSError as error:
        raise ScanProblem("unreadable", f"cannot be read ({why(error)})") from error
    except Exception as error:  # nibabel raises many kinds for damaged headers; the text goes to the user
        raise ScanProblem("unreadable", f"has no readable NIfTI header ({why(error)})") from error
    grid, volumes = _grid(shape)
    _check_values(dtype, pixdim[: len(shape)])
    voxels = _voxel_file(path)
    turn = to_ras(affine)
    _check_size(header, shape, dtype, voxels)
    return NiftiFile(
        header,
        Header(
            format="nifti",
            stored_shape=grid,
            stored_spacing=_three([float(edge) for edge in header.get_zooms()[:3]]),
            shape=in_ras_order(grid, turn),
            spacing=_ras_spacing(header, affine, turn),
            affine=affine,
            dtype=dtype.newbyteorder("=").name,
            volumes=volumes,
            description=description,
            files=tuple(sorted({path, voxels})),
        ),
        voxels,
        turn,
    )


def read_ras(nifti: NiftiFile, volumes: list[int]) -> NDArray[np.float32]:
    """The mean of some volumes as (Z, Y, X) in RAS; bit for bit nnU-Net's ``NibabelIOWithReorient`` for one volume.

    nnU-Net goes through a float64 copy of the whole scan. The result of scaling is the same slice by slice, and that
    of unscaled values without any copy.

    Raises:
        ScanProblem: the voxels end too early or are damaged.
    """
    slope, inter = nifti.header.get_slope_inter()
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = (_scaled(_turned(raw, nifti.turn), slope, inter) for raw in _raw_volumes(nifti, sorted(volumes)))
        if len(volumes) == 1:
            (piece,) = pieces  # to the end of the file, where the checksum is
            return piece
        total = np.zeros(nifti.summary.shape[::-1], dtype=np.float64)
        for piece in pieces:
            total += piece
        return (total / len(volumes)).astype(np.float32)


def _opened(path: Path) -> BinaryIO:
    """By content, not by name: files called .nii.gz that are not compressed are common."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb")


def _parse(file: BinaryIO, path: Path) -> Any:
    block = file.read(540)
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    size = next((size for size in _HEADERS if size in sizes), None)
    magic = block[344:348] if size == 348 else block[4:8]
    if size is None or magic[:1] != b"n":
        if size == 348 and path.name.endswith(".hdr"):
            raise ScanProblem("unreadable", "is an Analyze 7.5 file, which does not tell left from right")
        raise ScanProblem("unreadable", "does not begin as NIfTI files do")
    single, pair = _HEADERS[size]
    if len(block) < size:
        raise ScanProblem("truncated", f"ends after {len(block)} bytes, inside its header")
    return (pair if path.name.endswith(".hdr") else single)(block[:size], check=False)


def _grid(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """The three axes and the number of volumes; trailing axes of length 1 mean nothing."""
    if not shape or min(shape) < 1:
        raise ScanProblem("unreadable", f"has a grid without voxels {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise ScanProblem("not_3d", f"has {len(shape)} dimensions {shape}")
    x, y, z, volumes = (*shape, *(1,) * (4 - len(shape)))
    return (x, y, z), volumes


def _check_values(dtype: np.dtype[Any], edges: list[float]) -> None:
    if dtype.names is not None:
        raise ScanProblem("colour", "is a colour picture, with several numbers a voxel")
    if dtype.kind not in "iuf":
        raise ScanProblem("unreadable", f"holds numbers of the kind {dtype.name}, which are no intensities")
    if not all(np.isfinite(edges)) or 0 in edges:
        raise ScanProblem("spacing", f"has an impossible voxel size ({' x '.join(f'{e:g}' for e in edges)} mm)")


def _voxel_file(path: Path) -> Path:
    if not path.name.endswith(".hdr"):
        return path
    partner = path.with_suffix(".img")
    size_of_regular_file(partner)
    return partner


def _check_size(header: Any, shape: tuple[int, ...], dtype: np.dtype[Any], voxels: Path) -> None:
    claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    there = size_of_regular_file(voxels)
    with voxels.open("rb") as file:
        compressed = file.read(2) == _GZIP
    offset = int(header.get_data_offset())
    if offset < 0:
        raise ScanProblem("unreadable", "has voxels before its beginning")
    check_claim(int(np.prod(shape[:3], dtype=object)), claimed, there if compressed else there - offset, compressed)


def _ras_spacing(header: Any, affine: NDArray[Any], turn: NDArray[Any]) -> tuple[float, float, float]:
    """As nibabel's turned image has it: from the header where nothing turns, else from the affine, as float32."""
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return _three([float(edge) for edge in header.get_zooms()[:3]])
    edges = np.sqrt(np.sum(affine[:3, :3] * affine[:3, :3], axis=0)).astype(np.float32)
    return in_ras_order(tuple(float(edge) for edge in edges), turn)


def _three(edges: list[float]) -> tuple[float, float, float]:
    x, y, z = (*edges, *(1.0,) * (3 - len(edges)))
    return x, y, z


def _turned(raw: NDArray[Any], turn: NDArray[Any]) -> NDArray[Any]:
    """(X, Y, Z) as stored -> a view (Z, Y, X) in RAS."""
    return cast(NDArray[Any], apply_orientation(raw, turn)).transpose(2, 1, 0)


def _scaled(raw: NDArray[Any], slope: float | None, inter: float | None) -> NDArray[np.float32]:
    volume = np.empty(raw.shape, dtype=np.float32)
    is_scaled = slope is not None and (slope, inter) != (1.0, 0.0)
    # Of 64-bit integers nnU-Net's way rounds twice; so must this one.
    exact = not is_scaled and not (raw.dtype.kind in "iu" and raw.dtype.itemsize == 8) and raw.dtype.itemsize <= 8
    for target, plane in zip(volume, raw, strict=True):
        if exact:
            target[...] = plane
            continue
        numbers = plane if not is_scaled or slope == 1.0 else plane * np.array([slope], dtype=np.float64)
        if is_scaled and inter:
            numbers = numbers + np.array([inter], dtype=np.float64)
        target[...] = numbers.astype(np.float64)
    return volume


def _raw_volumes(nifti: NiftiFile, volumes: list[int]) -> Any:
    """(X, Y, Z) of each volume in the type of the file; the file is read once, to its end where it is compressed."""
    dtype, grid = nifti.header.get_data_dtype(), nifti.summary.stored_shape
    length = int(np.prod(grid)) * dtype.itemsize
    try:
        with _opened(nifti.voxels) as file:
            file.seek(int(nifti.header.get_data_offset()))
            at = 0
            for volume in volumes:
                if volume > at:
                    file.seek(length * (volume - at), io.SEEK_CUR)
                at = volume + 1
                yield np.frombuffer(_exactly(file, length), dtype=dtype).reshape(grid, order="F")
            if isinstance(file, gzip.GzipFile):
                _check_sum(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanProblem("truncated", f"has voxels that cannot be read to their end ({why(error)})") from error
    except OSError as error:
        raise ScanProblem("unreadable", f"cannot be read ({why(error)})") from error


def _exactly(file: BinaryIO, length: int) -> NDArray[np.uint8]:
    buffer = np.empty(length, dtype=np.uint8)
    view, done = memoryview(buffer.data), 0
    while done < length:
        count = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise ScanProblem("truncated", f"ends after {done} of {length} bytes of voxels")
        done += count
    return buffer


def _check_sum(file: gzip.GzipFile) -> None:
    """Reads on to the end, where gzip compares its checksum. What follows the compressed data is not looked at."""
    try:
        while file.read(_CHUNK):
            pass
    except gzip.BadGzipFile as error:
        if "CRC" in str(error) or "length" in str(error):
            raise
