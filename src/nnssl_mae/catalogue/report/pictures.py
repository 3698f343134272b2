"""The thumbnails of a catalogue, read in small portions: 40,000 of them are larger than they need to be at once.

``thumbnails.parquet`` has a row a scan: ``case``, and ``png`` with three planes through the middle side by side.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from nnssl_mae.catalogue.table import THUMBNAILS
from nnssl_mae.errors import UserError
from nnssl_mae.progress import track

PLANES, EDGE = 3, 24
"""A picture is compared as three planes of 24 x 24 points: small shifts and fine structure do not count."""
_LARGEST = 1 << 20  # pixels, and bytes; ours have 96 rows and some 20 kB, so that anything above is not ours
_PORTION = 64


def read_pictures(folder: Path, cases: Collection[str]) -> dict[str, bytes]:
    """The PNGs of some scans; those without one, or with one that cannot be shown, are left out.

    Raises:
        UserError: the file of thumbnails is damaged.
    """
    wanted = set(cases)
    return {case: png for case, png in _stored(folder) if case in wanted and shrunk(png) is not None}


def read_shrunk(
    folder: Path, cases: Sequence[str], console: Console | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(scans, 3, 24, 24) grey levels of the pictures of ``cases``, and (scans,) whether there is one.

    Raises:
        UserError: the file of thumbnails is damaged.
    """
    place = {case: index for index, case in enumerate(cases)}
    pictures = np.zeros((len(cases), PLANES, EDGE, EDGE), dtype=np.uint8)
    known = np.zeros(len(cases), dtype=bool)
    wanted: Iterator[tuple[str, bytes]] = ((case, png) for case, png in _stored(folder) if case in place)
    if console is not None:
        wanted = track(wanted, "Comparing pictures", len(cases), console)
    with ThreadPoolExecutor() as pool:  # most of the time is spent unpacking, in parallel
        while portion := list(itertools.islice(wanted, _PORTION)):
            smaller = pool.map(shrunk, [png for _, png in portion])
            for (case, _), small in zip(portion, smaller, strict=True):
                if small is not None:
                    pictures[place[case]], known[place[case]] = small, True
    return pictures, known


def shrunk(png: bytes) -> NDArray[np.uint8] | None:
    """(3, 24, 24) grey levels of a picture of three planes side by side; None if it is damaged or too large."""
    if len(png) > _LARGEST:
        return None
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.width * picture.height > _LARGEST:  # known before anything is unpacked
                return None
            small = picture.convert("L").resize((PLANES * EDGE, EDGE), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for damaged files
        return None
    return np.asarray(small, dtype=np.uint8).reshape(EDGE, PLANES, EDGE).transpose(1, 0, 2)


def as_png(planes: NDArray[np.uint8], height: int = 96) -> bytes:
    """A PNG, ``height`` pixels high, of three planes (3, 24, 24) side by side."""
    row = np.ascontiguousarray(planes.transpose(1, 0, 2).reshape(EDGE, PLANES * EDGE))
    stream = io.BytesIO()
    Image.fromarray(row).resize((PLANES * height, height), Image.Resampling.BICUBIC).save(stream, format="PNG")
    return stream.getvalue()


def _stored(folder: Path) -> Iterator[tuple[str, bytes]]:
    path = folder / THUMBNAILS
    if not path.is_file():
        return
    try:
        # Not buffered ahead: a row group may hold every picture there is.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            for portion in file.iter_batches(_PORTION, columns=["case", "png"]):
                yield from zip(portion["case"].to_pylist(), _as_bytes(portion["png"]), strict=True)
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete it, and make it again with `nnssl-mae scan`"
        ) from error


def _as_bytes(column: pyarrow.Array) -> Iterator[bytes]:
    return (value if isinstance(value, bytes) else b"" for value in column.to_pylist())
