"""Windows, forced on Linux: what its Python lacks, which files it refuses, which names it has no room for."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pandas
import pytest
import torch
from rich.console import Console

from nnssl_mae import cli, files
from nnssl_mae.brains.anatomy import Anatomy
from nnssl_mae.brains.writing import read_anatomy, save_anatomy
from nnssl_mae.catalogue import scan as scan_module
from nnssl_mae.catalogue.find import stem
from nnssl_mae.catalogue.lock import writing_alone
from nnssl_mae.catalogue.names import safe_name
from nnssl_mae.catalogue.table import Catalogue, read_catalogue, write_catalogue
from nnssl_mae.catalogue.thumbnails import GrowingPictures, write_thumbnails
from nnssl_mae.catalogue.walk import Walk
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.export.place import CARD, whole_folder
from nnssl_mae.files import whole_file, write_first, write_json
from nnssl_mae.journal import Journal, read_journal
from nnssl_mae.patches.dataset import VolumeDataset, open_case
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.recipes.pretraining import Recipe
from nnssl_mae.scans import prepare as prepare_module
from nnssl_mae.scans import storage
from nnssl_mae.scans.cases import read_cases, write_cases
from nnssl_mae.scans.prepare import prepare_folders
from nnssl_mae.scans.request import Request
from nnssl_mae.study import gather, programs, steps
from nnssl_mae.study.state import State
from nnssl_mae.study.steps import Step, check_order
from nnssl_mae.training import distributed
from nnssl_mae.training.state import set_aside, unfinished_epoch, write_checkpoint
from tests.catalogue.scan_tables import row as scan_row
from tests.conftest import TINY_LIMITS
from tests.patches.stored import PATCH, row, store
from tests.platforms.windows_rules import refuse_open_files, without
from tests.scans.catalogues import one_by_one
from tests.tiny_scans import write_unlabelled

WINDOWS = SimpleNamespace(platform="win32")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="sees what is open in /proc")

# ---------------------------------------------------------------------- what Python lacks there

# Everything is imported twice, so that other packages are there already when names are taken away.
_IMPORT_ALL = """
import importlib, os, pkgutil, signal, sys

