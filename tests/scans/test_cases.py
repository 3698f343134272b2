from pathlib import Path

import numpy as np
import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.scans.cases import open_cases, read_cases, table_path, write_cases
from tests.patches.stored import row

ROWS = [row("b", subject="ß", foreground=b"\x00\xff", bytes=7, exclusion_bytes=5), row("a", shape=(4, 5, 6)), row("c")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data", ROWS)
    return tmp_path / "data"


def test_rows_come_back_sorted_by_case(folder: Path) -> None:
    table = read_cases(folder)
    assert list(table.index) == ["a", "b", "c"]
    assert tuple(table.loc["a", "shape"]) == (4, 5, 6)
    assert table.loc["b", "subject"] == "ß"
    assert table.loc["b", "bytes"] == 7
    assert list(table["exclusion_bytes"]) == [0, 5, 0]
    assert "foreground" not in table.columns
    assert list(read_cases(folder, ["foreground"])["foreground"]) == [b"", b"\x00\xff", b""]


def test_the_order_of_the_rows_does_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "other", ROWS[::-1])
    assert table_path(tmp_path / "other").read_bytes() == table_path(folder).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data_cases.arrow", "other_cases.arrow"]


def test_the_table_is_beside_the_data_folder_not_in_it(folder: Path) -> None:
    assert table_path(folder).parent == folder.parent


def test_a_missing_table_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing_cases\.arrow cannot be read .*run `nnssl-mae prepare` again"):
        open_cases(tmp_path / "nothing")


def test_damage_anywhere_never_ends_in_a_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_cases(folder, [row(f"case{n}", foreground=bytes([n] * 50)) for n in range(30)])
    path, rng = table_path(folder), np.random.default_rng(0)
    whole = path.read_bytes()
    refused = 0
    for trial in range(60):
        content = bytearray(whole)
        if trial % 3 == 0:
            del content[rng.integers(len(content)) :]
        else:
            start = rng.integers(len(content) - 20)
            content[start : start + 20] = rng.bytes(20)
        path.write_bytes(content)
        try:
            read_cases(folder)
        except UserError:
            refused += 1
    assert refused > 20  # the others changed a value or padding


def test_a_dataset_of_an_earlier_version_is_named_as_such(tmp_path: Path) -> None:
    read_cases_of = tmp_path / "data"
    (tmp_path / "data_cases.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"prepared by an earlier version .*again under another number"):
        read_cases(read_cases_of)
