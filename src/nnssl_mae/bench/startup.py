"""From the start of training to the first batch, and memory, with very many cases: this package and stock nnU-Net."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from rich.console import Console
from torch import device

from nnssl_mae.bench.measuring import environment, print_table, seconds
from nnssl_mae.masking import block_edges
from nnssl_mae.memory import own_memory, peak_memory
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import PatchSettings, training_stream, validation_stream
from nnssl_mae.patches.splits import split_cases
from nnssl_mae.recipes.pretraining import MaskingRecipe, NetworkRecipe, Recipe
from nnssl_mae.scans.cases import CaseRow, table_path, write_cases
from nnssl_mae.scans.foreground import encode_occupancy
from nnssl_mae.scans.storage import ENDING, write_volume
from nnssl_mae.training.pretraining_data import PretrainingData

_PATCH = (32, 32, 32)  # small: how long a patch takes is another question
_SHAPE = (189, 233, 197)  # of a brain at 1 mm, for foreground grids of real size
_BATCH = 2
_LINKS = 30_000 if sys.platform != "win32" else 1000  # to one file; some file systems allow 65,000, NTFS 1023
_SCANS_A_SUBJECT = 3
OURS, STOCK = "nnssl_mae", "stock nnU-Net"
_CHILD = "import sys; from nnssl_mae.bench.startup import report; report(*sys.argv[1:])"


@dataclass(frozen=True)
class Start:
    """One start of the loaders."""

    request: float
    """Seconds until the first batch was asked for; NaN where that cannot be seen from outside."""
    batch: float
    """Seconds until the first batches of training and validation were there."""
    before: float
    """Largest resident memory of the process before the start: of imports, MiB."""
    peak: float
    """The same until the first batches were there; pages of programs and of mapped files count."""
    own: float
    """What the process held then without such pages, MiB."""
    worker: float
    """Mean resident memory of its worker processes, MiB; NaN without any."""
    worker_own: float
    """The same, with pages that are shared by processes counted once (proportional set size)."""


def bench_startup(
    console: Console, cases: int = 40_000, folder: Path | None = None, workers: Sequence[int] = (0, 2)
) -> dict[tuple[str, int], Start]:
    """Measures the start of both loaders and prints the table.

    Args:
        console: to print on.
        cases: of the dataset, which is made of links to one volume.
        folder: for the dataset; a temporary one if not given.
        workers: processes that load training batches, one start of each loader for each number.
    """
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours, stock = root / "ours" / "data", root / "stock" / "data"
        write_ours(ours, cases)
        write_stock(stock, cases)
        table = table_path(ours).stat().st_size / 2**20
        starts = {
            (name, number): start_in_new_process(name, data, number)
            for number in workers
            for name, data in ((OURS, ours), (STOCK, stock))
        }
    _print(console, starts, cases, table)
    return starts


def start_ours(folder: Path, workers: int) -> Start:
    """What the trainer does between its start and the first batch."""
    recipe = _recipe()
    edges = block_edges(_PATCH, recipe.masking.block_size)
    grid = tuple(size // edge for size, edge in zip(_PATCH, edges, strict=True))
    before, begin = _peak(), perf_counter()
    index = CaseIndex(folder)
    training, validation = split_cases(index, "all", recipe.seed, folder.with_name("splits_final.json"))
    settings = PatchSettings(_PATCH, grid, recipe.masking, respect_exclusion=True, seed=recipe.seed)
    data = PretrainingData(folder, recipe, settings, _BATCH, _BATCH)
    batches, held_out = data.training(training), data.validation(validation[: recipe.schedule.validation_cases])
    streams = (
        training_stream(batches, 0, 1, 1000, workers),
        validation_stream(held_out, min(workers, 1 + workers // 4)),
    )
    request = perf_counter() - begin
    for stream in streams:
        next(stream)
    start = _measured(before, request, perf_counter() - begin)
    for stream in streams:
        stream.close()
    return start


def start_stock(folder: Path, workers: int) -> Start:
    """The same by stock nnU-Net's own ``get_dataloaders``, which returns after the first batches."""
    os.environ["nnUNet_n_proc_DA"] = str(workers)
    trainer = _StockLoading(folder)
    before, begin = _peak(), perf_counter()
    loaders = trainer.get_dataloaders()
    start = _measured(before, float("nan"), perf_counter() - begin)
    if get_allowed_n_proc_DA():
        for loader in loaders:
            loader._finish()
    return start


class _StockLoading(nnUNetTrainer):
    """As much of stock nnU-Net's trainer as its ``do_split`` and ``get_dataloaders`` look at."""

    def __init__(self, folder: Path) -> None:
        self.preprocessed_dataset_folder = str(folder)
        self.preprocessed_dataset_folder_base = str(folder.parent)
        self.folder_with_segs_from_previous_stage = None
        self.dataset_class = nnUNetDatasetBlosc2
        self.fold, self.batch_size, self.device = 0, _BATCH, device("cpu")
        self.configuration_manager = SimpleNamespace(patch_size=_PATCH, use_mask_for_norm=[False])
        self.label_manager = LabelManager({"background": 0, "brain": 1}, regions_class_order=None)
        self.enable_deep_supervision = self.is_cascaded = self.probabilistic_oversampling = False
        self.oversample_foreground_percent = 0.33

    def print_to_log_file(self, *_: Any, **__: Any) -> None:
        """Nothing is printed."""


