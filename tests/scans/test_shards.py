"""Several processes at work on one dataset, on one machine or on many: as one run, file by file."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import nibabel
import pytest
from rich.console import Console

from nnssl_mae.catalogue.table import Catalogue
from nnssl_mae.errors import UserError
from nnssl_mae.scans import merge as merge_module
from nnssl_mae.scans import one_case
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans.one_case import Target, Task, prepare_case
from nnssl_mae.scans.prepare import Prepared, prepare
from nnssl_mae.scans.records import Failed, Finished
from nnssl_mae.scans.request import Request
from tests.scans.catalogues import catalogue_of, files_of, one_by_one
from tests.scans.preparation import command
from tests.tiny_scans import tiny_scan

QUIET = Console(quiet=True)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(4):
        nibabel.save(tiny_scan(index)[0], folder / f"s{index}.nii.gz")
    return folder


@pytest.fixture
def request_(tiny_recipe) -> Request:
    return Request(900, "Brains", tiny_recipe, tiny_recipe)


@pytest.fixture
def one_run(nnunet_folders: Path, scans: Path, request_: Request, monkeypatch) -> dict[str, bytes]:
    """The files that one uninterrupted run makes; the folder is free again."""
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "in_processes", one_by_one)
        folder = prepare(catalogue_of(scans), request_, QUIET).folder
    assert folder is not None
    files = files_of(folder)
    folder.rename(nnunet_folders / "elsewhere")
    return files


@pytest.fixture
def preprocessed(nnunet_folders: Path) -> Path:
    return nnunet_folders / "preprocessed"


def test_every_case_belongs_to_one_shard(request_) -> None:
    cases = [f"case{index}" for index in range(1000)]
    shards = [dataclasses.replace(request_, shard=(part, 7)) for part in range(1, 8)]
    owners = [[shard.is_mine(case) for shard in shards] for case in cases]
    assert all(sum(owner) == 1 for owner in owners)
    assert all(100 < sum(owner[part] for owner in owners) < 190 for part in range(7))
    with pytest.raises(UserError, match="--shard 0/7 is not possible; shards count from 1/n to n/n"):
        dataclasses.replace(request_, shard=(0, 7))
    with pytest.raises(UserError, match="--restart cannot be combined with --shard"):
        dataclasses.replace(request_, shard=(1, 7), restart=True)


def killed(*args: object) -> None:
    raise KeyboardInterrupt


def begin(catalogue: Catalogue, request: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans, and is killed then: measuring in processes would take seconds again."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_module, "in_processes", one_by_one)
        patch.setattr(prepare_module, "_preprocess", killed)
        prepare(catalogue, request, QUIET)


def test_two_shards_in_two_processes_equal_one_run(scans, request_, one_run, preprocessed, monkeypatch) -> None:
    begin(catalogue_of(scans), request_, monkeypatch)
    processes = [
        subprocess.Popen(
            command(scans, f"{part}/2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
        for part in (1, 2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    final = preprocessed / "Dataset900_Brains"
    assert list(preprocessed.iterdir()) == [final]
    assert files_of(final) == one_run
    assert any(str(final) in text for text in said)


@pytest.mark.parametrize("last", ["shard", "all"])
def test_the_last_one_puts_together_what_others_left(scans, request_, one_run, preprocessed, monkeypatch, last) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    catalogue = catalogue_of(scans)
    results = []
    for part in (1, 2, 3):
        results.append(prepare(catalogue, dataclasses.replace(request_, shard=(part, 3)), QUIET))
        if last == "all" and part == 2:  # the third one died
            break
    if last == "all":
        assert not (preprocessed / "Dataset900_Brains").exists()
        results.append(prepare(catalogue, request_, QUIET))
    assert [result.folder for result in results[:-1]] == [None] * (len(results) - 1)
    assert results[0].waiting > 0
    assert results[-1].folder == preprocessed / "Dataset900_Brains"
    assert files_of(results[-1].folder) == one_run


def both_at_once(monkeypatch: pytest.MonkeyPatch, function: str, runs: Sequence[object]) -> list[object]:
    """Runs several preparations in threads that meet each time they come to ``function``."""
    real, barrier = getattr(merge_module, function), threading.Barrier(len(runs))
    met = threading.local()

    def meeting(*args: object) -> object:
        if not getattr(met, "once", False):
            met.once = True
            barrier.wait(60)
        return real(*args)

    monkeypatch.setattr(merge_module, function, meeting)
    ends: list[object] = [None] * len(runs)

    def run(index: int) -> None:
        try:
            ends[index] = runs[index]()  # type: ignore[operator]
        except Exception as error:  # the test looks at it
            ends[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return ends


@pytest.mark.parametrize("function", ["case_rows", "_remove_unwanted", "_write", "_sweep"])
@pytest.mark.parametrize("is_update", [False, True])
def test_two_that_put_together_at_the_same_moment_both_end_well(
    scans, request_, one_run, preprocessed, monkeypatch, function, is_update
) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    monkeypatch.setattr(prepare_module, "_SECONDS_BETWEEN_ATTEMPTS", 0.05)
    final = preprocessed / "Dataset900_Brains"
    catalogue = catalogue_of(scans)
    if is_update:
        fewer = dataclasses.replace(catalogue, rows=catalogue.rows[:3])
        prepare(fewer, request_, QUIET)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # nnU-Net's planner is not for threads
        patch.setattr(prepare_module, "merge", killed)
        prepare(catalogue, request_, QUIET)
    run = lambda: prepare(catalogue, request_, QUIET)  # noqa: E731
    ends = both_at_once(monkeypatch, function, [run, run])
    for end in ends:
        assert isinstance(end, Prepared), end
        assert (end.folder, end.prepared) == (final, 4)
    assert list(preprocessed.iterdir()) == [final]
    files = files_of(final)
    if is_update:  # plans are those of the first three
        for name in ("nnsslMAEPlans.json", "dataset_fingerprint.json"):
            assert files.pop(name) != one_run.pop(name)
    assert files == one_run


def test_what_is_still_at_work_when_another_puts_all_together_ends_well(
    scans, request_, one_run, preprocessed, monkeypatch
) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    catalogue, inner = catalogue_of(scans), []
    real = one_case.write_volume

    def overtaken(path: Path, *args: object) -> None:
        """While the first volume is written, another run does everything."""
        monkeypatch.setattr(one_case, "write_volume", real)
        inner.append(prepare(catalogue, request_, QUIET))
        real(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(one_case, "write_volume", overtaken)
    outer = prepare(catalogue, request_, QUIET)
    assert inner == [outer]
    assert list(preprocessed.iterdir()) == [preprocessed / "Dataset900_Brains"]
    assert files_of(outer.folder) == one_run


def dies_of_s1(task: Task, plans: dict, beyond_stock: object, target: Target) -> Finished | Failed:
    if task.scan.case == "s1":
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_case(task, plans, beyond_stock, target)  # type: ignore[arg-type]


def test_a_scan_that_kills_its_process_is_named_and_skipped(scans, request_, preprocessed, monkeypatch) -> None:
    request = dataclasses.replace(request_, workers=1)
    catalogue = catalogue_of(scans)
    catalogue = dataclasses.replace(catalogue, rows=catalogue.rows[:2])
    begin(catalogue, request, monkeypatch)
    monkeypatch.setattr(prepare_module, "prepare_case", dies_of_s1)
    result = prepare(catalogue, request, QUIET)
    assert (result.prepared, result.failed) == (1, 1)
    text = (preprocessed / "Dataset900_Brains" / "left_out.csv").read_text()
    assert 's1,process,"could not be prepared: ended its process each of 2 times (SIGKILL' in text


def test_shards_of_different_scans_or_options_never_mix(scans, request_, preprocessed, monkeypatch) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    catalogue = catalogue_of(scans)
    fewer = dataclasses.replace(catalogue, rows=catalogue.rows[:3])
    one, two = (dataclasses.replace(request_, shard=(part, 2)) for part in (1, 2))
    assert prepare(catalogue, one, QUIET).folder is None
    for other, request in ((fewer, two), (catalogue, dataclasses.replace(two, exclude_datasets=(4,)))):
        with pytest.raises(UserError, match="was begun with another catalogue, or with other values of --exclude"):
            prepare(other, request, QUIET)
    assert not (preprocessed / "Dataset900_Brains").exists()
    assert prepare(fewer, request_, QUIET).prepared == 3  # without a shard, it takes over


def test_a_shard_whose_scans_were_replaced_meanwhile_puts_nothing_together(
    scans, request_, preprocessed, monkeypatch
) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    catalogue = catalogue_of(scans)
    fewer = dataclasses.replace(catalogue, rows=catalogue.rows[:3])
    work = preprocessed / ".Dataset900_Brains.preparing"
    real = prepare_module._preprocess

    def overtaken(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        (work / "records" / "selection.json").write_bytes(request_.selection_of(fewer))

    monkeypatch.setattr(prepare_module, "_preprocess", overtaken)
    with pytest.raises(UserError, match="Another command has begun to prepare Dataset900_Brains with other scans"):
        prepare(catalogue, request_, QUIET)
    assert not (preprocessed / "Dataset900_Brains").exists()
    assert len(list(work.rglob("*.b2nd"))) == 4
