"""Killed, changed, enlarged, full: what is done again, what is not, and that nothing stale is left."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from rich.console import Console

from nnssl_mae.catalogue import scan as scan_module
from nnssl_mae.catalogue.find import stem
from nnssl_mae.catalogue.table import Catalogue, read_catalogue
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.recipes.reading import override
from nnssl_mae.scans import merge as merge_module
from nnssl_mae.scans import one_case
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans.left_out import LeftOut
from nnssl_mae.scans.prepare import Prepared, prepare, prepare_folders
from nnssl_mae.scans.records import stored_rows
from nnssl_mae.scans.request import Request, excluded_from
from tests.conftest import TINY_LIMITS
from tests.scans.catalogues import catalogue_of, files_of, one_by_one
from tests.scans.preparation import command
from tests.tiny_scans import tiny_scan

Killed = KeyboardInterrupt  # not an Exception: like a kill, it passes everything that handles errors


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(3):
        nibabel.save(tiny_scan(index)[0], folder / f"s{index}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "in_processes", one_by_one)
    monkeypatch.setattr(scan_module, "in_processes", one_by_one)


class Lab:
    """One user's folders: prepares again and again, and tells what was said and which volumes were written."""

    def __init__(self, scans: Path, preprocessed: Path, request: Request) -> None:
        self.scans, self.preprocessed, self.request = scans, preprocessed, request
        self.final = preprocessed / "Dataset900_Brains"
        self.work = preprocessed / ".Dataset900_Brains.preparing"
        self.said = ""

    def prepare(self, catalogue: Catalogue | None = None, **changes: Any) -> Prepared:
        console = Console(file=io.StringIO(), width=400)
        try:
            request = dataclasses.replace(self.request, **changes)
            return prepare(catalogue_of(self.scans) if catalogue is None else catalogue, request, console)
        finally:
            self.said = console.file.getvalue()  # type: ignore[attr-defined]

    def written(self) -> dict[str, int]:
        """When each volume was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.preprocessed.rglob("*.b2nd")}

    def rewritten(self, before: dict[str, int]) -> set[str]:
        return {name for name, time in self.written().items() if before.get(name) != time}

    def cases(self) -> list[str]:
        (table,) = self.final.glob("*_cases.arrow")
        return [row.case for row in stored_rows(table.with_name(table.name.removesuffix("_cases.arrow")))]

    def is_tidy(self) -> bool:
        return list(self.preprocessed.iterdir()) == [self.final] and not list(self.final.rglob("*.tmp"))


@pytest.fixture
def lab(scans: Path, nnunet_folders: Path, tiny_recipe) -> Lab:
    request = Request(900, "Brains", tiny_recipe, tiny_recipe)
    return Lab(scans, nnunet_folders / "preprocessed", request)


def kill_when(monkeypatch: pytest.MonkeyPatch, module: object, name: str, call: int) -> None:
    """The process ends at the ``call``-th call of a function, before that does anything."""
    function, calls = getattr(module, name), iter(range(1, 1000))

    def dying(*args: object, **options: object) -> object:
        if next(calls) == call:
            raise Killed
        return function(*args, **options)

    monkeypatch.setattr(module, name, dying)


@pytest.fixture
def uninterrupted(lab: Lab) -> dict[str, bytes]:
    """The files of a dataset that nothing happened to; the folder is free again."""
    lab.prepare()
    files = files_of(lab.final)
    shutil.rmtree(lab.final)
    return files


@pytest.mark.parametrize(
    ("module", "name", "call", "done"),
    [
        (prepare_module, "plan_unlabelled", 1, 0),
        (one_case, "write_volume", 2, 1),
        (merge_module, "write_cases", 1, 3),
        (merge_module, "_sweep", 1, 3),
    ],
)
def test_a_killed_run_is_continued(lab, uninterrupted, monkeypatch, module, name, call, done) -> None:
    with monkeypatch.context() as patch:
        kill_when(patch, module, name, call)
        with pytest.raises(Killed):
            lab.prepare()
    assert not lab.final.exists()
    before = lab.written()
    assert len(before) == done
    if done:
        # What a process that was killed while it wrote leaves behind.
        (lab.work / ".dataset.json.host.4711.tmp").write_bytes(b"half")
        (lab.work / "unfinished").mkdir(exist_ok=True)
        (lab.work / "unfinished" / "host.4711.b2nd").write_bytes(b"half a volume")
    lab.prepare()
    assert before.items() <= lab.written().items()
    assert files_of(lab.final) == uninterrupted
    assert lab.is_tidy()


def test_the_same_command_on_a_finished_dataset_changes_nothing(lab) -> None:
    lab.prepare()
    before, times = files_of(lab.final), lab.written()
    result = lab.prepare()
    assert "Nothing has changed: Dataset900_Brains holds all 3 scans already." in lab.said
    assert (result.folder, result.prepared, result.left_out) == (lab.final, 3, 0)
    assert files_of(lab.final) == before
    assert lab.written() == times
    assert lab.is_tidy()


def test_changed_added_and_removed_scans_are_worked_on_alone(lab, scans) -> None:
    lab.prepare()
    plans, before = (lab.final / "nnsslMAEPlans.json").read_bytes(), lab.written()
    (lab.final / "splits_final.json").write_text("[]")
    nibabel.save(tiny_scan(7)[0], scans / "s1.nii.gz")
    nibabel.save(tiny_scan(8)[0], scans / "s3.nii.gz")
    (scans / "s0.nii.gz").unlink()
    lab.prepare()
    assert "holds 3 scans (1 new, 1 made anew, 1 removed)" in lab.said
    assert "splits_final.json of Dataset900_Brains still lists the old cases" in lab.said
    assert lab.cases() == ["s1", "s2", "s3"]
    assert set(lab.written()) == {"s1.b2nd", "s2.b2nd", "s3.b2nd"}
    assert lab.rewritten(before) == {"s1.b2nd", "s3.b2nd"}
    assert (lab.final / "nnsslMAEPlans.json").read_bytes() == plans
    assert json.loads((lab.final / "dataset.json").read_text())["numTraining"] == 3
    assert lab.is_tidy()


def test_an_update_that_was_killed_leaves_the_dataset_whole_and_is_continued(lab, scans, monkeypatch) -> None:
    lab.prepare()
    before = files_of(lab.final)
    for index in (1, 2):
        nibabel.save(tiny_scan(index + 10)[0], scans / f"s{index}.nii.gz")
    with monkeypatch.context() as patch:
        kill_when(patch, one_case, "write_volume", 2)
        with pytest.raises(Killed):
            lab.prepare()
    assert files_of(lab.final) == before
    with monkeypatch.context() as patch:
        kill_when(patch, merge_module, "_move", 2)  # in the middle of putting all together
        with pytest.raises(Killed):
            lab.prepare()
    lab.prepare()
    updated = files_of(lab.final)
    assert lab.is_tidy()
    plans = (lab.final / "nnsslMAEPlans.json").read_bytes()
    shutil.rmtree(lab.final)
    lab.prepare()
    anew = files_of(lab.final)
    for made_once in ("nnsslMAEPlans.json", "dataset_fingerprint.json"):
        del updated[made_once], anew[made_once]
    assert updated == anew
    assert plans == before["nnsslMAEPlans.json"]


def test_masks_come_and_go_with_their_scans(lab, scans) -> None:
    image = nibabel.load(scans / "s0.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[:20] = 1
    path = scans / "s0_exclude.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), path)
    lab.prepare()
    assert set(lab.written()) == {"s0.b2nd", "s0_exclude.b2nd", "s1.b2nd", "s2.b2nd"}
    before = lab.written()
    path.unlink()
    lab.prepare()
    assert lab.rewritten(before) == {"s0.b2nd"}
    assert set(lab.written()) == {"s0.b2nd", "s1.b2nd", "s2.b2nd"}


def test_new_names_of_subjects_change_the_table_and_no_volume(lab) -> None:
    lab.prepare()
    before = lab.written()

    catalogue = catalogue_of(lab.scans)
    renamed = dataclasses.replace(catalogue, rows=catalogue.rows.assign(subject="one"))
    lab.prepare(catalogue=renamed)
    assert "(0 new, 0 made anew, 0 removed)" in lab.said
    assert lab.written() == before
    (table,) = lab.final.glob("*_cases.arrow")
    rows = stored_rows(table.with_name(table.name.removesuffix("_cases.arrow")))
    assert {row.subject for row in rows} == {"one"}


def test_a_changed_recipe_is_refused_with_the_keys_that_changed(lab, monkeypatch) -> None:
    coarse = override(lab.request.recipe, {"data.spacing": (5.0, 5.0, 5.0), "masking.ratio": 0.6})
    other = override(lab.request.recipe, {"masking.ratio": 0.6, "summary": "Other words"})
    with monkeypatch.context() as patch:
        kill_when(patch, one_case, "write_volume", 2)
        with pytest.raises(Killed):
            lab.prepare()
    with pytest.raises(UserError) as refused:
        lab.prepare(recipe=coarse)
    text = str(refused.value)
    assert "Dataset900_Brains was begun with another recipe" in text
    assert "data.spacing: [4, 4, 4] -> [5, 5, 5]" in text
    assert "masking.ratio: 0.75 -> 0.6" in text
    assert "summary" not in text
    assert "-d" in text
    assert "--restart" in text
    before = lab.written()
    lab.prepare()
    assert before.items() <= lab.written().items()

    with pytest.raises(UserError, match=r"was prepared with another recipe.*\n.*\n.*nnssl-mae pretrain --recipe"):
        lab.prepare(recipe=other)
    with pytest.raises(UserError, match=r"\nChoose another number with -d, or remove .*Dataset900_Brains yourself"):
        lab.prepare(recipe=coarse)
    with pytest.raises(UserError, match="is finished, so there is nothing to restart"):
        lab.prepare(restart=True)
    assert lab.is_tidy()


def test_restart_throws_away_what_was_done(lab, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        kill_when(patch, one_case, "write_volume", 3)
        with pytest.raises(Killed):
            lab.prepare()
    before = lab.written()
    coarse = override(lab.request.recipe, {"data.spacing": (5.0, 5.0, 5.0)})
    lab.prepare(recipe=coarse, restart=True)
    assert lab.rewritten(before) == {"s0.b2nd", "s1.b2nd", "s2.b2nd"}
    assert lab.is_tidy()


def test_a_raised_version_of_the_step_makes_all_volumes_anew(lab, monkeypatch) -> None:
    lab.prepare()
    before = lab.written()
    monkeypatch.setattr("nnssl_mae.scans.request.STEP_VERSION", 999)
    lab.prepare()
    assert "3 made anew" in lab.said
    assert len(lab.rewritten(before)) == 3


def test_a_volume_that_was_cut_off_is_made_anew(lab) -> None:
    lab.prepare()
    files = files_of(lab.final)
    (volume,) = lab.final.rglob("s1.b2nd")
    volume.write_bytes(volume.read_bytes()[:-10])
    lab.prepare()
    assert files_of(lab.final) == files


def test_scans_that_fail_are_listed_and_tried_again(lab, scans, monkeypatch) -> None:
    nibabel.save(tiny_scan(3)[0], scans / "huge.nii.gz")
    function = one_case.preprocess

    def enlarged(scan, *args):
        done = function(scan, *args)
        return dataclasses.replace(done, volume=done.volume * 1e6) if scan.case == "huge" else done

    monkeypatch.setattr(one_case, "preprocess", enlarged)
    catalogue = catalogue_of(scans)
    whole = (scans / "s2.nii.gz").read_bytes()
    (scans / "s2.nii.gz").write_bytes(whole[:-2000])  # after the catalogue was made
    result = lab.prepare(catalogue)
    assert (result.prepared, result.left_out) == (2, 2)
    assert lab.cases() == ["s0", "s1"]
    listed = (lab.final / "left_out.csv").read_text().splitlines()
    assert listed[0] == "path,case,check,detail"
    assert listed[1].startswith(f"{scans / 'huge.nii.gz'},huge,range,")
    assert "which 16 bit cannot hold" in listed[1]
    assert listed[2].startswith(f"{scans / 's2.nii.gz'},s2,")
    assert len(listed) == 3
    (scans / "s2.nii.gz").write_bytes(whole)
    before = lab.written()
    lab.prepare()
    assert lab.rewritten(before) == {"s2.b2nd"}
    assert lab.cases() == ["s0", "s1", "s2"]


def test_an_error_that_nobody_expected_costs_its_scan_only_and_says_where(lab, monkeypatch) -> None:
    function = one_case.preprocess

    def fail(scan, *args):
        if scan.case == "s1":
            raise RuntimeError("odd")
        return function(scan, *args)

    monkeypatch.setattr(one_case, "preprocess", fail)
    result = lab.prepare()
    assert (result.prepared, result.failed) == (2, 1)
    text = (lab.final / "left_out.csv").read_text()
    assert 's1,error,"could not be prepared: RuntimeError: odd (test_resume.py, line' in text


def test_if_nothing_is_left_nothing_is_left_behind(lab, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(one_case, "preprocess", fail)
    with pytest.raises(UserError, match=r"None of the 3 scans can be used:\n.*s0.nii.gz could not be prepared"):
        lab.prepare()
    assert not list(lab.preprocessed.iterdir())


def test_a_full_disk_keeps_what_is_done(lab, uninterrupted, monkeypatch) -> None:
    function, calls = one_case.write_volume, iter(range(10))

    def full(*args: object) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        function(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(one_case, "write_volume", full)
        with pytest.raises(ResumableError, match=r"No space is left in .*run the same command again"):
            lab.prepare()
    before = lab.written()
    assert len(before) == 2
    lab.prepare()
    assert before.items() <= lab.written().items()
    assert files_of(lab.final) == uninterrupted


def test_a_disk_that_is_full_for_a_process_and_its_workers(lab, scans, uninterrupted, monkeypatch) -> None:
    """A real limit: no file can be larger than 60,000 bytes, which some volumes are."""
    with monkeypatch.context() as patch, pytest.raises(Killed):  # after planning, which would take seconds again
        kill_when(patch, prepare_module, "_preprocess", 1)
        lab.prepare()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # noqa: E731
    done = subprocess.run(command(scans), capture_output=True, encoding="utf-8", preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "No space is left in" in done.stdout
    assert not lab.final.exists()
    lab.prepare()
    assert files_of(lab.final) == uninterrupted
    assert lab.is_tidy()


def test_folders_of_scans_leave_their_catalogue_in_the_dataset_and_are_not_read_twice(lab, scans) -> None:
    def prepare_again() -> str:
        console = Console(file=io.StringIO(), width=400)
        prepare_folders([scans], lab.request, console, TINY_LIMITS)
        return console.file.getvalue()  # type: ignore[attr-defined]

    (scans / "text.nii.gz").write_text("not an image")
    prepare_again()
    first = read_catalogue(lab.final / "catalogue")
    assert len(first.rows) == 4
    assert lab.cases() == ["s0", "s1", "s2"]
    before, others = lab.written(), files_of(lab.final)
    said = prepare_again()
    assert "Nothing has changed" in said
    assert "Voxels:" not in said
    assert files_of(lab.final).keys() == others.keys()
    nibabel.save(tiny_scan(9)[0], scans / "s9.nii.gz")
    (scans / "text.nii.gz").unlink()
    prepare_again()
    assert lab.rewritten(before) == {"s9.b2nd"}
    assert sorted(read_catalogue(lab.final / "catalogue").rows["case"]) == ["s0", "s1", "s2", "s9"]
    assert (lab.final / "left_out.csv").read_text() == "path,case,check,detail\n"
    assert lab.is_tidy()


def test_folders_without_a_scan_leave_nothing_behind(lab, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        prepare_folders([tmp_path / "empty"], lab.request, Console(quiet=True), TINY_LIMITS)
    assert not list(lab.preprocessed.iterdir())
    with pytest.raises(UserError, match="--shard needs a catalogue, so that all shards see the same scans"):
        request = dataclasses.replace(lab.request, shard=(1, 2))
        prepare_folders([lab.scans], request, Console(quiet=True), TINY_LIMITS)


def test_an_unfinished_preparation_keeps_its_number(lab, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        kill_when(patch, one_case, "write_volume", 2)
        with pytest.raises(Killed):
            lab.prepare()
    with pytest.raises(UserError, match=r"900 is in use by an unfinished preparation, .*\.Dataset900_Brains"):
        lab.prepare(name="Others")


def add_mask(scan: Path, edge: int) -> None:
    """Excludes a slab that begins at ``edge``: of the same size wherever it is."""
    image = nibabel.load(scan)
    mask = np.zeros(image.shape, np.uint8)
    mask[edge : edge + 4] = 1
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), scan.with_name(f"{stem(scan)}_exclude.nii.gz"))


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_scan_that_is_changed_back_after_a_kill_is_never_met_with_files_of_the_change(
    lab, scans, monkeypatch, is_finished
) -> None:
    """Only the mask differs, and its file has the same size."""
    add_mask(scans / "s1.nii.gz", 8)
    original = (scans / "s1_exclude.nii.gz").read_bytes()
    lab.prepare()
    expected = files_of(lab.final)
    if not is_finished:
        shutil.rmtree(lab.final)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_when(patch, prepare_module, "merge", 1)
            lab.prepare()
    add_mask(scans / "s1.nii.gz", 24)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        where = (merge_module, "_write") if is_finished else (prepare_module, "merge")
        kill_when(patch, *where, 1)
        lab.prepare()
    (scans / "s1_exclude.nii.gz").write_bytes(original)
    lab.prepare()
    assert files_of(lab.final) == expected
    assert lab.is_tidy()


def test_a_begun_update_that_is_not_wanted_any_more_moves_nothing(lab, scans, monkeypatch) -> None:
    lab.prepare()
    expected, original = files_of(lab.final), (scans / "s1.nii.gz").read_bytes()
    nibabel.save(tiny_scan(7)[0], scans / "s1.nii.gz")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_when(patch, prepare_module, "merge", 1)
        lab.prepare()
    (scans / "s1.nii.gz").write_bytes(original)
    lab.prepare()
    assert files_of(lab.final) == expected


def test_a_mask_of_a_finished_dataset_that_vanished_is_made_anew(lab, scans) -> None:
    add_mask(scans / "s1.nii.gz", 8)
    lab.prepare()
    expected = files_of(lab.final)
    (mask,) = lab.final.rglob("s1_exclude.b2nd")
    mask.unlink()
    lab.prepare()
    assert files_of(lab.final) == expected


def test_a_scan_that_changes_while_it_is_prepared_is_not_stored_as_what_it_was(lab, scans, monkeypatch) -> None:
    function = one_case.preprocess

    def changing(scan, *args):
        if scan.case == "s1":
            nibabel.save(tiny_scan(9)[0], scan.path)
        return function(scan, *args)

    with monkeypatch.context() as patch:
        patch.setattr(one_case, "preprocess", changing)
        assert lab.prepare().failed == 1
    assert "s1,changed,changed while it was prepared" in (lab.final / "left_out.csv").read_text()
    lab.prepare()
    assert lab.cases() == ["s0", "s1", "s2"]


def test_a_killed_restart_leaves_no_plans_of_the_recipe_before(lab, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_when(patch, prepare_module, "_preprocess", 1)
        lab.prepare()
    coarse = override(lab.request.recipe, {"data.spacing": (5.0, 5.0, 5.0)})

    def half(folder: Path, **options: object) -> None:
        (folder / "request.json").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", half)
        lab.prepare(recipe=coarse, restart=True)
    lab.prepare(recipe=coarse)
    plans = json.loads((lab.final / "nnsslMAEPlans.json").read_text())
    assert plans["configurations"]["3d_fullres_mae"]["spacing"] == [5.0, 5.0, 5.0]
    assert lab.is_tidy()


def test_plans_of_another_command_that_began_anew_meanwhile_are_refused(lab, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_when(patch, prepare_module, "_preprocess", 1)
        lab.prepare()
    coarse = dataclasses.replace(lab.request, recipe=override(lab.request.recipe, {"data.spacing": (5.0, 5.0, 5.0)}))
    (lab.work / "request.json").write_bytes(coarse.stored())
    with pytest.raises(UserError, match=r"nnsslMAEPlans.json holds another recipe than Dataset900_Brains was"):
        lab.prepare(recipe=coarse.recipe)


def test_scans_of_a_test_set_that_were_left_out_do_not_come_back_by_a_forgotten_option(lab) -> None:
    leak = lambda catalogue: [LeftOut("", "s1", "labelled_dataset", "is a test image")]  # noqa: E731
    lab.prepare()
    assert lab.cases() == ["s0", "s1", "s2"]
    request = dataclasses.replace(lab.request, exclude_datasets=(4,))
    prepare(catalogue_of(lab.scans), request, Console(quiet=True), leak)
    assert lab.cases() == ["s0", "s2"]
    assert not list(lab.final.rglob("s1*.b2nd"))
    assert excluded_from(lab.final) == ("Dataset004",), "its name is not known here"
    with pytest.raises(UserError, match="was prepared with --exclude-dataset 4, and without it scans of that dataset"):
        lab.prepare()
    assert lab.cases() == ["s0", "s2"]
    assert lab.is_tidy()


def test_a_disk_that_is_not_mounted_takes_no_scan_out(lab, scans, tmp_path) -> None:
    lab.prepare()
    other = tmp_path / "other"
    other.mkdir()
    catalogue = catalogue_of(scans)
    catalogue = dataclasses.replace(catalogue, settings={"roots": [str(scans), str(other)]})
    before = files_of(lab.final)
    with pytest.raises(ResumableError, match="other, where scans were found before, is missing or empty"):
        lab.prepare(catalogue)
    with pytest.raises(ResumableError, match="other, where scans were found before, is missing or empty"):
        prepare_folders([scans, other], lab.request, Console(quiet=True), TINY_LIMITS)
    assert files_of(lab.final) == before


def test_scans_that_are_gone_count_as_failed(lab, scans) -> None:
    catalogue = catalogue_of(scans)
    (scans / "s1.nii.gz").unlink()
    result = lab.prepare(catalogue)
    assert (result.prepared, result.failed) == (2, 1)


def test_a_catalogue_that_took_hours_survives_bad_input_that_is_found_later(lab, scans, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise UserError("does not fit")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="does not fit"):
        patch.setattr(prepare_module, "plan_unlabelled", refuse)
        prepare_folders([scans], lab.request, Console(quiet=True), TINY_LIMITS)
    assert [path.name for path in lab.work.iterdir()] == ["catalogue"]
    console = Console(file=io.StringIO(), width=400)
    other = dataclasses.replace(lab.request, recipe=override(lab.request.recipe, {"seed": 5}))
    prepare_folders([scans], other, console, TINY_LIMITS)
    assert "Voxels:" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert lab.is_tidy()


def test_an_error_of_the_disk_is_a_sentence_and_keeps_what_is_done(lab, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "write_cases", fail)
        with pytest.raises(ResumableError, match=r"Input/output error.*the same command continues"):
            lab.prepare()
    assert len(lab.written()) == 3


def test_a_stale_handle_of_a_network_disk_is_a_folder_that_another_process_renamed(lab, monkeypatch) -> None:
    function, calls = merge_module.write_cases, iter(range(10))

    def stale(*args: object) -> None:
        if next(calls) == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        function(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "_SECONDS_BETWEEN_ATTEMPTS", 0.01)
    monkeypatch.setattr(merge_module, "write_cases", stale)
    assert lab.prepare().prepared == 3
    assert lab.is_tidy()