def _recipe() -> Recipe:
    network = NetworkRecipe(patch_size=_PATCH, batch_size=_BATCH)
    masking = MaskingRecipe(block_size=8, region="foreground")
    return Recipe(name="startup", summary="for measuring", network=network, masking=masking)


def _names(cases: int) -> Iterator[str]:
    return (f"sub-{n // _SCANS_A_SUBJECT:06d}_ses-{n % _SCANS_A_SUBJECT}_T1w" for n in range(cases))


def _brain() -> np.ndarray:
    """An ellipsoid, (Z, Y, X), True inside."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in _SHAPE], indexing="ij", sparse=True)
    return np.asarray(sum(axis**2 for axis in axes) < 0.8)


def write_ours(folder: Path, cases: int) -> None:
    """A data folder of this package with so many cases, and its table."""
    folder.mkdir(parents=True)
    brain = _brain()
    source, grid = folder.with_name("volume"), encode_occupancy(brain)
    write_volume(source, brain[None].astype(np.float32), _PATCH)
    size = source.stat().st_size
    names = list(_names(cases))
    write_cases(
        folder,
        [CaseRow(name, name.partition("_")[0], "", _SHAPE, 0.0, 1.0, grid, "bench", "", size) for name in names],
    )
    _link(source, [folder / f"{name}{ENDING}" for name in names])


def write_stock(folder: Path, cases: int) -> None:
    """A data folder of stock nnU-Net with so many labelled cases."""
    folder.mkdir(parents=True)
    labels = _brain()[None].astype(np.int16)
    locations = {"class_locations": {1: np.argwhere(labels)[::1000]}}
    source = folder.with_name("volume")
    nnUNetDatasetBlosc2.save_case(
        labels.astype(np.float32), labels, locations, str(source), (1, 96, 96, 96), (1, 32, 32, 32)
    )
    write_pickle(locations, f"{source}.pkl")
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        _link(Path(f"{source}{ending}"), [folder / f"{name}{ending}" for name in _names(cases)])


def _link(source: Path, targets: list[Path]) -> None:
    """Makes every target a hard link to ``source``, or to one of a few copies of it."""
    content = source.read_bytes()
    for number, target in enumerate(targets):
        if number % _LINKS == 0:
            target.write_bytes(content)
            source = target
        else:
            os.link(source, target)


def start_in_new_process(name: str, folder: Path, workers: int) -> Start:
    """Runs :func:`start_ours` or :func:`start_stock` alone: imports are done before, and memory is its own."""
    arguments = [sys.executable, "-c", _CHILD, name, str(folder), str(workers)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def report(name: str, folder: str, workers: str) -> None:
    """Prints a :class:`Start` as a line of JSON, for the process that asked."""
    start = {OURS: start_ours, STOCK: start_stock}[name](Path(folder), int(workers))
    print(json.dumps(asdict(start)), flush=True)


def _measured(before: float, request: float, batch: float) -> Start:
    workers = [_memory(child) for child in _children()]
    mean = np.mean(workers, axis=0) if workers else np.full(2, np.nan)
    return Start(request, batch, before, _peak(), own_memory() / 2**20, float(mean[0]), float(mean[1]))


def _peak() -> float:
    """Largest resident memory so far, MiB."""
    return peak_memory() / 2**20


def _children() -> list[int]:
    """Of all threads of this process: batches are asked for by threads, too."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # not Linux
        return []
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text("ascii").split()]


def _memory(pid: int) -> tuple[float, float]:
    """Resident memory in MiB: all of it, and with shared pages counted by share."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:])
    sizes = {words[0]: int(words[1]) / 2**10 for words in lines}
    return sizes["Rss:"], sizes["Pss:"]


def _print(console: Console, starts: dict[tuple[str, int], Start], cases: int, table: float) -> None:
    columns = ("loader", "workers", "first request", "first batch", "MiB before", "peak", "own", "worker", "share")
    rows = []
    for (name, workers), start in starts.items():
        times = [_shown(time) for time in (start.request, start.batch)]
        sizes = [_mebibytes(size) for size in (start.before, start.peak, start.own, start.worker, start.worker_own)]
        rows.append((name, str(workers), *times, *sizes))
    note = (
        f"The case table of nnssl_mae has {table:.1f} MiB; its pages are shared by all processes. Splits are made "
        "anew. Imports are not timed; their memory stands under 'before'. Stock nnU-Net asks for its first batch "
        "inside the call that returns it. 'own' leaves out pages of programs and of mapped files, which the system "
        f"shares and can drop.\n{environment()}"
    )
    print_table(console, f"Start of the loaders with {cases} cases", columns, rows, note)


def _shown(time: float) -> str:
    return "-" if np.isnan(time) else seconds(time)


def _mebibytes(size: float) -> str:
    return "-" if np.isnan(size) else f"{size:.0f}"
