"""docs/architecture.md lists every room of the package, and rooms use each other in its order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnssl_mae

_PACKAGE = Path(nnssl_mae.__file__).parent
_PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def rows() -> list[list[str]]:
    """The rooms of each row of the page's table, from the top."""
    first_cells = re.findall(r"^\| (`.*?`) \|", _PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.findall(r"`([^`]+)`", cell) for cell in first_cells]


def room_of(module: str) -> str:
    """``recipes/`` of ``nnssl_mae.recipes.base``, ``plans.py`` of ``nnssl_mae.plans``; empty for the package itself."""
    parts = module.split(".")[1:]
    if not parts:
        return ""
    return f"{parts[0]}/" if (_PACKAGE / parts[0]).is_dir() else f"{parts[0]}.py"


def uses() -> Iterator[tuple[Path, str]]:
    """(file, room that it imports from), inside functions too, of all files but for what a room takes from itself."""
    for file in sorted(_PACKAGE.rglob("*.py")):
        own = file.relative_to(_PACKAGE).parts
        room = f"{own[0]}/" if len(own) > 1 else own[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                modules = [node.module]
            for module in modules:
                if module.split(".")[0] == "nnssl_mae" and room_of(module) not in ("", room):
                    yield file, room_of(module)


def test_every_room_is_on_the_page_once() -> None:
    listed = [room for row in rows() for room in row]
    found = {f"{one.name}/" for one in _PACKAGE.iterdir() if one.is_dir() and list(one.glob("*.py"))}
    found |= {one.name for one in _PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(listed) == sorted(found)


def test_a_room_uses_only_rooms_above_it() -> None:
    order = {room: number for number, row in enumerate(rows()) for room in row}
    upwards = []
    for file, used in uses():
        own = file.relative_to(_PACKAGE).parts
        room = f"{own[0]}/" if len(own) > 1 else own[0]
        if room != "__main__.py" and order[used] > order[room]:
            upwards.append(f"{file.relative_to(_PACKAGE)} uses {used}")
    assert not upwards, "\n".join(upwards)


def test_the_picture_names_rooms_that_exist() -> None:
    source = (_PAGE.parents[1] / "scripts" / "architecture_picture.py").read_text(encoding="utf-8")
    words = source.split('"""', 2)[2].replace("\\n", " ")
    named = set(re.findall(r"\b[a-z_]+(?:/|\.py)(?=[ \"])", words))
    listed = {room for row in rows() for room in row}
    assert named <= listed
    assert {room for room in listed if room.endswith("/")} <= named


def test_the_reader_of_imports_sees_them() -> None:
    assert ("training/mae_trainer.py", "patches/") in {(f.relative_to(_PACKAGE).as_posix(), used) for f, used in uses()}


@pytest.mark.parametrize(("module", "room"), [("nnssl_mae.recipes.base", "recipes/"), ("nnssl_mae.plans", "plans.py")])
def test_rooms_of_modules(module: str, room: str) -> None:
    assert room_of(module) == room
