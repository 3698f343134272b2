"""NRRD, MetaImage and DICOM pixels through SimpleITK, after a look at whether the file can be what it claims."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation
from numpy.typing import NDArray

from nnssl_mae.catalogue.header import Header, ScanProblem, check_claim, in_ras_order, size_of_regular_file, to_ras, why
from nnssl_mae.catalogue.quiet import quiet_process

_READERS = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO", "nifti": "NiftiImageIO", "dicom": "GDCMImageIO"}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TEXT_HEADER = 1 << 20
"""Headers of NRRD and MetaImage are shorter than this."""
_TYPES = {
    sitk.sitkUInt8: "uint8",
    sitk.sitkInt8: "int8",
    sitk.sitkUInt16: "uint16",
    sitk.sitkInt16: "int16",
    sitk.sitkUInt32: "uint32",
    sitk.sitkInt32: "int32",
    sitk.sitkUInt64: "uint64",
    sitk.sitkInt64: "int64",
    sitk.sitkFloat32: "float32",
    sitk.sitkFloat64: "float64",
}


@dataclass(frozen=True)
class TextHeader:
    """What NRRD and MetaImage say of themselves: where the voxels are."""

    files: tuple[Path, ...]
    first_byte: int
    compressed: bool


def read_volume_header(path: Path, kind: str, voxels: Path | None = None) -> Header:
    """Header of an NRRD or MetaImage file, of one multi-frame DICOM file, or of NIfTI with its file of ``voxels``.

    Raises:
        ScanProblem: it is damaged, or claims more than its files hold.
    """
    size = size_of_regular_file(path)
    described = _described(path, kind) if kind in ("nrrd", "metaimage") else TextHeader((voxels or path,), 0, True)
    reader = _reader(path, kind)
    with quiet_process():
        try:
            reader.ReadImageInformation()
        except Exception as error:  # SimpleITK raises RuntimeError with the C++ text
            raise ScanProblem("unreadable", f"has no readable header ({reason(error)})") from error
    size_xyz, components = tuple(int(n) for n in reader.GetSize()), int(reader.GetNumberOfComponents())
    header = _header(reader, kind, (path, *described.files), size_xyz, components)
    there = sum(size_of_regular_file(file) for file in described.files if file != path)
    there += size - described.first_byte if path in described.files else 0
    check_claim(int(np.prod(size_xyz[:3], dtype=object)), header.stored_bytes, there, described.compressed)
    return header


def read_volume(header: Header, volumes: list[int], ras: bool) -> NDArray[np.float32]:
    """The mean of some volumes as (Z, Y, X), in RAS or as stored (then as nnU-Net's ``SimpleITKIO`` gives one volume).

    Raises:
        ScanProblem: the voxels end too early or are damaged.
    """
    return read_pixels(header, header.files[0], volumes, ras)


def read_pixels(header: Header, path: Path, volumes: list[int], ras: bool) -> NDArray[np.float32]:
    """As :func:`read_volume`, from a file that need not be the first of the header."""
    reader = _reader(path, header.format)
    with quiet_process():
        try:
            if header.volumes == 1:
                stored = floats(reader.Execute())
            else:
                total = np.zeros(header.stored_shape[::-1], dtype=np.float64)
                for piece in _pieces(reader, volumes):
                    total += piece
                stored = (total / len(volumes)).astype(np.float32)
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise ScanProblem("truncated", f"has voxels that cannot be read to their end ({reason(error)})") from error
    return turned(stored.reshape(header.stored_shape[::-1]), header, ras)


def turned(stored: NDArray[np.float32], header: Header, ras: bool) -> NDArray[np.float32]:
    """(Z, Y, X) as stored -> the same or in RAS."""
    if not ras:
        return stored
    volume = apply_orientation(stored.transpose(2, 1, 0), to_ras(header.affine)).transpose(2, 1, 0)
    return np.ascontiguousarray(volume, dtype=np.float32)


def ras_affine(direction: NDArray[Any], spacing: tuple[float, ...], origin: tuple[float, ...]) -> NDArray[np.float64]:
    """From ITK's and DICOM's frame (left, posterior, superior), ``direction`` with a column an axis, to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction) * np.asarray(spacing)
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine


def reason(error: BaseException) -> str:
    """The last words of ITK's message, without the places in its source."""
    text = str(error)
    for mark in ("ITK ERROR:", "sitk::ERROR:", "Description:"):
        text = text.rsplit(mark, 1)[-1]
    text = re.sub(r"\w+\(0x[0-9a-f]+\):\s*", "", text)
    return why(RuntimeError(text))


def _reader(path: Path, kind: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[kind])  # a file that is something else than its name says is not tried as that
    reader.SetFileName(str(path))
    return reader


def _header(
    reader: sitk.ImageFileReader, kind: str, files: tuple[Path, ...], size: tuple[int, ...], components: int
) -> Header:
    dtype = _TYPES.get(_scalar_type(reader.GetPixelID()))
    if components in (3, 4) and dtype == "uint8":
        raise ScanProblem("colour", "is a colour picture, with several numbers a voxel")
    if dtype is None:
        raise ScanProblem("unreadable", "holds numbers that are no intensities")
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) > 4 or (len(size) == 4 and components > 1):
        raise ScanProblem("not_3d", f"has {len(size)} dimensions {size} and {components} numbers a voxel")
    dimension = int(reader.GetDimension())
    direction = np.eye(3)
    given = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    direction[: len(given), : len(given)] = given
    x, y, z = (*size[:3], *(1,) * (3 - len(size[:3])))
    edges = (*reader.GetSpacing()[:3], *(1.0,) * (3 - dimension))
    origin = (*reader.GetOrigin()[:3], *(0.0,) * (3 - dimension))
    return grid_header(
        kind,
        (x, y, z),
        (float(edges[0]), float(edges[1]), float(edges[2])),
        ras_affine(direction, edges, origin),
        dtype,
        volumes=(size[3] if len(size) == 4 else 1) * components,
        files=tuple(dict.fromkeys(files)),
    )


