import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.scans.cases import CaseRow, write_cases
from tests.patches.stored import row

ROWS = [row(f"c{n}", subject=f"s{n // 2}", shape=(n + 1, 20, 30), foreground=bytes([n]), bytes=n) for n in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cases(tmp_path / "data", ROWS)
    return tmp_path / "data"


def everything(index: CaseIndex) -> list[CaseRow]:
    return [
        row(
            index.name(n),
            subject=index.texts("subject")[n],
            shape=index.shape(n),
            foreground=index.foreground(n),
            bytes=index.stored_bytes(n),
        )
        for n in range(len(index))
    ]


def test_it_says_what_was_written(folder: Path) -> None:
    assert everything(CaseIndex(folder)) == ROWS
    assert CaseIndex(folder).data_range(3) == 4.0


@pytest.mark.parametrize("chosen", [["c1", "c4", "c9"], ["c4", "c1"], [], [f"c{n}" for n in range(10)]])
def test_a_selection_keeps_its_order_also_in_another_process(folder: Path, chosen: list[str]) -> None:
    index = CaseIndex(folder).select(chosen)
    assert index.texts("case") == chosen
    assert everything(pickle.loads(pickle.dumps(index))) == everything(index)
    assert everything(index) == [ROWS[int(name[1:])] for name in chosen]


@pytest.mark.parametrize("chosen", [["c1", "c4"], ["c4", "c1"]])
def test_a_table_that_changes_on_the_way_to_another_process_is_refused(folder: Path, chosen: list[str]) -> None:
    """The row of a scan that is learnt may then be that of one that is held out."""
    on_the_way = pickle.dumps(CaseIndex(folder).select(chosen))
    write_cases(folder, [row("a_new_one"), *ROWS])
    with pytest.raises(ResumableError, match="was changed while training started"):
        pickle.loads(on_the_way)
    write_cases(folder, [CaseRow(**{**vars(one), "bytes": 99}) for one in ROWS])
    assert pickle.loads(on_the_way).texts("case") == chosen


def test_a_case_that_the_table_lacks_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="lacks 1 of 2 cases, such as nobody; run `nnssl-mae prepare` again"):
        CaseIndex(folder).select(["c1", "nobody"])


def test_what_a_worker_gets_hardly_grows_with_the_number_of_cases(tmp_path: Path) -> None:
    sizes = []
    for count in (100, 20_000):
        write_cases(
            tmp_path / "data", [row(f"a_long_name_of_a_case_{n:06d}", foreground=b"x" * 50) for n in range(count)]
        )
        index = CaseIndex(tmp_path / "data")
        sizes.append(len(pickle.dumps(index.select(index.texts("case")[7:]))))
    assert sizes[1] - sizes[0] == pytest.approx((20_000 - 100) / 8, abs=8)


_TAKE = """
import sys
from pathlib import Path
from nnssl_mae.patches.index import CaseIndex

def own() -> int:  # KiB of memory that is not the file's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

before = own()
index = CaseIndex(Path(sys.argv[1]))
for position in range(0, len(index), 100):
    index.name(position), index.shape(position), index.foreground(position)
print(len(index), own() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_the_table_is_mapped_and_not_copied(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_cases(tmp_path / "data", [row(f"c{n:05d}", foreground=rng.bytes(5000)) for n in range(10_000)])
    done = subprocess.run(
        [sys.executable, "-c", _TAKE, str(tmp_path / "data")], capture_output=True, encoding="utf-8", check=True
    )
    cases, kibibytes = (int(word) for word in done.stdout.split())
    assert cases == 10_000
    assert kibibytes < 10 * 1024  # the file has 48 MiB