def import_all():
    import nnssl_mae
    for module in pkgutil.walk_packages(nnssl_mae.__path__, "nnssl_mae."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

import_all()
for name in [name for name in sys.modules if name.split(".")[0] == "nnssl_mae"]:
    del sys.modules[name]
lacking = {
    signal: "SIGUSR1 SIGUSR2 SIGKILL SIGHUP SIGALRM SIG_BLOCK SIG_SETMASK pthread_sigmask pause",
    os: "killpg getpgid setsid fork sched_getaffinity sched_setaffinity sysconf getuid geteuid uname getloadavg",
}
for module, names in lacking.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
import_all()

from nnssl_mae.stopping import STOPPING, StopSignal, leave_stopping_to_the_main_process
assert STOPPING == (signal.SIGTERM,), STOPPING
stop = StopSignal()
with stop.heard():
    signal.raise_signal(signal.SIGTERM)
assert (stop.name, stop.exit_code) == ("SIGTERM", 143)
leave_stopping_to_the_main_process(0)
sys.argv = ["nnssl-mae", "--version"]
from nnssl_mae.cli import main
main()
"""


def test_everything_can_be_imported_and_stopped_without_what_windows_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"\d+\.\d+.*", done.stdout.strip().splitlines()[-1])


def test_the_program_of_a_step_ends_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    process = SimpleNamespace(pid=42, poll=lambda: None, wait=lambda _=None: 0, terminate=lambda: called.append(["-"]))
    monkeypatch.setattr(programs, "os", without(os, "killpg"))
    monkeypatch.setattr(programs.subprocess, "run", lambda command, **_: called.append(command))
    programs.end([process])  # type: ignore[list-item]
    assert called == [["taskkill", "/T", "/F", "/PID", "42"], ["-"]]


def test_a_program_ends_where_windows_cannot_end_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("taskkill")

    ended: list[int] = []
    process = SimpleNamespace(pid=42, poll=lambda: None, wait=lambda _=None: 0, terminate=lambda: ended.append(42))
    monkeypatch.setattr(programs, "os", without(os, "killpg"))
    monkeypatch.setattr(programs.subprocess, "run", missing)
    programs.end([process])  # type: ignore[list-item]
    assert ended == [42]


def test_letters_that_a_file_of_windows_lacks_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="cp1252"))
    monkeypatch.setattr(cli, "sys", SimpleNamespace(platform="win32", stdout=sys.stdout, stderr=sys.stderr))
    cli._print_every_letter()
    print("R² of Ångström, 脳", flush=True)
    assert content.getvalue().decode("cp1252").strip() == "R² of Ångström, ?"


def test_several_gpus_are_refused_where_they_cannot_talk_to_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "training_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match=r"need NCCL.* train on one GPU"):
        distributed.pretrain("Dataset900_Brains", "nnsslMAEPlans", "all", "cuda", resume=False)


# ---------------------------------------------------------------------- locks


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Windows' module of locks; ``held`` says whether another process has the file."""
    module: Any = types.ModuleType("msvcrt")
    module.LK_LOCK, module.LK_NBLCK, module.held, module.locked = 1, 2, False, []

    def locking(number: int, mode: int, count: int) -> None:
        if module.held:
            raise PermissionError(13, "Permission denied")
        module.locked.append((os.lseek(number, 0, os.SEEK_CUR), mode, count))

    module.locking = locking
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(files, "sys", WINDOWS)
    return module


def test_one_process_writes_a_catalogue_at_a_time(locks: Any, tmp_path: Path) -> None:
    with writing_alone(tmp_path):
        assert locks.locked == [(0, locks.LK_NBLCK, 1)]
    locks.held = True
    with pytest.raises(ResumableError, match="Another process is writing"), writing_alone(tmp_path):
        pass


def test_claims_of_a_study_are_looked_at_by_one_process_at_a_time(locks: Any, tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    assert state.claim("train")
    assert not state.claim("train")
    assert [mode for _, mode, _ in locks.locked] == [locks.LK_LOCK] * 2


# ---------------------------------------------------------------------- open files


@needs_proc
def test_the_rule_of_windows_is_enforced_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_open_files(monkeypatch, tmp_path)
    with (tmp_path / "one").open("wb"), pytest.raises(PermissionError):
        (tmp_path / "one").replace(tmp_path / "other")
    (tmp_path / "one").replace(tmp_path / "other")
    mapped = np.memmap(tmp_path / "mapped", dtype=np.uint8, mode="w+", shape=(9,))
    with pytest.raises(PermissionError):
        (tmp_path / "mapped").unlink()
    del mapped
    (tmp_path / "mapped").unlink()


def replaced_table(folder: Path) -> None:
    write_cases(folder, [row("a")])
    assert list(read_cases(folder).index) == ["a"]
    CaseIndex(folder)
    write_cases(folder, [row("a"), row("b")])
    assert list(read_cases(folder).index) == ["a", "b"]


def replaced_volume(folder: Path) -> None:
    for value in range(2):
        cases = store(folder / "volumes", [np.full((8, 8, 8), value)], {0: np.ones((8, 8, 8), dtype=bool)})
        assert (open_case(cases, 0)[:, :2, :2, :2] == value).all()
        del cases  # the table stays mapped as long as somebody uses it


def replaced_checkpoint(folder: Path) -> None:
    for value in range(2):
        path = folder / "checkpoint_latest.pth"
        write_checkpoint(path, {"nnssl_mae": {"unfinished_epoch": [float(value)]}, "weights": torch.ones(9)})
        assert unfinished_epoch(path) == [value]
    assert set_aside(folder, [path.name])


def replaced_catalogue(folder: Path) -> None:
    for number in (2, 3):
        table = pandas.DataFrame([asdict(scan_row(f"sub-{n}_T1w")) for n in range(number)])
        write_catalogue(folder, Catalogue(table))
        assert len(read_catalogue(folder).rows) == number


def replaced_pictures(folder: Path) -> None:
    for _ in range(2):
        growing = GrowingPictures(folder / "growing")
        place = growing.append(b"\x89PNG...")
        growing.close()
        write_thumbnails(folder, ["a"], {"a": place}, folder / "growing")
        (folder / "growing").unlink()


def replaced_journal(folder: Path) -> None:
    with Journal(folder / "journal") as journal:
        journal.append({"case": "a"})
    next(read_journal(folder / "journal"))
    (folder / "journal").unlink()


def replaced_texts(folder: Path) -> None:
    for value in range(2):
        write_json(folder / "values.json", {"value": value})
        write_first(folder / "first.json", b"{}")


def replaced_export(folder: Path) -> None:
    for _ in range(2):
        with whole_folder(folder / "export") as new:
            (new / CARD).write_text("card", encoding="utf-8")


def replaced_anatomy(folder: Path) -> None:
    grid = np.zeros((4, 4, 4), dtype=np.float32)
    anatomy = Anatomy(grid, grid[None], grid.astype(np.uint8), np.eye(4), (1.0, 1.0, 1.0), ("CSF",), True)
    for _ in range(2):
        save_anatomy(folder / "one.npz", anatomy)
        read_anatomy(folder / "one.npz")


@needs_proc
@pytest.mark.parametrize(
    "write_and_replace",
    [
        replaced_table,
        replaced_volume,
        replaced_checkpoint,
        replaced_catalogue,
        replaced_pictures,
        replaced_journal,
        replaced_texts,
        replaced_export,
        replaced_anatomy,
    ],
)
def test_no_file_is_replaced_or_removed_while_it_is_open(
    write_and_replace: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_open_files(monkeypatch, tmp_path)
    write_and_replace(tmp_path)


@needs_proc
def test_a_dataset_is_prepared_and_enlarged_without_touching_open_files(
    nnunet_folders: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of work is renamed with all that is in it, and the table of cases is replaced."""
    for module in (prepare_module, scan_module):
        monkeypatch.setattr(module, "in_processes", one_by_one)
    refuse_open_files(monkeypatch, nnunet_folders)
    request = Request(900, "Brains", tiny_recipe, tiny_recipe, 1)
    for count in (1, 2):
        scans = write_unlabelled(nnunet_folders / "scans", count)
        done = prepare_folders([scans], request, Console(quiet=True), TINY_LIMITS)
        assert done.prepared == count
    names = [path.name for path in (nnunet_folders / "preprocessed").rglob("*")]
    assert names
    assert all(map(is_possible_on_windows, names))


def test_a_file_that_a_scanner_holds_for_a_moment_is_replaced_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[float] = []
    replace = Path.replace

    def held_at_first(path: Path, target: Path) -> Path:
        if len(refused) < 2:
            raise PermissionError(13, "used by another process")
        return replace(path, target)

    monkeypatch.setattr(files, "sys", WINDOWS)
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=refused.append))
    monkeypatch.setattr(Path, "replace", held_at_first)
    with whole_file(tmp_path / "table") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "table").read_bytes() == b"new"
    assert len(refused) == 2


def test_a_file_that_stays_open_elsewhere_is_an_error_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any) -> None:
        raise PermissionError(13, "used by another process")

    (tmp_path / "table").write_bytes(b"old")
    monkeypatch.setattr(files, "sys", WINDOWS)
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(PermissionError), whole_file(tmp_path / "table") as temporary:
        temporary.write_bytes(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["table"]
    assert (tmp_path / "table").read_bytes() == b"old"


# ---------------------------------------------------------------------- volumes


def test_volumes_are_not_mapped_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in stock nnU-Net: mapping of blosc2 files fails there."""
    volume = np.arange(8**3, dtype=np.float32).reshape(1, 8, 8, 8)
    storage.write_volume(tmp_path / "a.b2nd", volume, PATCH)
    options: list[dict[str, Any]] = []
    stock = blosc2.open

    def opened(*arguments: Any, **named: Any) -> Any:
        options.append(named)
        return stock(*arguments, **named)

    monkeypatch.setattr(blosc2, "open", opened)
    for system in ("posix", "nt"):
        monkeypatch.setattr(storage, "os", SimpleNamespace(name=system))
        lazy, *_ = VolumeDataset(str(tmp_path), ["a"]).load_case("a")
        assert (lazy[:] == volume).all()
    assert ["mmap_mode" in named for named in options] == [True, False]


# ---------------------------------------------------------------------- names


_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def is_possible_on_windows(name: str) -> bool:
    """By the rules of Microsoft's page "Naming Files, Paths, and Namespaces"."""
    return not re.search(r'[<>:"/\\|?*\x00-\x1f]|[. ]$', name) and name.split(".")[0].lower() not in _DEVICES


@pytest.mark.parametrize("name", ["aux", "CON", "nul.1", "com7", "a:b", "what?", "a*b", "a\\b", "dot.", "LPT1", "x|y"])
def test_every_scan_becomes_a_file_that_windows_can_have(name: str) -> None:
    for case in (safe_name(name), stem(Path(f"{name}.nii.gz"))):
        assert is_possible_on_windows(f"{case}{storage.ENDING}"), case


@pytest.mark.parametrize("name", ["sub-01_T1w", "console", "auxiliary.1", "com10", "nullhypothesis", "1.2.840"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert safe_name(name) == name


def test_names_of_temporary_files_are_possible(tmp_path: Path) -> None:
    with whole_file(tmp_path / "table.arrow") as temporary:
        temporary.write_bytes(b"")
        assert is_possible_on_windows(temporary.name)


@pytest.mark.parametrize(("system", "is_refused"), [("linux", False), ("darwin", True), ("win32", True)])
def test_steps_whose_files_would_be_one_are_refused(
    system: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "sys", SimpleNamespace(platform=system))
    pair = [Step("train_MAE", "train", ("a",)), Step("train_mae", "train", ("a",))]
    if not is_refused:
        check_order(pair)
        return
    with pytest.raises(UserError, match="the same name, train_mae"):
        check_order(pair)


def test_without_links_the_sentence_says_how_windows_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(22, "A required privilege is not held by the client")

    (tmp_path / "results" / "model" / "fold_0").mkdir(parents=True)
    monkeypatch.setattr(gather, "sys", WINDOWS)
    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(UserError, match="developer mode"):
        gather.gather(tmp_path, "Dataset004_X", [Path("results/model/fold_0")])


def test_folders_on_a_disk_that_does_not_number_them_are_all_visited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python gives 0 where Windows gives no number."""
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
    stat = Path.stat

    def unnumbered(path: Path, **options: Any) -> os.stat_result:
        values = list(stat(path, **options))
        values[1] = 0
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", unnumbered)
    assert {folder.relative for folder in Walk.begin().folders(tmp_path)} == {"", "a/", "b/", "b/c/"}
