"""The journal survives what happens to machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl_mae.journal import Journal, read_journal


def test_records_come_back_in_order_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for run in range(2):
        with Journal(path) as journal:
            for number in range(3):
                journal.append({"run": run, "number": number, "text": "ä\n"})
    records = list(read_journal(path))
    assert [(r["run"], r["number"]) for r in records] == [(r, n) for r in range(2) for n in range(3)]
    assert records[0]["text"] == "ä\n"
    assert list(read_journal(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("kept", range(1, 30))
def test_a_line_cut_off_anywhere_spoils_no_other(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"case": "first"})
    whole = path.read_bytes()
    torn = json.dumps({"case": "a long torn line ......"}).encode()[:kept]
    path.write_bytes(whole + torn)
    with Journal(path) as journal:
        journal.append({"case": "last"})
    cases = [record["case"] for record in read_journal(path)]
    assert cases[0] == "first" and cases[-1] == "last" and len(cases) <= 3


def test_a_full_disk_raises_and_the_next_record_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.append({"n": 1})
    real = journal._file

    class Full:
        def write(self, content: bytes) -> int:
            if real.tell() > 12:
                raise OSError(28, "No space left on device")
            return real.write(content[:6])

    monkeypatch.setattr(journal, "_file", Full())
    with pytest.raises(OSError, match="No space"):
        journal.append({"n": 2})
    monkeypatch.setattr(journal, "_file", real)
    with journal:
        journal.append({"n": 3})
    assert [record["n"] for record in read_journal(path)] == [1, 3]
