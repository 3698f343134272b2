"""Writes a comparison into a folder: CSV files, a LaTeX table, pictures and the page; each appears when it is whole."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from nnssl_mae import __version__
from nnssl_mae.comparison.figures import Picture, pictures
from nnssl_mae.comparison.measured import Measured, digests
from nnssl_mae.comparison.names import REST
from nnssl_mae.comparison.page import compare_page
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.comparison.tables import csv_files, latex, markdown
from nnssl_mae.errors import UserError
from nnssl_mae.files import remove_leftovers, whole_file, write_json

MARKER = "comparison.json"
"""Tells the folder of a comparison from others, and what was asked for."""
PAGE = "compare.html"
LATEX, MARKDOWN = "table.tex", "tables.md"
FIGURES = "figures"
_DPI = 150


def check_folder(out: Path) -> None:
    """Makes sure that a comparison may be written there; writes nothing.

    Raises:
        UserError: it is a file, or a folder with content that is no comparison.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder with -o")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(
            f"{out} has content that is no comparison (it holds no {MARKER}), and nothing there is replaced; give a "
            "new folder with -o"
        )


def open_folder(out: Path, asked: Mapping[str, Any]) -> None:
    """Makes the folder and notes what was asked for, so that a killed comparison can be gone on with.

    Raises:
        UserError: the folder cannot be made or written to, or :func:`check_folder` refuses it.
    """
    check_folder(out)
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        write_json(out / MARKER, {"schema": 1, "nnssl_mae": __version__, **asked})
        for folder in (out, out / FIGURES):
            remove_leftovers(folder)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error}; give another folder with -o") from error


def write_comparison(out: Path, comparison: Comparison, measured: Measured) -> Path:
    """Writes all files of a comparison; pictures of an earlier one that this one does not have go.

    Args:
        out: opened by :func:`open_folder`.
        comparison: the summary.
        measured: what it was made of.

    Returns:
        the path of the page, which is written last.

    Raises:
        UserError: a file cannot be written.
    """
    cases, curves = measured.cases, measured.curves
    try:
        for name, table in csv_files(comparison, cases, curves).items():
            _write(out / name, table.to_csv(index=False).encode())
        write_json(out / REST, {**measured.rest(), "sha256": digests(out)})
        _write(out / LATEX, latex(comparison).encode())
        _write(out / MARKDOWN, markdown(comparison).encode())
        with matplotlib.rc_context({"text.parse_math": False}):  # a dollar sign in an arm's name begins no formula
            drawn = pictures(comparison, cases, curves)
        drawings = [(picture, _as_file(picture.figure, "svg")) for picture in drawn]
        _write_pictures(out / FIGURES, drawings)
        _write(out / PAGE, compare_page(comparison, drawings, measured.about).encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error}; make room, or give another folder with -o") from error
    return out / PAGE


def _write_pictures(folder: Path, drawings: list[tuple[Picture, bytes]]) -> None:
    files = {f"{picture.name}.svg": svg for picture, svg in drawings}
    files |= {f"{picture.name}.png": _as_file(picture.figure, "png") for picture, _ in drawings}
    for name, content in files.items():
        _write(folder / name, content)
    for path in folder.iterdir():
        if path.suffix in (".png", ".svg") and path.name not in files:
            path.unlink()


def _as_file(figure: Figure, kind: str) -> bytes:
    """The picture as PNG or SVG, the same bytes for the same picture."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nnssl_mae", "svg.fonttype": "path", "text.parse_math": False}):
        figure.savefig(stream, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
