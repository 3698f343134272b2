"""``python -m tests.scans.preparation SCANS I/N``: prepares a part in a process of its own; ``0/0`` prepares all."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.scans.prepare import prepare
from nnssl_mae.scans.request import Request
from tests.conftest import TINY_RECIPE
from tests.scans.catalogues import catalogue_of


def command(scans: Path, shard: str = "0/0", workers: int = 1) -> list[str]:
    """For ``subprocess``; run it where the tests can be imported."""
    return [sys.executable, "-m", "tests.scans.preparation", str(scans), shard, str(workers)]


def main(scans: str, shard: str, workers: str) -> None:
    recipe = parse_recipe(TINY_RECIPE, "for tests")
    part, parts = (int(number) for number in shard.split("/"))
    request = Request(900, "Brains", recipe, recipe, int(workers), (part, parts) if parts else None)
    try:
        result = prepare(catalogue_of(Path(scans)), request, Console(width=300))
    except UserError as error:
        print(error)
        sys.exit(2)
    print(result.folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