def grid_header(
    kind: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    affine: NDArray[np.float64],
    dtype: str,
    volumes: int,
    files: tuple[Path, ...],
) -> Header:
    """A header by its stored grid.

    Raises:
        ScanProblem: the grid is impossible.
    """
    if min(shape) < 1:
        raise ScanProblem("unreadable", f"has a grid without voxels {shape}")
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise ScanProblem("spacing", f"has an impossible voxel size ({' x '.join(f'{e:g}' for e in spacing)} mm)")
    turn = to_ras(affine)
    return Header(
        format=kind,
        stored_shape=shape,
        stored_spacing=spacing,
        shape=in_ras_order(shape, turn),
        spacing=in_ras_order(spacing, turn),
        affine=affine,
        dtype=dtype,
        volumes=volumes,
        files=files,
    )


def _scalar_type(pixel: int) -> int:
    vectors = {
        sitk.sitkVectorUInt8: sitk.sitkUInt8,
        sitk.sitkVectorInt8: sitk.sitkInt8,
        sitk.sitkVectorUInt16: sitk.sitkUInt16,
        sitk.sitkVectorInt16: sitk.sitkInt16,
        sitk.sitkVectorUInt32: sitk.sitkUInt32,
        sitk.sitkVectorInt32: sitk.sitkInt32,
        sitk.sitkVectorFloat32: sitk.sitkFloat32,
        sitk.sitkVectorFloat64: sitk.sitkFloat64,
    }
    return int(vectors.get(pixel, pixel))


def floats(image: sitk.Image) -> NDArray[np.float32]:
    """A copy of the voxels; ITK frees its own with the image."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(sitk.GetArrayViewFromImage(image), dtype=np.float32, order="C")


def _pieces(reader: sitk.ImageFileReader, volumes: list[int]) -> Any:
    """(Z, Y, X) of each volume: a fourth axis is read piece by piece, several numbers a voxel are read at once."""
    reader.ReadImageInformation()
    size = list(reader.GetSize())
    if len(size) < 4:
        image = reader.Execute()
        for volume in volumes:
            yield floats(sitk.VectorIndexSelectionCast(image, volume))
        return
    for volume in volumes:
        reader.SetExtractIndex([0, 0, 0, volume, *[0] * (len(size) - 4)])
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
        yield floats(reader.Execute())


def _described(path: Path, kind: str) -> TextHeader:
    try:
        with path.open("rb") as file:
            block = file.read(_TEXT_HEADER)
    except OSError as error:
        raise ScanProblem("unreadable", f"cannot be read ({why(error)})") from error
    described = _nrrd(block, path) if kind == "nrrd" else _metaimage(block, path)
    for file_of_voxels in described.files:
        try:
            size_of_regular_file(file_of_voxels)
        except ScanProblem as problem:
            raise ScanProblem(problem.check, f"names a file of voxels that {problem.detail}") from problem
    return described


def _nrrd(block: bytes, path: Path) -> TextHeader:
    if not block.startswith(b"NRRD"):
        raise ScanProblem("unreadable", "does not begin as NRRD files do")
    ends = [end for mark in (b"\n\n", b"\r\n\r\n") if (end := block.find(mark)) >= 0]
    text = block[: min(ends)] if ends else block
    lines = text.decode("latin-1").splitlines()
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    data = fields.get("data file", fields.get("datafile", ""))
    raw = fields.get("encoding", "raw").lower() == "raw"
    if not data:
        return TextHeader((path,), min(ends) + 2 if ends else 0, not raw)
    if data.upper().startswith("LIST"):
        first = next(n for n, line in enumerate(lines) if line.lower().startswith(("data file", "datafile")))
        return TextHeader(_beside(path, lines[first + 1 :]), 0, not raw)
    return TextHeader(_beside(path, [data]), 0, not raw)


def _metaimage(block: bytes, path: Path) -> TextHeader:
    found = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*)\r?\n?", block)
    if found is None:
        raise ScanProblem("unreadable", "does not begin as MetaImage files do")
    text = block[: found.start()].decode("latin-1")
    fields = {key.strip().lower(): value.strip() for key, _, value in (x.partition("=") for x in text.splitlines())}
    compressed = fields.get("compresseddata", "").lower() in ("true", "1", "t")
    data = found.group(1).decode("utf-8", "replace").strip()
    if data.upper() == "LOCAL":
        return TextHeader((path,), found.end(), compressed)
    if data.upper().startswith("LIST"):
        return TextHeader(_beside(path, block[found.end() :].decode("utf-8", "replace").splitlines()), 0, compressed)
    return TextHeader(_beside(path, [data]), 0, compressed)


def _beside(path: Path, names: list[str]) -> tuple[Path, ...]:
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted or any("%" in name or "\0" in name for name in wanted):
        raise ScanProblem("unreadable", "names its files of voxels in a way that is not supported; convert it to NIfTI")
    return tuple(path.parent / name for name in wanted)
